package evaluate

import (
	"time"

	"gpuscaler/scaler/replicas"
	"gpuscaler/scaler/trigger"
)

// recent takes back growth that only the load from before a young replica asks for. When
// a replica becomes ready, the others have less to do from then on. Their windows, and
// their last readings while their nodes have not reported newer ones, still have the load
// of before: the sum with the new replica's is more than the load has ever been. So the
// count grows as far as the readings of after the last readiness ask for, too.
func (d *Decision) recent(t *trigger.Trigger, w *Workload, r *reader, all []place) {
	if w.Composite != "" || d.Replicas.Desired <= d.kept(w) {
		return
	}
	var sampled time.Time // the oldest reading of those that count
	for i := range d.Pods {
		if p := &d.Pods[i]; p.State == replicas.Counting && (sampled.IsZero() || p.sampled.Before(sampled)) {
			sampled = p.sampled
		}
	}
	since := *d
	since.Pods = append([]PodReading(nil), d.Pods...)
	young := false
	for i := range since.Pods {
		p := &since.Pods[i]
		begin := p.Pod.Begin()
		switch {
		case p.State != replicas.Counting || begin.IsZero():
		case begin.Add(min(t.Window, settle)).After(sampled):
			// Some other's readings are older: it counts as if it were not ready yet.
			p.State, young = replicas.Starting, true
		case sampled.Sub(begin) < t.Window && begin.After(r.cut):
			r.cut, young = begin, true
		}
	}
	if !young {
		return
	}
	if !r.cut.IsZero() {
		since.reread(r, all)
	}
	decided := since.decide(t, w, r.limits)
	if decided.Desired < d.kept(w) { // the two contradict each other
		for i := range since.Pods {
			since.Pods[i].Value = t.Target
		}
		decided = since.decide(t, w, r.limits)
		decided.Reason = replicas.WouldReverse
	}
	if decided.Desired < d.Replicas.Desired {
		decided.Mean = d.Replicas.Mean
		d.Replicas = &decided
	}
}

// reread takes the values that the replicas have without what was read before r.cut.
func (d *Decision) reread(r *reader, all []place) {
	i := 0
	for unit, rest := []place(nil), all; len(rest) > 0; {
		unit, rest = next(rest)
		if first, _ := leader(unit); first.pod.Terminating {
			continue
		}
		var one PodReading
		if err := r.replica(unit, &one); err == nil && one.HasValue {
			d.Pods[i].Value = one.Value
		}
		i++
	}
}

// kept is the replica count that changes nothing.
func (d *Decision) kept(w *Workload) int {
	if w.Status < 0 {
		return len(d.Pods)
	}
	return w.Spec
}

// later is the later one of two moments.
func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}
