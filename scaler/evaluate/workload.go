package evaluate

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/labels"

	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/replicas"
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
	Pod *fleet.Pod
	// Node is the one that it is on; nil where nothing is heard of that.
	Node  *fleet.Node
	State replicas.State
	// Value is the aggregate over the pod's devices, if HasValue.
	Value    float64
	HasValue bool
	// Reason says why there is no value.
	Reason string
	// unheard: of some of what it holds there is no value now and may be one later.
	unheard bool
	until   time.Time // when the first of its values is too old
}

// Fleet is where nodes are known. Nodes are read-only.
type Fleet interface {
	// Own is this scaler's own node; nil if it has none.
	Own() *fleet.Node
	// Node is one by its name; nil if nothing has been heard of it.
	Node(name string) *fleet.Node
	// Nodes are all that have been heard, Unheard the names of the peers that have
	// not told of any yet.
	Nodes() []*fleet.Node
	Unheard() []string
}

// ForWorkload decides for a trigger on the pods of a workload, wherever they are.
// Errors are of type *Error.
func ForWorkload(t *trigger.Trigger, f Fleet, w *Workload, now time.Time, limits Limits) (Decision, error) {
	if age := now.Sub(w.Told); age > limits.AttributionStaleAfter {
		return Decision{}, fail(Unavailable, "%s: nothing heard from the API server for %s, more than %s", w.Name, fleet.Age(age), limits.AttributionStaleAfter)
	}
	d := Decision{}
	gpus := 0 // the most that any pod has
	all := placed(f, w)
	d.Pods = make([]PodReading, 0, len(all))
	d.until(w.Told.Add(limits.AttributionStaleAfter))
	for _, p := range all {
		if d.ends(p.pod) {
			continue
		}
		r, held, err := readPod(t, p, now, limits)
		if err != nil {
			return Decision{}, err
		}
		gpus = max(gpus, held)
		d.Pods = append(d.Pods, r)
		if r.HasValue {
			d.until(r.until)
		}
	}
	if len(d.Pods) == 0 && d.ending > 0 && w.Spec > 0 {
		return Decision{}, fail(Unavailable, "%s: its %d pods are about to end, and those that follow are not there yet", w.Name, d.ending)
	}
	if len(d.Pods) == 0 {
		d.Active = t.AlwaysActive // that there are no pods is known
		return d, nil
	}
	if err := coverage(t, w, &d, gpus); err != nil {
		return Decision{}, err
	}
	d.Replicas = new(decide(t, w, &d, limits.Tolerance))
	d.Value = d.Replicas.Number
	d.Active = t.AlwaysActive || active(t, &d, now)
	return d, nil
}

// Gaps is of how many pods or nodes nothing is known.
func (d *Decision) Gaps() int {
	if d.Replicas != nil {
		return d.Replicas.Missing
	}
	return d.Silent
}

// Activity is whether the decision's workload is active. A pod of which nothing is
// heard may be busy: then inactive is not known.
func (d *Decision) Activity(w *Workload) (bool, error) {
	if d.Active {
		return true, nil
	}
	for _, r := range d.Pods {
		if r.unheard {
			return false, fail(Unavailable, "%s: pod %s may be busy: %s", w.Name, r.Pod.Name, r.Reason)
		}
	}
	return false, nil
}

// coverage says why what is known of the pods is too little.
func coverage(t *trigger.Trigger, w *Workload, d *Decision, gpus int) error {
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
		return fail(Impossible, "metricType: no GPU of the %d pods of %s has %s; they have %s", all, w.Name, t.Metric.Name, metrics(held(d)))
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
func held(d *Decision) (devices []*fleet.Device) {
	for _, r := range d.Pods {
		for _, s := range r.Pod.Shares {
			for _, id := range []string{s.Device, s.GPU} {
				if device := r.Node.Device(id); device != nil {
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
	in.Pods = make([]replicas.Pod, 0, len(d.Pods))
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
