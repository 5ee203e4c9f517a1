package evaluate

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/replicas"
	"gpuscaler/scaler/terms"
	"gpuscaler/scaler/trigger"
	"gpuscaler/scaler/window"
)

// Limits of a latency, in targets, before replicas are combined. A latency goes vertical
// near saturation: it would ask for many times the replicas that the load needs, and for
// more while these load. Within nearTarget of the target it counts as the target.
const (
	leastLatency = 0.8
	mostLatency  = 2
	nearTarget   = 0.1
)

// EngineKey is how the engine of a pod is read for a trigger.
func EngineKey(t *trigger.Trigger, uid string) fleet.EngineKey {
	return fleet.EngineKey{UID: uid, Engine: t.Engine.Name, Port: t.Engine.Port, Path: t.Engine.Path}
}

// PlacedPod is a pod by its UID, and the name of the node that it is on.
type PlacedPod struct{ UID, Node string }

// EnginePods are the pods of a workload whose engines are read: all, or the leaders of
// groups. They are on a node and have not ended.
func EnginePods(f Fleet, w *Workload) (all []PlacedPod) {
	for unit, rest := []place(nil), placed(f, w); len(rest) > 0; {
		unit, rest = next(rest)
		if at, exists := leader(unit); exists && at.pod.Node != "" && !at.pod.Terminating {
			all = append(all, PlacedPod{at.pod.UID, at.pod.Node})
		}
	}
	return all
}

// enginePod reads the engine of a replica's pod into p and one, and appends its value.
func (r *reader) enginePod(at *place, begin time.Time, p *podPart, one *PodReading) {
	n, pod := at.node, at.pod
	p.gpus = 1 // the engine: it has one, or may have
	p.fresh = !pod.WasReady && r.now.Sub(since(pod)) < soon
	p.missing, p.mayBeBusy = true, true
	var e *fleet.Engine
	if n != nil {
		e = n.Engine(EngineKey(r.t, pod.UID))
	}
	switch {
	case pod.Node == "" && !at.known:
		p.reason, p.waits, p.mayBeBusy = "is on no node yet", true, false
		return
	case n == nil:
		p.reason = fmt.Sprintf("nothing is heard of its node %s", pod.Node)
		return
	case e == nil:
		p.reason = fmt.Sprintf("node %s has not read its engine yet", n.Name)
		return
	case e.Heard.IsZero():
		p.reason = "its engine cannot be read: " + e.Error
		return
	}
	if age := r.now.Sub(e.Heard); age > r.limits.StaleAfter {
		p.reason = fmt.Sprintf("its engine (%s) is not heard for %s: %s", e.Name, fleet.Age(age), strings.TrimSpace(e.Error))
		x := r.engineValue(e, begin)
		p.mayBeBusy = x.reason != "" || x.level > r.t.Activation
		return
	}
	x := r.engineValue(e, begin)
	if p.lacks = x.lacks; x.reason != "" {
		p.reason, p.mayBeBusy = x.reason, !x.lacks
		return
	}
	p.missing, p.mayBeBusy = false, false
	p.read, p.sampled, p.unfilled, p.reason = 1, e.Heard, x.filled, x.without
	one.level = max(one.level, x.level)
	r.values = append(r.values, x.value)
	older(&r.heard, e.Heard)
}

// engineReading is what an engine says for a trigger.
type engineReading struct {
	// value counts; level is compared with the activation threshold.
	value, level float64
	filled       filled
	// reason is why there is no value, or ""; lacks: the engine has no such metric.
	reason string
	lacks  bool
	// without says which part of a saturation the engine does not have, or "".
	without string
}

func (r *reader) engineValue(e *fleet.Engine, begin time.Time) engineReading {
	m := r.t.Metric
	if m.Name == terms.Saturation {
		return r.saturation(e, begin)
	}
	if !e.Has(m.Name) {
		return engineReading{lacks: true, reason: fmt.Sprintf("its engine (%s) has no %s", e.Name, m.Name)}
	}
	name := m.Name
	if terms.IsLatency(m) {
		name = terms.Reading(name, r.t.Engine.Quantile)
	}
	v, filled, ok := r.engineMean(e, name, begin)
	if !ok {
		return engineReading{reason: fmt.Sprintf("its engine (%s) has not been read often enough for %s yet", e.Name, name)}
	}
	x := engineReading{value: v, level: v, filled: filled}
	if terms.IsLatency(m) {
		r.latency(e, &x)
	}
	return x
}

// latency limits one, and tells an engine without requests from one that is stalled.
func (r *reader) latency(e *fleet.Engine, x *engineReading) {
	target := r.t.Target
	if x.value == terms.NoRequest {
		inFlight, known := inFlight(e)
		switch {
		case !known:
			x.reason = fmt.Sprintf("no request of its engine (%s) ended within the window, and it does not say whether there are any", e.Name)
		case inFlight: // a stall: they wait, for longer than can be measured
			x.value, x.level = target, math.Inf(1)
		default:
			x.value, x.level = 0, 0
		}
		return
	}
	if x.value = min(max(x.value, leastLatency*target), mostLatency*target); math.Abs(x.level-target) <= nearTarget*target {
		x.value = target
	}
}

// inFlight says whether an engine had requests when it was read last.
func inFlight(e *fleet.Engine) (some, known bool) {
	for _, name := range []string{"engine_waiting", "engine_running"} {
		if v, _, ok := e.Readings.Mean(name, 0); ok {
			some, known = some || v > 0, true
		}
	}
	return some, known
}

// saturation is the largest of the parts that count and that the engine has.
func (r *reader) saturation(e *fleet.Engine, begin time.Time) engineReading {
	x, s := engineReading{lacks: true}, &r.t.Engine
	var absent []string
	for _, part := range []struct {
		name string
		full float64
	}{{"engine_waiting", s.Waiting}, {"engine_kv_cache_percent", s.KVCache}, {"engine_running", s.Running}} {
		if part.full == 0 {
			continue
		}
		if !e.Has(part.name) {
			absent = append(absent, part.name)
			continue
		}
		x.lacks = false
		v, filled, ok := r.engineMean(e, part.name, begin)
		if !ok {
			x.reason = fmt.Sprintf("its engine (%s) has not been read often enough for %s yet", e.Name, part.name)
			continue
		}
		x.value, x.filled = max(x.value, 100*v/part.full), max(x.filled, filled)
	}
	x.level = x.value
	switch list := strings.Join(absent, ", "); {
	case x.lacks:
		x.reason = fmt.Sprintf("its engine (%s) has no %s, which %s counts", e.Name, list, terms.Saturation)
	case list != "":
		x.without = fmt.Sprintf("%s without %s, which its engine (%s) does not have", terms.Saturation, list, e.Name)
	}
	return x
}

// engineMean is a metric over the trigger's window, as far as that lies after begin, and
// whether there are enough readings for it.
func (r *reader) engineMean(e *fleet.Engine, name string, begin time.Time) (v float64, state filled, ok bool) {
	fits := r.t.Window
	if since := e.Heard.Sub(r.cut); !r.cut.IsZero() && since < fits { // the longest window that fits
		fits = 0
		for _, w := range window.Windows {
			if w <= since && w <= r.t.Window {
				fits = w
			}
		}
	}
	v, covered, ok := e.Readings.Mean(name, fits)
	need := min(fits, settle)
	switch {
	case !ok || covered >= need:
		return v, enough, ok
	case !begin.IsZero() && e.Heard.Sub(begin) < min(r.t.Window, settle):
		return v, tooYoung, true
	}
	return v, restarted, true
}

// engineCoverage says why what is known of the pods' engines is too little for an answer.
func (d *Decision) engineCoverage(t *trigger.Trigger, w *Workload, r *reader) error {
	var lacking, missing int
	var reasons, have, lacks []string
	for i := range d.Pods {
		p := &d.Pods[i]
		switch {
		case p.lacks:
			lacking++
			if e := p.engine(t); e != nil {
				have = appendNew(have, e.Metrics)
				lacks = appendNew(lacks, []string{e.Name})
			}
		case p.State != replicas.Missing || p.waits || p.fresh:
		default:
			missing++
			if missing <= mostReasons {
				reasons = append(reasons, "pod "+p.Pod.Name+": "+p.Reason)
			}
		}
	}
	all := len(d.Pods)
	switch {
	case 2*lacking > all:
		return fail(Impossible, "metricType: the engines (%s) of %d of the %d pods of %s have no %s; they have %s",
			terms.List(lacks), lacking, all, w.Name, t.Metric.Name, terms.List(have))
	case 2*missing <= all:
		return nil
	}
	if missing > len(reasons) {
		reasons = append(reasons, fmt.Sprintf("and %d more", missing-len(reasons)))
	}
	d.Active = t.AlwaysActive || d.known().active(t, r.now)
	return fail(Unavailable, "%s: nothing is known of the engines of %d of its %d pods: %s", w.Name, missing, all, strings.Join(reasons, "; "))
}

func (p *PodReading) engine(t *trigger.Trigger) *fleet.Engine {
	if p.Node == nil {
		return nil
	}
	return p.Node.Engine(EngineKey(t, p.Pod.UID))
}

func appendNew(all, more []string) []string {
	for _, s := range more {
		if !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	return all
}
