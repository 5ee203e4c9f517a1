package evaluate

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/trigger"
)

// ForCluster decides for a trigger on the GPUs of all nodes. Nodes that are
// silent, and unheard peers, are left out; with over half of them so there is no
// answer. Errors are of type *Error.
func ForCluster(t *trigger.Trigger, f Fleet, now time.Time, staleAfter time.Duration) (Decision, error) {
	nodes, unheard := f.Nodes(), f.Unheard()
	all := Decision{Nodes: len(nodes) + len(unheard)}
	var silent []string // of the first few, and why
	for _, name := range unheard {
		all.Silent++
		silent = some(silent, "nothing heard yet from peer "+name)
	}
	var refusal *Error // of the node with most devices that has no such GPU
	most := -1
	for _, n := range nodes {
		d, err := forNode(t, n, now, staleAfter)
		var e *Error
		switch {
		case err == nil:
			all.Used, all.LeftOut = append(all.Used, d.Used...), append(all.LeftOut, d.LeftOut...)
			all.until(d.Until)
		case errors.As(err, &e) && e.Kind != Unavailable:
			if len(n.Devices) > most {
				refusal, most = e, len(n.Devices)
			}
		default:
			all.Silent++
			silent = some(silent, err.Error())
		}
	}
	if all.Silent > len(silent) {
		silent = append(silent, fmt.Sprintf("and %d more", all.Silent-len(silent)))
	}
	switch {
	case all.Nodes == 0:
		return Decision{}, fail(Unavailable, "scope: cluster: no node is heard of")
	case 2*all.Silent > all.Nodes:
		return Decision{}, fail(Unavailable, "scope: cluster: nothing is known of %d of %d nodes: %s", all.Silent, all.Nodes, strings.Join(silent, "; "))
	case len(all.Used) == 0 && refusal != nil && all.Silent == 0:
		return Decision{}, refuse(t, nodes, refusal)
	case len(all.Used) == 0:
		return Decision{}, fail(Unavailable, "scope: cluster: no GPU can be read: %s", strings.Join(silent, "; "))
	}
	return all.conclude(t)
}

// refuse says of all nodes what one of them said of itself.
func refuse(t *trigger.Trigger, nodes []*fleet.Node, one *Error) error {
	var devices []*fleet.Device
	for _, n := range nodes {
		devices = append(devices, n.Devices...)
	}
	switch {
	case one.Kind == Invalid || len(devices) == 0:
		return one
	case t.GPUModel != "" && len(filter(devices, func(d *fleet.Device) bool { return like(d, t.GPUModel) })) == 0:
		return fail(Impossible, "gpuModel: no GPU of %d nodes has %q in its name; there are %s", len(nodes), t.GPUModel, list(devices, (*fleet.Device).FullName))
	}
	return fail(Impossible, "metricType: no GPU in scope on %d nodes has %s; they have %s", len(nodes), t.Metric.Name, metrics(devices))
}

// forNode reads a node's devices in scope.
func forNode(t *trigger.Trigger, n *fleet.Node, now time.Time, staleAfter time.Duration) (Decision, error) {
	if n.Heard.IsZero() {
		return Decision{}, fail(Unavailable, "node %s: nothing heard yet from any reader", n.Name)
	}
	devices, err := inScope(t, n)
	if err != nil {
		return Decision{}, err
	}
	d, err := read(t, n, devices, now, staleAfter)
	if err == nil && len(d.Used) == 0 {
		err = missing(t, n, devices, d.LeftOut, now, staleAfter)
	}
	return d, err
}

// conclude makes the answer of the values that were read.
func (d Decision) conclude(t *trigger.Trigger) (Decision, error) {
	d.Value = aggregate(t.Aggregation, d.Used)
	if d.Value < 0 {
		return Decision{}, fail(Impossible, "metricType: %s stands at %v, and KEDA would read a negative value as 0", t.Metric.Name, d.Value)
	}
	d.Active = t.AlwaysActive || d.Value > t.Activation
	return d, nil
}

// some adds to the first few.
func some(few []string, one string) []string {
	if len(few) < mostReasons {
		few = append(few, one)
	}
	return few
}
