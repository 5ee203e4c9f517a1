package evaluate

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/replicas"
	"gpuscaler/scaler/terms"
	"gpuscaler/scaler/trigger"
)

// PodReading is one replica's part in a Decision: that of a pod, or of a group of pods.
type PodReading struct {
	// Pod is the pod, of a group its leader; of a group without one some member.
	Pod *fleet.Pod
	// Node is the one that it is on; nil where it was never received.
	Node  *fleet.Node
	State replicas.State
	// Value is the aggregate over the replica's devices, or of its engine, if HasValue.
	Value    float64
	HasValue bool
	// Reason says why there is no value, or why some of it is left out.
	Reason string

	level     float64 // what is compared with the activation threshold
	group     bool
	gpus      int       // how many GPUs it has
	without   bool      // it is known to have no GPU, where others do
	lacks     bool      // no GPU of it has the metric
	starting  bool      // it was never ready, or a pod of the group was not
	started   time.Time // then since when, the last one
	fresh     bool      // it started a moment ago: that nothing is known is no fault
	begun     bool      // it began within the time in which its node reports it and its window fills
	waits     bool      // a pod of it, which may get GPUs, has no node yet, or is replaced
	mayBeBusy bool      // it is not read now, and was busy last, or that is not known
	never     *never    // why it will never be read, or nil
	memory    *flatness // of memory_used_*, where it does not count as it is read
	sampled   time.Time // the oldest of its readings; zero without any
}

// never is why a pod's GPUs will never be read.
type never struct {
	sharer string // what gives it to the pod
	reason string
}

const (
	// initialization is the HPA's: within it a pod counts once it is ready, for one
	// window (--horizontal-pod-autoscaler-cpu-initialization-period).
	initialization = 5 * time.Minute
	// initialReadiness is the HPA's, too: a pod that is not ready since within that time
	// of its start counts as never ready, even if it was for a moment
	// (--horizontal-pod-autoscaler-initial-readiness-delay).
	initialReadiness = 30 * time.Second
	// settle is how much data since its readiness a pod's value needs, or its whole
	// window, where that is shorter.
	settle = 15 * time.Second
)

// reader reads replicas for one decision.
type reader struct {
	t      *trigger.Trigger
	now    time.Time
	limits Limits
	values []float64
	cut    time.Time // no value's window reaches back beyond it; see recent
	// engines: the metric is one of the pods' engines, and of no device.
	engines bool
	// heard and allocated are the oldest reading, and the oldest answer of a kubelet, that a
	// value rests on.
	heard, allocated time.Time
}

// older keeps the earlier one of two moments, of which the first may be none.
func older(oldest *time.Time, at time.Time) {
	if oldest.IsZero() || at.Before(*oldest) {
		*oldest = at
	}
}

// next splits the pods of the first replica off: one, or those of a group.
func next(all []place) (unit, rest []place) {
	n := 1
	for group := all[0].pod.Group; group != "" && n < len(all) && all[n].pod.Group == group; {
		n++
	}
	return all[:n], all[n:]
}

// leader is the pod whose readiness is the replica's; false where it does not exist.
func leader(unit []place) (place, bool) {
	for _, p := range unit {
		if p.pod.Leader || p.pod.Group == "" {
			return p, true
		}
	}
	return unit[0], false
}

// ends says whether a replica is terminating, and counts it.
func (d *Decision) ends(unit []place) bool {
	first, _ := leader(unit)
	if first.pod.Terminating {
		d.ending++
	}
	if first.pod.Terminating && first.pod.Ready {
		d.terminating++
	}
	return first.pod.Terminating
}

// replica reads a pod or a group into one. An error is one of the trigger's settings.
func (r *reader) replica(unit []place, one *PodReading) error {
	first, exists := leader(unit)
	*one = PodReading{Pod: first.pod, Node: first.node, group: first.pod.Group != ""}
	begin := first.pod.Begin()
	one.begun = !begin.IsZero() && r.now.Sub(begin) < soon+settle
	r.values = r.values[:0]
	var memory memoryOf
	missing, unfilled, sampled := "", enough, time.Time{}
	for i := range unit {
		at := &unit[i]
		if !at.pod.WasReady && !at.pod.Terminating {
			if one.starting = true; since(at.pod).After(one.started) {
				one.started = since(at.pod)
			}
		}
		if at.pod.Terminating { // a worker that is replaced
			missing = fmt.Sprintf("pod %s: is terminating", at.pod.Name)
			one.Reason, one.waits = missing, true
			one.gpus += len(at.pod.Shares)
			continue
		}
		var p podPart
		switch {
		case !r.engines:
			if err := r.pod(at, begin, &memory, &p); err != nil {
				return err
			}
		case at.pod == first.pod:
			r.enginePod(at, begin, &p, one)
		default:
			continue // a group's engine is its leader's
		}
		one.gpus += p.gpus
		one.fresh = one.fresh || p.fresh
		one.waits = one.waits || p.waits
		one.mayBeBusy = one.mayBeBusy || p.mayBeBusy
		if p.never != nil {
			one.never = p.never
		}
		one.lacks = one.lacks || p.lacks
		unfilled = max(unfilled, p.unfilled)
		if p.read > 0 && (sampled.IsZero() || p.sampled.Before(sampled)) {
			sampled = p.sampled
		}
		if p.reason != "" && (one.Reason == "" || p.missing) {
			one.Reason = p.reason
			if one.group {
				one.Reason = fmt.Sprintf("pod %s: %s", at.pod.Name, p.reason)
			}
		}
		if p.missing {
			missing = one.Reason
		}
	}
	if len(r.values) > 0 {
		if one.Value, one.HasValue = r.value(one, &memory), true; !r.engines {
			one.level = one.Value
		}
		if one.Value < 0 {
			return fail(Impossible, "metricType: %s of pod %s stands at %v, and KEDA would read a negative value as 0", r.t.Metric.Name, first.pod.Name, one.Value)
		}
	}
	one.sampled = sampled
	one.lacks = one.lacks && !one.HasValue && !one.mayBeBusy
	if !exists {
		one.starting, one.started = true, since(first.pod)
	}
	plain := len(r.values) == 0 && one.gpus == 0 && !one.mayBeBusy && missing == "" // it is known to have no GPU
	switch {
	case !exists || (first.pod.Pending && !first.pod.WasReady && (one.group || !plain)):
		one.State = replicas.Starting
	case r.engines && (!first.pod.WasReady || len(r.values) == 0 && one.begun && !one.lacks):
		one.State = replicas.Starting // its engine answers once it has loaded
	case missing != "" || len(r.values) == 0:
		one.State = replicas.Missing
		one.Reason = cmp.Or(missing, one.Reason)
	case unready(first.pod, sampled, r.now, min(r.t.Window, settle)):
		one.State = replicas.Starting
	case unfilled == tooYoung || young(begin, sampled, min(r.t.Window, settle)):
		one.State, one.Reason = replicas.Starting, "was ready for less than "+min(r.t.Window, settle).String()+" when it was read"
	case unfilled == restarted:
		one.State = replicas.Missing
		one.Reason = fmt.Sprintf("readings of %s are needed, and its scaler has not had that many since it started", min(r.t.Window, settle))
		one.mayBeBusy = true
	default:
		one.State = replicas.Counting
	}
	if one.State == replicas.Starting && first.pod.WasReady && !one.HasValue {
		one.mayBeBusy = true // a young pod whose load is not known yet
	}
	if one.State == replicas.Starting {
		one.memory = nil
	}
	return nil
}

// young says whether a pod began so recently that its last reading has less than the
// needed data since then.
func young(begin, sampled time.Time, needed time.Duration) bool {
	return !begin.IsZero() && sampled.Before(begin.Add(needed))
}

// unready is which pods count as not ready, as groupPods of the HPA has it for CPU.
// Kubernetes says when readiness changed last, in whole seconds.
func unready(p *fleet.Pod, sampled, now time.Time, window time.Duration) bool {
	switch {
	case !p.WasReady:
		return true
	case p.Started.IsZero():
		return false
	case now.Before(p.Started.Add(initialization)):
		return !p.Ready || sampled.Before(p.Changed.Add(window))
	}
	return !p.Ready && !p.Changed.IsZero() && p.Changed.Before(p.Started.Add(initialReadiness))
}

// value is the aggregate of what was read.
func (r *reader) value(one *PodReading, memory *memoryOf) float64 {
	if !memory.judged {
		return r.t.Aggregation.Apply(r.values)
	}
	return memory.value(r.t, one, r.values)
}

// noGPU is the reason of a pod that has none.
const noGPU = "holds no GPU"

// podPart is what one pod adds to its replica.
type podPart struct {
	gpus, read int
	missing    bool // it has GPUs, or may have, and no value
	lacks      bool // a GPU of it has no such metric
	reason     string
	fresh      bool
	waits      bool
	unfilled   filled
	mayBeBusy  bool
	never      *never
	sampled    time.Time // of its oldest reading
}

// pod reads one pod into p, and appends its values.
func (r *reader) pod(at *place, begin time.Time, memory *memoryOf, p *podPart) error {
	n, pod := at.node, at.pod
	p.fresh = !pod.WasReady && r.now.Sub(since(pod)) < soon
	if pod.Plain && len(pod.Shares)+len(pod.Unknown) == 0 {
		p.reason = noGPU
		return nil
	}
	if p.reason = at.unattributed(r.now, r.limits); p.reason != "" {
		p.missing = true
		p.waits = pod.Node == "" && !at.known
		p.mayBeBusy = !p.waits // one without a node has nothing that could be busy
		return nil
	}
	var room [8]part // of most nodes
	parts := r.parts(n, pod, room[:0])
	if len(pod.Unknown) > 0 {
		p.unknown(n, pod)
		if p.mayBeBusy && (len(parts) == 0 || r.t.GPUIndex >= 0) || len(parts) == 0 { // would be counted wrongly
			p.missing = true
			return nil
		}
	}
	if len(parts) == 0 {
		p.reason = noGPU
		if r.t.Container != "" && len(pod.Shares) > 0 {
			p.reason = fmt.Sprintf("its container %q has no GPU; those that have are %s", r.t.Container, containers(pod))
		}
		// So the kubelet answered, if it has since the pod exists.
		p.mayBeBusy = r.now.Sub(n.Allocated) > r.limits.StaleAfter || n.Allocated.Before(pod.Started)
		p.missing = p.mayBeBusy
		return nil
	}
	p.gpus = len(parts)
	if r.t.GPUIndex >= p.gpus {
		return fail(Invalid, "gpuIndex: %d is beyond the GPUs of pod %s; it has %s", r.t.GPUIndex, pod.Name, count(p.gpus))
	}
	if r.t.GPUIndex >= 0 {
		parts = parts[r.t.GPUIndex : r.t.GPUIndex+1]
	}
	for i := range parts {
		r.device(n, pod, &parts[i], begin, p, memory)
	}
	p.missing = p.read == 0
	if p.read > 0 {
		older(&r.heard, p.sampled)
		older(&r.allocated, n.Allocated)
	}
	return nil
}

// device reads one device of a pod.
func (r *reader) device(n *fleet.Node, pod *fleet.Pod, d *part, begin time.Time, p *podPart, memory *memoryOf) {
	v, state, reason := d.read(r.t, n, pod, later(begin, r.cut), r.now, r.limits.StaleAfter)
	if reason != "" {
		p.reason = fmt.Sprintf("node %s: %s", n.Name, reason)
		p.mayBeBusy = p.mayBeBusy || r.mayBeBusy(d)
		p.lacks = p.lacks || !d.device.MayHave(r.t.Metric.Name)
		return
	}
	r.values = append(r.values, v)
	p.unfilled = max(p.unfilled, state)
	if p.read == 0 || d.device.Heard.Before(p.sampled) {
		p.sampled = d.device.Heard
	}
	p.read++
	memory.judge(r.t, d, begin, r.now)
}

func containers(pod *fleet.Pod) string {
	var names []string
	for _, s := range pod.Shares {
		for _, c := range s.Containers {
			if !slices.Contains(names, c) {
				names = append(names, c)
			}
		}
	}
	slices.Sort(names)
	return terms.List(names)
}
