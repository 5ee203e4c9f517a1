package evaluate

import (
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/labels"

	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/replicas"
	"gpuscaler/scaler/terms"
	"gpuscaler/scaler/trigger"
	"gpuscaler/scaler/window"
)

// Queue is what the ready pods behind a Service tell of one metric. Read-only.
type Queue struct {
	// Selector are the labels that the Service's pods have, UIDs its ready pods.
	Selector map[string]string
	UIDs     []string
	// Last is the sum of what those pods told last that could be read, Means are those of
	// the sum over all pods.
	Last  float64
	Means window.Means
	// Heard is when the pod was heard that was heard first of all; zero: none was.
	Heard time.Time
	// Unread says why some of its pods could not be read, each with its name.
	Unread []string
	// Unused says that no series was ever there, and which there are instead; "" otherwise. A
	// series with labels is not there before its first use, or its labels are misspelt.
	Unused string
	// Failure is why nothing is known, of type *Error; nil where something is.
	Failure error
}

// ForQueue decides for a trigger on what waits in front of a workload. q is nil while
// nothing has been read. Errors are of type *Error. With an error, Notices hold, and so
// does Active if true.
func ForQueue(t *trigger.Trigger, q *Queue, f Fleet, w *Workload, now time.Time, limits Limits) (d Decision, err error) {
	d.until(w.Told.Add(limits.AttributionStaleAfter))
	if age := now.Sub(w.Told); age > limits.AttributionStaleAfter {
		return d, fail(Unavailable, "%s: nothing heard from the API server for %s, more than %s", w.Name, fleet.Age(age), limits.AttributionStaleAfter)
	}
	d.noticeSettings(t, w, limits)
	in := replicas.Workload{
		Spec: w.Spec, Status: w.Status, Target: t.Target, Tolerance: w.tolerances(limits),
		PerPod: w.kind(t) != trigger.Value, Composite: w.Composite != "",
	}
	starting := d.waiting(t, f, w, &in, now)
	if w.Status < 0 {
		in.Spec, in.Status = len(in.Pods), len(in.Pods)
	}
	d.Active = t.AlwaysActive || starting
	switch {
	case w.Guess: // anyone can ask for anything; the ScaledObject's author has to have asked for it
		return d, fail(Unavailable, "service: no trigger of %s has this metadata; it may have been edited just now", w.Name)
	case q == nil:
		return d, fail(Unavailable, "service: %s has not been read yet", terms.Quote(t.Service.String()))
	case w.owns(q, f):
		return d, fail(Impossible, "service: %s is the workload's own: at zero replicas nobody is behind it; name the Service of what holds requests in front of it, or use engine metrics", terms.Quote(t.Service.String()))
	case q.Failure != nil:
		return d, q.Failure
	}
	d.Active = d.Active || q.Last > t.Activation
	if q.Unused != "" {
		d.notice(NoSeries, q.Unused)
		if w.Spec != 0 || w.Composite != "" {
			return d, fail(Unavailable, "%s", q.Unused)
		}
		// At zero nothing is lost by a zero; after an error KEDA connects anew, and would not
		// be reached by the first request's activation.
		d.Replicas = new(replicas.DecideTotal(&in, 0))
		return d, nil
	}
	if len(q.Unread) > 0 {
		reasons := q.Unread[:min(len(q.Unread), mostReasons)]
		return d, fail(Unavailable, "service: %s: %d of its %d ready pods cannot be read: %s", terms.Quote(t.Service.String()), len(q.Unread), len(q.UIDs), strings.Join(reasons, "; "))
	}
	if age := now.Sub(q.Heard); age > limits.StaleAfter {
		return d, fail(Unavailable, "service: %s: nothing heard for %s, more than %s", terms.Quote(t.Service.String()), fleet.Age(age), limits.StaleAfter)
	}
	d.until(q.Heard.Add(limits.StaleAfter))
	if reason := w.adjusting(now); reason != "" {
		return d, fail(Unavailable, "%s: %s", w.Name, reason)
	}
	total := q.Means[window.Index(t.Window)]
	d.Active = d.Active || total > t.Activation
	d.Replicas = new(replicas.DecideTotal(&in, total))
	d.Value = d.Replicas.Number
	return d, nil
}

// waiting takes the workload's replicas over into what is decided for, and says whether one of
// them starts.
func (d *Decision) waiting(t *trigger.Trigger, f Fleet, w *Workload, in *replicas.Workload, now time.Time) (starting bool) {
	for unit, rest := []place(nil), placed(f, w); len(rest) > 0; {
		unit, rest = next(rest)
		at, exists := leader(unit)
		if !exists || at.pod.Terminating {
			continue
		}
		in.Pods = append(in.Pods, replicas.Pod{State: replicas.Starting, Ready: at.pod.Ready})
		starting = starting || (!at.pod.WasReady && now.Sub(since(at.pod)) < t.StartupTimeout)
	}
	return starting
}

// owns says whether a Service is in front of the workload's own pods: by what it selects,
// which holds at zero replicas, too, and by whom it has.
func (w *Workload) owns(q *Queue, f Fleet) bool {
	if len(q.Selector) > 0 && w.Selector.Matches(labels.Set(q.Selector)) {
		return true
	}
	for _, at := range placed(f, w) {
		for _, uid := range q.UIDs {
			if uid == at.pod.UID {
				return true
			}
		}
	}
	return false
}

// kind is the HPA's kind of target for a trigger.
func (w *Workload) kind(t *trigger.Trigger) trigger.TargetType {
	switch {
	case w.Composite != "":
		return w.Composite
	case w.TargetType != "":
		return w.TargetType
	}
	return t.TargetType
}
