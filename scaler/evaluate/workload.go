package evaluate

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/labels"

	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/replicas"
	"gpuscaler/scaler/terms"
	"gpuscaler/scaler/trigger"
)

// Workload is what a ScaledObject scales, as the API server told it. Read-only.
type Workload struct {
	// Name is the ScaledObject's, with its namespace, for people; Namespace is
	// that of the pods.
	Name, Namespace string
	// Selector says which pods of the namespace are its.
	Selector labels.Selector
	// Spec is how many replicas are asked for, Status how many there are; both -1
	// where there is no scale subresource to tell.
	Spec, Status int
	// TargetType is the HPA's kind of target; "" where the ScaledObject does not
	// tell.
	TargetType trigger.TargetType
	// Pods are its pods that have not ended, wherever they are.
	Pods []*fleet.Pod
	// Told is when the API server told all this.
	Told time.Time
}

// Limits are the ages and the tolerance that answers depend on.
type Limits struct {
	// StaleAfter is the age from which a reading is no data.
	StaleAfter time.Duration
	// AttributionStaleAfter is the age from which what the kubelet or the API
	// server told is no data.
	AttributionStaleAfter time.Duration
	// Tolerance is the HPA's: see replicas.DefaultTolerance.
	Tolerance float64
}

// PodReading is one pod's part in a Decision.
type PodReading struct {
	Pod   *fleet.Pod
	State replicas.State
	// Value is the aggregate over the pod's devices, if HasValue.
	Value    float64
	HasValue bool
	// Reason says why there is no value.
	Reason string
	// unheard: of some of what it holds there is no value now and may be one later.
	unheard bool
}

// ForWorkload decides for a trigger on the pods of a workload. Errors are of
// type *Error.
func ForWorkload(t *trigger.Trigger, n *fleet.Node, w *Workload, now time.Time, limits Limits) (Decision, error) {
	if err := attributed(n, w, now, limits); err != nil {
		return Decision{}, err
	}
	d := Decision{}
	gpus := 0 // the most that any pod has
	here, elsewhere := pods(n, w)
	for _, pod := range here {
		if d.ends(pod) {
			continue
		}
		r, held, err := readPod(t, n, pod, now, limits)
		if err != nil {
			return Decision{}, err
		}
		gpus = max(gpus, held)
		d.Pods = append(d.Pods, r)
	}
	for _, pod := range elsewhere {
		if !d.ends(pod) {
			d.Pods = append(d.Pods, unheard(n, pod))
		}
	}
	if len(d.Pods) == 0 && d.ending > 0 && w.Spec > 0 {
		return Decision{}, fail(Unavailable, "%s: its %d pods are about to end, and those that follow are not there yet", w.Name, d.ending)
	}
	if len(d.Pods) == 0 {
		d.Active = t.AlwaysActive // that there are no pods is known
		return d, nil
	}
	if err := coverage(t, n, w, &d, gpus); err != nil {
		return Decision{}, err
	}
	d.Replicas = new(decide(t, w, &d, limits.Tolerance))
	d.Value = d.Replicas.Number
	d.Active = t.AlwaysActive || active(t, &d, now)
	return d, nil
}

// ActiveForWorkload is Active for the pods of a workload. A pod of which nothing
// is heard may be busy: then inactive is not known.
func ActiveForWorkload(t *trigger.Trigger, n *fleet.Node, w *Workload, now time.Time, limits Limits) (bool, error) {
	if t.AlwaysActive {
		return true, nil
	}
	d, err := ForWorkload(t, n, w, now, limits)
	if err != nil || d.Active {
		return d.Active, err
	}
	for _, r := range d.Pods {
		if r.unheard {
			return false, fail(Unavailable, "%s: pod %s may be busy: %s", w.Name, r.Pod.Name, r.Reason)
		}
	}
	return false, nil
}

// attributed says why it is not known which pods hold what.
func attributed(n *fleet.Node, w *Workload, now time.Time, limits Limits) error {
	if age := now.Sub(w.Told); age > limits.AttributionStaleAfter {
		return fail(Unavailable, "%s: nothing heard from the API server for %s, more than %s", w.Name, fleet.Age(age), limits.AttributionStaleAfter)
	}
	if !n.PodsKnown {
		return fail(Unavailable, "node %s: its pods are not known yet from the API server", n.Name)
	}
	if n.Allocated.IsZero() {
		return fail(Unavailable, "node %s: nothing heard yet from the reader of the kubelet (scaler podresources), which knows the GPUs of each pod; without it only scope: node is possible", n.Name)
	}
	if age := now.Sub(n.Allocated); age > limits.AttributionStaleAfter {
		return fail(Unavailable, "node %s: nothing heard from the kubelet for %s, more than %s", n.Name, fleet.Age(age), limits.AttributionStaleAfter)
	}
	return nil
}

// ends says whether a pod is terminating, and notes it.
func (d *Decision) ends(pod *fleet.Pod) bool {
	if pod.Terminating {
		d.ending++
	}
	if pod.Terminating && pod.Ready {
		d.terminating++
	}
	return pod.Terminating
}

// pods are those of the workload: the node's, of which it knows best, and those
// that it does not know.
func pods(n *fleet.Node, w *Workload) (here, elsewhere []*fleet.Pod) {
	for _, p := range n.Pods {
		if p.Namespace == w.Namespace && w.Selector.Matches(labels.Set(p.Labels)) {
			here = append(here, p)
		}
	}
	for _, p := range w.Pods {
		known := func(here *fleet.Pod) bool { return here.UID == p.UID }
		if !n.Had(p.UID) && !slices.ContainsFunc(here, known) {
			elsewhere = append(elsewhere, p)
		}
	}
	return here, elsewhere
}

// unheard is a pod that the node does not know.
func unheard(n *fleet.Node, pod *fleet.Pod) PodReading {
	// One without a node holds nothing that could be busy.
	r := PodReading{Pod: pod, State: replicas.Missing, unheard: pod.Node != ""}
	if !pod.WasReady {
		r.State = replicas.Starting
	}
	switch pod.Node {
	case "":
		r.Reason = "is on no node yet"
	case n.Name:
		r.Reason = fmt.Sprintf("node %s has not told of it yet", n.Name)
	default:
		r.Reason = fmt.Sprintf("node %s does not hear of its node %s", n.Name, pod.Node)
	}
	return r
}

// readPod reads one pod, and says how many GPUs it holds.
func readPod(t *trigger.Trigger, n *fleet.Node, pod *fleet.Pod, now time.Time, limits Limits) (r PodReading, gpus int, err error) {
	r = PodReading{Pod: pod, State: replicas.Missing}
	if !pod.WasReady {
		r.State = replicas.Starting
	}
	parts := partsOf(t, n, pod)
	if len(pod.Unknown) > 0 {
		r.Reason, r.unheard = fmt.Sprintf("holds %s, which nobody reports", terms.List(pod.Unknown)), true
		if len(parts) == 0 || t.GPUIndex >= 0 { // which would be counted wrongly
			return r, len(parts), nil
		}
	}
	if len(parts) == 0 {
		r.Reason = "holds no GPU"
		// So the kubelet said, if it has spoken since the pod is there.
		r.unheard = now.Sub(n.Allocated) > limits.StaleAfter || n.Allocated.Before(pod.Started)
		return r, 0, nil
	}
	gpus = len(parts)
	if t.GPUIndex >= gpus {
		return r, 0, fail(Invalid, "gpuIndex: %d is beyond the GPUs of pod %s; it has %s", t.GPUIndex, pod.Name, count(gpus))
	}
	if t.GPUIndex >= 0 {
		parts = parts[t.GPUIndex : t.GPUIndex+1]
	}
	values := make([]float64, 0, len(parts))
	for _, p := range parts {
		v, reason := p.read(t, now, limits.StaleAfter)
		if reason != "" {
			r.Reason, r.unheard = reason, r.unheard || p.device.MayHave(t.Metric.Name)
			continue
		}
		values = append(values, v)
	}
	if len(values) == 0 {
		return r, gpus, nil
	}
	r.Value, r.HasValue = t.Aggregation.Apply(values), true
	if r.State == replicas.Missing {
		r.State = replicas.Counting
	}
	if r.Value < 0 {
		return r, gpus, fail(Impossible, "metricType: %s of pod %s stands at %v, and KEDA would read a negative value as 0", t.Metric.Name, pod.Name, r.Value)
	}
	return r, gpus, nil
}

// part is one device of a pod, and how many pods it is shared by.
type part struct {
	device  *fleet.Device
	holders int
}

// partsOf are the devices of a pod that the trigger is about, each once: for an
// instance without the metric its GPU, which then is shared by all who hold a
// piece of it.
func partsOf(t *trigger.Trigger, n *fleet.Node, pod *fleet.Pod) (parts []part) {
	for _, s := range pod.Shares {
		d := n.Device(s.Device)
		if d == nil || (t.GPUModel != "" && !like(d, t.GPUModel)) {
			continue
		}
		p := part{d, s.Holders}
		if s.GPU != s.Device && !d.Has(t.Metric.Name) {
			if gpu := n.Device(s.GPU); gpu != nil && gpu.Has(t.Metric.Name) {
				p = part{gpu, s.GPUHolders}
			}
		}
		if !slices.ContainsFunc(parts, func(have part) bool { return have.device == p.device }) {
			parts = append(parts, p)
		}
	}
	return parts
}

// read is the pod's part of the metric, or why there is none now.
func (p part) read(t *trigger.Trigger, now time.Time, staleAfter time.Duration) (v float64, reason string) {
	if age := now.Sub(p.device.Heard); age > staleAfter {
		return 0, fmt.Sprintf("%s: nothing heard for %s, more than %s", p.device, fleet.Age(age), staleAfter)
	}
	v, ok := p.device.Value(t.Metric.Name, t.Window)
	if !ok {
		if reason, failed := p.device.Failure(t.Metric.Name); failed {
			return 0, fmt.Sprintf("%s: %s", p.device, reason)
		}
		return 0, fmt.Sprintf("%s has no %s", p.device, t.Metric.Name)
	}
	if t.Metric.Divides() {
		v /= float64(p.holders)
	}
	return v, ""
}

// coverage says why what is known of the pods is too little.
func coverage(t *trigger.Trigger, n *fleet.Node, w *Workload, d *Decision, gpus int) error {
	var missing, none int
	var reasons []string
	for _, r := range d.Pods {
		if r.State != replicas.Missing {
			continue
		}
		missing++
		if !r.unheard {
			none++
		}
		if missing <= 4 {
			reasons = append(reasons, "pod "+r.Pod.Name+": "+r.Reason)
		}
	}
	all := len(d.Pods)
	if none == all {
		if gpus == 0 {
			return fail(Impossible, "%s: none of its %d pods holds a GPU%s", w.Name, all, ofModel(t))
		}
		return fail(Impossible, "metricType: no GPU of the %d pods of %s has %s; they have %s", all, w.Name, t.Metric.Name, metrics(held(n, d)))
	}
	if 2*missing <= all {
		return nil
	}
	if missing > len(reasons) {
		reasons = append(reasons, fmt.Sprintf("and %d more", missing-len(reasons)))
	}
	return fail(Unavailable, "%s: nothing is known of %d of its %d pods: %s", w.Name, missing, all, strings.Join(reasons, "; "))
}

func ofModel(t *trigger.Trigger) string {
	if t.GPUModel == "" {
		return ""
	}
	return fmt.Sprintf(" with %q in its name", t.GPUModel)
}

// held are the devices that the pods of a decision hold.
func held(n *fleet.Node, d *Decision) (devices []*fleet.Device) {
	for _, r := range d.Pods {
		for _, s := range r.Pod.Shares {
			for _, id := range []string{s.Device, s.GPU} {
				if device := n.Device(id); device != nil {
					devices = append(devices, device)
				}
			}
		}
	}
	return devices
}

// decide asks for what the HPA would do with these pods.
func decide(t *trigger.Trigger, w *Workload, d *Decision, tolerance float64) replicas.Decision {
	in := replicas.Workload{
		Spec: w.Spec, Status: w.Status, Target: t.Target, Tolerance: tolerance,
		PerPod: w.TargetType != trigger.Value, Terminating: d.terminating,
	}
	if w.TargetType == "" {
		in.PerPod = t.TargetType != trigger.Value
	}
	for _, r := range d.Pods {
		in.Pods = append(in.Pods, replicas.Pod{State: r.State, Ready: r.Pod.Ready, Value: r.Value})
	}
	if w.Status < 0 {
		in.Spec, in.Status = len(in.Pods), len(in.Pods)
	}
	return replicas.Decide(&in)
}

// active says whether some pod is busy, or loads.
func active(t *trigger.Trigger, d *Decision, now time.Time) bool {
	return slices.ContainsFunc(d.Pods, func(r PodReading) bool {
		return (r.HasValue && r.Value > t.Activation) || (r.State == replicas.Starting && now.Sub(since(r.Pod)) < t.StartupTimeout)
	})
}

// since is when a pod began to start: it may have waited for its node for long.
func since(p *fleet.Pod) time.Time {
	if p.Started.IsZero() {
		return p.Created
	}
	return p.Started
}
