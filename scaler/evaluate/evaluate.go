// Package evaluate decides what KEDA is told: from a trigger, what is known of
// the nodes, and the time, to one number and whether the workload is active,
// with the reasons. It is pure: no clock, no transport, no I/O.
package evaluate

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/replicas"
	"gpuscaler/scaler/terms"
	"gpuscaler/scaler/trigger"
	"gpuscaler/shared/snapshot"
)

// Kind is why there is no number. The transport maps it to its own codes.
type Kind int

// The kinds of Error.
const (
	// Invalid: the trigger asks for something that cannot be, and has to be
	// changed.
	Invalid Kind = iota
	// Unavailable: the data is missing now and may come back.
	Unavailable
	// Impossible: this node, as it is, will never have the data.
	Impossible
)

// Error is why there is no number. No data is an error, never a zero.
type Error struct {
	Kind   Kind
	Reason string
}

func (e *Error) Error() string { return e.Reason }

func fail(kind Kind, format string, args ...any) error {
	return &Error{Kind: kind, Reason: fmt.Sprintf(format, args...)}
}

// Decision is what KEDA is told, and why.
type Decision struct {
	// Value is the number for the HPA, in the metric's unit.
	Value float64
	// Active says whether the workload should have at least one replica.
	Active bool
	// Used are the devices whose values were aggregated, in node order.
	Used []Reading
	// LeftOut are those in scope that could not be read.
	LeftOut []LeftOut
	// In cluster scope, Nodes is how many nodes there are, Silent of how many
	// nothing is known now.
	Nodes, Silent int

	// Until is when the first of what it rests on is too old, if anything is; zero
	// if it rests on nothing that gets old.
	Until time.Time

	// In workload scope there are pods instead.
	Pods []PodReading
	// Replicas is how Value came about; nil when there are no pods.
	Replicas    *replicas.Decision
	mayBeBusy   bool // a device that is left out may work
	ending      int  // replicas that are about to
	terminating int  // of those, how many are still ready

	// Flat is how many replicas have memory in use that does not follow their load,
	// Unread of how many there is no value.
	Flat, Unread int
	// Notices are what the ScaledObject's author should know.
	Notices []Notice
}

// Reading is one device's part in a Decision.
type Reading struct {
	Device *fleet.Device
	Value  float64
}

// LeftOut is a device that is in scope and has no value.
type LeftOut struct {
	Device *fleet.Device
	Reason string
}

// Active says whether the trigger's workload should have at least one replica.
// A profile that never scales to zero is active whatever is known.
func Active(t *trigger.Trigger, n *fleet.Node, now time.Time, staleAfter time.Duration) (bool, error) {
	if t.AlwaysActive {
		return true, nil
	}
	d, err := Evaluate(t, n, now, staleAfter)
	return d.Active, err
}

// Evaluate decides for a trigger on what is known of the node at now. Data
// older than staleAfter is no data. Errors are of type *Error.
func Evaluate(t *trigger.Trigger, n *fleet.Node, now time.Time, staleAfter time.Duration) (Decision, error) {
	if err := checkScope(t); err != nil {
		return Decision{}, err
	}
	if n == nil {
		return Decision{}, fail(Impossible, "scope: node: this scaler has no node of its own; use scope: workload or scope: cluster")
	}
	d, err := forNode(t, n, now, staleAfter)
	if err != nil {
		return Decision{}, err
	}
	return d.conclude(t)
}

// checkScope refuses what cannot be answered from one node. A wider scope is
// not approximated: it would be one arbitrary node's answer.
func checkScope(t *trigger.Trigger) error {
	switch {
	case t.Scope == trigger.ScopeWorkload:
		return fail(Impossible, "scope: workload needs the Kubernetes API and --workloads=auto, which this scaler does not have; use scope: node")
	case t.Scope == trigger.ScopeCluster:
		return fail(Impossible, "scope: cluster needs the other nodes, and this scaler knows only its own (--peers); use scope: node")
	case terms.IsEngine(t.Metric), terms.IsQueue(t.Metric):
		return fail(Impossible, "metricType: %s is about a workload, and needs the Kubernetes API and --workloads=auto, which this scaler does not have", t.Metric.Name)
	case t.Container != "":
		return fail(Impossible, "container: needs the Kubernetes API and --workloads=auto, which this scaler does not have; leave it out to scale on the node's GPUs")
	case t.PodSelector != "":
		return fail(Impossible, "podSelector: needs the Kubernetes API and --workloads=auto, which this scaler does not have; leave it out to scale on the node's GPUs")
	}
	return nil
}

// inScope are the devices that gpuIndex and gpuModel leave, in node order.
func inScope(t *trigger.Trigger, n *fleet.Node) ([]*fleet.Device, error) {
	devices := reporting(n.Devices, t)
	if t.GPUIndex >= 0 {
		gpus := filter(devices, func(d *fleet.Device) bool { return d.Parent == "" })
		if t.GPUIndex >= len(gpus) && len(n.Devices) > 0 {
			return nil, fail(Invalid, "gpuIndex: %d is beyond the GPUs of node %s; it has %s", t.GPUIndex, n.Name, count(len(gpus)))
		}
		if len(gpus) > 0 {
			gpu := gpus[t.GPUIndex]
			devices = filter(devices, func(d *fleet.Device) bool { return d == gpu || d.Parent == gpu.ID })
		}
	}
	if t.GPUModel != "" && len(devices) > 0 {
		named := filter(devices, func(d *fleet.Device) bool { return like(d, t.GPUModel) })
		if len(named) == 0 {
			return nil, fail(Impossible, "gpuModel: no GPU in scope on node %s has %q in its name; there are %s",
				n.Name, t.GPUModel, list(devices, (*fleet.Device).FullName))
		}
		devices = named
	}
	return finest(devices, t.Metric.Name), nil
}

// like says whether a device is of the model, or has no known name because it
// could never be opened.
func like(d *fleet.Device, model string) bool {
	return terms.MatchModel(model, d.FullName(), d.MemoryTotalMiB) || (d.Model == "" && d.Error != "")
}

// gpuVendor is the vendor that the built-in metrics are about.
const gpuVendor = "nvidia"

// reporting are the devices of the vendors that a trigger is about: NVIDIA's
// for a built-in metric on a node with such GPUs, unless gpuModel asks for
// others; else those of the vendors that have the metric, or all when none is
// known to. What another vendor's device says, or that it is lost, is no
// concern of the GPUs', and gpuIndex does not count it.
func reporting(devices []*fleet.Device, t *trigger.Trigger) []*fleet.Device {
	if len(devices) == 0 || devices[0].Vendor == devices[len(devices)-1].Vendor {
		return devices // node order is by vendor: there is only one
	}
	var vendors []string
	for _, d := range devices {
		asked := t.GPUModel == "" || like(d, t.GPUModel)
		has := d.Has(t.Metric.Name) || (t.Metric.Builtin() && d.Vendor == gpuVendor && d.MayHave(t.Metric.Name))
		if asked && has && !slices.Contains(vendors, d.Vendor) {
			vendors = append(vendors, d.Vendor)
		}
	}
	switch {
	case len(vendors) == 0:
		return devices
	case t.Metric.Builtin() && slices.Contains(vendors, gpuVendor):
		vendors = []string{gpuVendor}
	}
	return filter(devices, func(d *fleet.Device) bool { return slices.Contains(vendors, d.Vendor) })
}

// finest takes the instances in the place of a partitioned GPU where they have
// the metric (memory, activity), and the GPU where they have not (temperature,
// power), so that nothing counts twice. An instance that could never be read
// may have it, unless its GPU has.
func finest(devices []*fleet.Device, metric string) []*fleet.Device {
	if !slices.ContainsFunc(devices, func(d *fleet.Device) bool { return d.Parent != "" }) {
		return devices
	}
	split := map[string]bool{}
	for _, d := range devices {
		if d.Parent == "" || !d.MayHave(metric) {
			continue
		}
		gpuHas := func(gpu *fleet.Device) bool { return gpu.ID == d.Parent && gpu.Has(metric) }
		if d.Has(metric) || !slices.ContainsFunc(devices, gpuHas) {
			split[d.Parent] = true
		}
	}
	if len(split) == 0 {
		return filter(devices, func(d *fleet.Device) bool { return d.Parent == "" })
	}
	return filter(devices, func(d *fleet.Device) bool {
		if d.Parent != "" {
			return split[d.Parent]
		}
		return !split[d.ID]
	})
}

// read takes the trigger's metric from each device. Stale data of a device
// that has the metric fails the whole: who knows what it would say now.
func read(t *trigger.Trigger, n *fleet.Node, devices []*fleet.Device, now time.Time, staleAfter time.Duration) (Decision, error) {
	d := Decision{Used: make([]Reading, 0, len(devices))}
	for _, device := range devices {
		if age := now.Sub(device.Heard); age > staleAfter && device.MayHave(t.Metric.Name) {
			return Decision{}, fail(Unavailable, "node %s: %s: nothing heard for %s, more than %s", n.Name, device.Long(), fleet.Age(age), staleAfter)
		}
		if v, ok := device.Value(t.Metric.Name, t.Window); ok {
			d.Used = append(d.Used, Reading{device, v})
			d.until(device.Heard.Add(staleAfter))
		} else if reason, failed := device.Failure(t.Metric.Name); failed {
			d.LeftOut = append(d.LeftOut, LeftOut{device, reason})
			p := part{device, device.ID, 1}
			d.mayBeBusy = d.mayBeBusy || p.mayBeBusy(t)
		}
	}
	return d, nil
}

// until notes that something is too old from a moment on.
func (d *Decision) until(at time.Time) {
	if d.Until.IsZero() || at.Before(d.Until) {
		d.Until = at
	}
}

// missing says why no device in scope has a value.
func missing(t *trigger.Trigger, n *fleet.Node, devices []*fleet.Device, left []LeftOut, now time.Time, staleAfter time.Duration) error {
	if len(left) > 0 {
		const most = 16 // a message has to fit a status, an event and a log line
		var reasons []string
		for _, l := range left[:min(len(left), most)] {
			reasons = append(reasons, fmt.Sprintf("%s: %s", l.Device.Long(), l.Reason))
		}
		if len(left) > most {
			reasons = append(reasons, fmt.Sprintf("and %d more", len(left)-most))
		}
		return fail(Unavailable, "node %s: %s cannot be read: %s", n.Name, t.Metric.Name, strings.Join(reasons, "; "))
	}
	for _, w := range n.Writers {
		if w.Error != "" && !w.Allocates {
			return fail(Unavailable, "node %s: %s: %s", n.Name, w.Name, w.Error)
		}
	}
	if age := now.Sub(n.Heard); age > staleAfter {
		return fail(Unavailable, "node %s: nothing heard for %s, more than %s", n.Name, fleet.Age(age), staleAfter)
	}
	if len(n.Devices) == 0 {
		return fail(Impossible, "node %s has no GPUs", n.Name)
	}
	return fail(Impossible, "metricType: no GPU in scope on node %s has %s: %s; they have %s", n.Name, t.Metric.Name, list(devices, (*fleet.Device).FullName), metrics(devices))
}

func aggregate(a trigger.Aggregation, used []Reading) float64 {
	var few [16]float64
	values := few[:0]
	for _, r := range used {
		values = append(values, r.Value)
	}
	return a.Apply(values)
}

func filter(devices []*fleet.Device, keep func(*fleet.Device) bool) []*fleet.Device {
	kept := make([]*fleet.Device, 0, len(devices))
	for _, d := range devices {
		if keep(d) {
			kept = append(kept, d)
		}
	}
	return kept
}

// count is "8 GPUs (gpuIndex 0 to 7)".
func count(gpus int) string {
	switch gpus {
	case 0:
		return "none"
	case 1:
		return "1 GPU (gpuIndex 0)"
	}
	return fmt.Sprintf("%d GPUs (gpuIndex 0 to %d)", gpus, gpus-1)
}

func list(devices []*fleet.Device, of func(*fleet.Device) string) string {
	var all []string
	for _, d := range devices {
		if s := of(d); !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	return terms.List(all)
}

// metrics are those that some of the devices have, built-in ones first.
func metrics(devices []*fleet.Device) string {
	have := map[string]bool{}
	for _, d := range devices {
		for name := range d.Means().All() {
			have[name] = true
		}
	}
	var names []string
	for name := range have {
		names = append(names, name)
	}
	order := snapshot.MetricNames()
	slices.SortFunc(names, func(a, b string) int {
		return cmp.Or(cmp.Compare(rank(order, a), rank(order, b)), strings.Compare(a, b))
	})
	return cmp.Or(terms.List(names), "none")
}

func rank(order []string, name string) int {
	if i := slices.Index(order, name); i >= 0 {
		return i
	}
	return len(order)
}
