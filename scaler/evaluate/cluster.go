package evaluate

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/trigger"
)

// ForCluster decides for a trigger on the GPUs of all nodes. Stale nodes, and peers
// that nothing was received from, are left out; with over half of them so there is no
// answer. One that may be busy keeps the trigger active. Errors are of type *Error;
// with one, Active says whether some GPU is known to be busy.
func ForCluster(t *trigger.Trigger, f Fleet, now time.Time, staleAfter time.Duration) (Decision, error) {
	nodes, unheard := f.Nodes(), f.Unheard()
	all := Decision{Nodes: len(nodes) + len(unheard)}
	var silent []string // of the first few, and why
	for _, name := range unheard {
		all.Silent++
		all.mayBeBusy = true
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
			all.mayBeBusy = all.mayBeBusy || d.mayBeBusy
		case errors.As(err, &e) && e.Kind != Unavailable:
			if len(n.Devices) > most {
				refusal, most = e, len(n.Devices)
			}
		default:
			all.Silent++
			all.mayBeBusy = all.mayBeBusy || nodeMayBeBusy(t, n)
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
		all.mayBeBusy = false
		known, err := all.conclude(t)
		return Decision{Active: err == nil && known.Active}, fail(Unavailable, "scope: cluster: nothing is known of %d of %d nodes: %s", all.Silent, all.Nodes, strings.Join(silent, "; "))
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
	return fail(Impossible, "metricType: no GPU in scope on %d nodes has %s: %s; they have %s", len(nodes), t.Metric.Name, list(devices, (*fleet.Device).FullName), metrics(devices))
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

// nodeMayBeBusy says whether a device of a node that cannot be read now may work.
func nodeMayBeBusy(t *trigger.Trigger, n *fleet.Node) bool {
	devices, err := inScope(t, n)
	if err != nil || n.Heard.IsZero() {
		return err == nil
	}
	failing := func(w fleet.Writer) bool { return w.Error != "" && !w.Allocates }
	if len(n.Devices) == 0 && slices.ContainsFunc(n.Writers, failing) { // its GPUs are not known
		return true
	}
	return slices.ContainsFunc(devices, func(d *fleet.Device) bool {
		p := part{d, d.ID, 1}
		return p.mayBeBusy(t)
	})
}

// conclude makes the answer of the values that were read.
func (d Decision) conclude(t *trigger.Trigger) (Decision, error) {
	if len(d.Used) == 0 {
		d.Active = t.AlwaysActive
		return d, nil
	}
	d.Value = aggregate(t.Aggregation, d.Used)
	if d.Value < 0 {
		return Decision{}, fail(Impossible, "metricType: %s stands at %v, and KEDA would read a negative value as 0", t.Metric.Name, d.Value)
	}
	d.Active = t.AlwaysActive || d.mayBeBusy || d.Value > t.Activation
	return d, nil
}

// some adds to the first few.
func some(few []string, one string) []string {
	if len(few) < mostReasons {
		few = append(few, one)
	}
	return few
}
