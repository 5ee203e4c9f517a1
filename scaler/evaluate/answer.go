package evaluate

import (
	"time"
)

// Answer is what KEDA was told last about a trigger.
type Answer struct {
	// Namespace and Name are the ScaledObject's, MetricName the trigger's name in the
	// HPA, Metric what is read.
	Namespace, Name, MetricName, Metric string
	// Target is the trigger's, and Value what was answered, both in the metric's unit.
	Target, Value float64
	Active        bool
	// Replicas are asked for; -1: it is not about a workload's pods.
	Replicas int
	// Of so many pods or nodes, how many there is nothing known of.
	Of, Missing int
	// Flat are the pods whose memory does not follow their load, LeftOut those whose
	// value is missing; both 0 where the answer is not about a workload's pods.
	Flat, LeftOut int
	// Known: it has been answered for a workload's pods at some time.
	Known bool
	// Failed: there was no answer; then only the trigger and At are set.
	Failed bool
	At     time.Time
}

// Coverage is the share of pods or nodes that the answer rests on. ok is false where it
// rests on none.
func (a *Answer) Coverage() (share float64, ok bool) {
	if a.Failed || a.Of == 0 {
		return 0, false
	}
	return 1 - float64(a.Missing)/float64(a.Of), true
}

// Take takes over a decision, or that there is none (nil).
func (a *Answer) Take(d *Decision, at time.Time) {
	a.At, a.Failed = at, d == nil
	a.Value, a.Active, a.Replicas, a.Of, a.Missing = 0, false, -1, 0, 0
	a.Flat, a.LeftOut = 0, 0
	if d == nil {
		return
	}
	a.Value, a.Active = d.Value, d.Active
	a.Of, a.Missing = d.Nodes, d.Silent
	if r := d.Replicas; r != nil {
		a.Known = true
		a.Replicas, a.Of, a.Missing = r.Desired, r.Counting+r.Starting+r.Missing, r.Missing
		a.Flat, a.LeftOut = d.Flat, d.Unread
	}
}
