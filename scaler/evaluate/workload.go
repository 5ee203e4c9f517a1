package evaluate

import (
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/labels"

	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/replicas"
	"gpuscaler/scaler/terms"
	"gpuscaler/scaler/trigger"
)

// Workload is what a ScaledObject scales, as the API server has it. Read-only.
type Workload struct {
	// Name is the ScaledObject's, with its namespace, for people; Namespace is
	// that of the pods.
	Name, Namespace string
	// Selector says which pods of the namespace are its.
	Selector labels.Selector
	// Sets are the names of the LeaderWorkerSets that the pods belong to. With any, a
	// replica is a group of pods.
	Sets []string
	// Spec is how many replicas are asked for, Status how many there are; both -1
	// where there is no scale subresource.
	Spec, Status int
	// TargetType is the HPA's kind of target; "" where the ScaledObject does not
	// say.
	TargetType trigger.TargetType
	// ScaleUpTolerance and ScaleDownTolerance are those of the ScaledObject's behavior;
	// nil: Limits.Tolerance applies.
	ScaleUpTolerance, ScaleDownTolerance *float64
	// Composite is the target type of the ScaledObject's scalingModifiers; "" where it
	// has no formula.
	Composite trigger.TargetType
	// Guess: none of the ScaledObject's triggers has the metadata that TargetType is for; it
	// may have been edited just now.
	Guess bool
	// NothingWakes: it may be scaled to zero, and all of its triggers need a running
	// pod to become active.
	NothingWakes bool
	// Pods are its pods that have not ended, wherever they are.
	Pods []*fleet.Pod
	// Told is when the API server answered all this.
	Told time.Time
	// Edited is when the ScaledObject's triggers were edited last; zero: long ago, or not
	// known.
	Edited time.Time
	// HPA is what is known of KEDA's HPA for a while after an edit.
	HPA HPA
}

// HPA is what is known of KEDA's HPA after an edit of its ScaledObject. It is comparable.
type HPA struct {
	// Known: it is read. Else there is no permission, or no need.
	Known bool
	// Adjusted is since when it has been seen to have what the trigger asks for; zero: it
	// has something else, which Has says for people.
	Adjusted time.Time
	Has      string
}

const (
	// adjusts is how long KEDA takes to change its HPA after an edit, as a rule, where the
	// HPA cannot be read.
	adjusts = 5 * time.Second
	// looks is how long the HPA controller goes on with a copy of the HPA that it has
	// taken before: it asks for the metrics right after.
	looks = 2 * time.Second
)

// adjusting says why KEDA's HPA may not have the target that a number would be for, or "".
// A sum that the HPA takes for a Value multiplies the replicas.
func (w *Workload) adjusting(now time.Time) string {
	age := now.Sub(w.Edited)
	switch {
	case w.Edited.IsZero():
	case w.HPA.Known && w.HPA.Adjusted.IsZero():
		return fmt.Sprintf("its triggers were edited %s ago, and KEDA has not changed its HPA yet: that has %s; answers follow in a moment", fleet.Age(age), w.HPA.Has)
	case w.HPA.Known && now.Sub(w.HPA.Adjusted) < looks, !w.HPA.Known && age < adjusts:
		return fmt.Sprintf("its triggers were edited %s ago, and KEDA may not have changed its HPA yet; answers follow in a moment", fleet.Age(age))
	}
	return ""
}

// Limits are the ages and the tolerance that answers depend on.
type Limits struct {
	// StaleAfter is the age from which a reading counts as missing.
	StaleAfter time.Duration
	// AttributionStaleAfter is the age from which what the kubelet or the API
	// server answered counts as missing.
	AttributionStaleAfter time.Duration
	// Tolerance is the HPA's: see replicas.DefaultTolerance.
	Tolerance float64
}

// tolerances are the ScaledObject's where it has any, else the HPA's own.
func (w *Workload) tolerances(limits Limits) replicas.Tolerances {
	t := replicas.Both(limits.Tolerance)
	if w.ScaleUpTolerance != nil {
		t.Up = *w.ScaleUpTolerance
	}
	if w.ScaleDownTolerance != nil {
		t.Down = *w.ScaleDownTolerance
	}
	return t
}

// has says whether a pod of the workload's cluster is one of its pods.
func (w *Workload) has(p *fleet.Pod) bool {
	return p.Namespace == w.Namespace && (w.Selector.Matches(labels.Set(p.Labels)) || (p.Group != "" && slices.Contains(w.Sets, p.Set())))
}

// Fleet is where nodes are known. Nodes are read-only.
type Fleet interface {
	// Own is this scaler's own node; nil if it has none.
	Own() *fleet.Node
	// Node is one by its name; nil if it was never received.
	Node(name string) *fleet.Node
	// Nodes are all that were received, Unheard the names of the peers that no node
	// was received from yet.
	Nodes() []*fleet.Node
	Unheard() []string
}

// ForWorkload decides for a trigger on the pods of a workload, wherever they are.
// Errors are of type *Error. With an error, Notices hold, and so does Active if true:
// some pod is known to be active.
func ForWorkload(t *trigger.Trigger, f Fleet, w *Workload, now time.Time, limits Limits) (d Decision, err error) {
	d.until(w.Told.Add(limits.AttributionStaleAfter))
	if age := now.Sub(w.Told); age > limits.AttributionStaleAfter {
		return d, fail(Unavailable, "%s: nothing heard from the API server for %s, more than %s", w.Name, fleet.Age(age), limits.AttributionStaleAfter)
	}
	d.noticeSettings(t, w, limits)
	// A copy, because what a reader has is on the heap: the caller's stays off it.
	r := reader{t: new(*t), now: now, limits: limits, engines: terms.IsEngine(t.Metric)}
	all := placed(f, w)
	d.Pods = make([]PodReading, 0, len(all))
	for unit, rest := []place(nil), all; len(rest) > 0; {
		unit, rest = next(rest)
		if d.ends(unit) {
			continue
		}
		d.Pods = append(d.Pods, PodReading{})
		if err := r.replica(unit, &d.Pods[len(d.Pods)-1]); err != nil {
			return d, err
		}
	}
	if !r.heard.IsZero() {
		d.until(r.heard.Add(limits.StaleAfter))
	}
	if !r.allocated.IsZero() {
		d.until(r.allocated.Add(limits.AttributionStaleAfter))
	}
	if !r.engines {
		d.noticeShared(all)
	}
	if len(d.Pods) == 0 {
		return d, d.none(t, w)
	}
	d.Active = t.AlwaysActive || d.active(t, now)
	if r.engines {
		err = d.engineCoverage(t, w, &r)
	} else {
		err = d.coverage(t, w, &r)
	}
	if err != nil {
		return d, err
	}
	if reason := w.adjusting(now); reason != "" {
		return d, fail(Unavailable, "%s: %s", w.Name, reason)
	}
	d.Replicas = new(d.decide(t, w, limits))
	if w.Composite != "" && d.Replicas.Counting == 0 { // the formula would take it for idle
		d.Replicas = nil
		return d, fail(Unavailable, "%s: no pod is ready and has a value for the formula of its scalingModifiers yet", w.Name)
	}
	d.recent(t, w, &r, all)
	d.Value = d.Replicas.Number
	d.noticeFlat(t)
	return d, nil
}

// none is the answer without any pod that counts: zero is only right where no replica
// is asked for.
func (d *Decision) none(t *trigger.Trigger, w *Workload) error {
	d.Active = t.AlwaysActive
	switch {
	case w.Spec == 0:
		return nil
	case d.ending > 0:
		return fail(Unavailable, "%s: its %d pods are about to end, and those that follow are not there yet", w.Name, d.ending)
	case w.Spec < 0:
		return fail(Unavailable, "%s: no pod has the labels %s, and the target has no scale subresource that says how many replicas are asked for; check podSelector", w.Name, w.Selector)
	case t.PodSelector != "":
		return fail(Unavailable, "%s: %d replicas are asked for, and no pod has the labels of podSelector %s; check it, and whether pods can be created", w.Name, w.Spec, w.Selector)
	}
	return fail(Unavailable, "%s: %d replicas are asked for, and there is no pod; see the events of its ReplicaSet (quota, admission)", w.Name, w.Spec)
}

// Gaps is of how many pods or nodes the state is missing.
func (d *Decision) Gaps() int {
	if d.Replicas != nil {
		return d.Replicas.Missing
	}
	return d.Silent
}

// decide asks for what the HPA would do with these pods.
func (d *Decision) decide(t *trigger.Trigger, w *Workload, limits Limits) replicas.Decision {
	in := replicas.Workload{
		Spec: w.Spec, Status: w.Status, Target: t.Target, Tolerance: w.tolerances(limits),
		PerPod: w.kind(t) != trigger.Value, Terminating: d.terminating, Composite: w.Composite != "",
	}
	in.Pods = make([]replicas.Pod, 0, len(d.Pods))
	for i := range d.Pods {
		r := &d.Pods[i]
		if r.without {
			continue
		}
		state := r.State
		if in.Composite && state == replicas.Missing && r.begun {
			state = replicas.Starting // not read yet: the mean of the others would ask for more for each new pod
		}
		in.Pods = append(in.Pods, replicas.Pod{State: state, Ready: r.Pod.Ready, Value: r.Value})
	}
	if w.Status < 0 {
		in.Spec, in.Status = len(in.Pods), len(in.Pods)
	}
	return replicas.Decide(&in)
}

// active says whether some replica is busy, or starts, or may be busy.
func (d *Decision) active(t *trigger.Trigger, now time.Time) bool {
	return slices.ContainsFunc(d.Pods, func(r PodReading) bool {
		switch {
		case r.without:
			return false
		case r.starting && now.Sub(r.started) < t.StartupTimeout:
			return true
		case r.memory != nil:
			return r.memory.active || r.mayBeBusy
		}
		return r.mayBeBusy || (r.HasValue && r.level > t.Activation)
	})
}

// since is when a pod began to start: it may have waited for its node for long.
func since(p *fleet.Pod) time.Time {
	if p.Started.IsZero() {
		return p.Created
	}
	return p.Started
}
