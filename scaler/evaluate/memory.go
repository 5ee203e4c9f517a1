package evaluate

import (
	"time"

	"gpuscaler/scaler/trigger"
	"gpuscaler/scaler/window"
)

// movingMinutes is in how many of the last five minutes memory in use has to move by 1 %
// of the device's memory, or more, to follow a load: a model that is loaded is one step.
const movingMinutes = 3

// worksAbove is the gpu_utilization, in percent, above which a GPU works.
const worksAbove = 5

// flatness says how a replica counts whose memory in use does not follow its load.
type flatness struct {
	// flat is known: for less than five minutes of readings it is not.
	flat bool
	// active: a GPU works now, or that is not known.
	active bool
	// works: some GPU worked in the last five minutes, or that is not known.
	works bool
}

// memoryOf is what the memory of a replica's devices does.
type memoryOf struct {
	judged  bool
	follows []bool // of each device that was read
	any     bool   // some follows
	flat    flatness
}

func isMemory(t *trigger.Trigger) bool {
	return t.Metric.Name == "memory_used_percent" || t.Metric.Name == "memory_used_mib"
}

// mayBeBusy is part's, and of memory that does not follow the load, as in judge: there the
// GPU's last utilization says it. In other scopes memory counts as it is read.
func (r *reader) mayBeBusy(d *part) bool {
	motion := d.device.Motion
	follows := motion.Known && d.owners == 1 && motion.Minutes >= movingMinutes
	if !isMemory(r.t) || follows || isLost(d.device) || !d.device.MayHave(r.t.Metric.Name) {
		return d.mayBeBusy(r.t)
	}
	utilization, ok := d.device.Last("gpu_utilization", settle)
	return !ok || utilization > worksAbove
}

// judge looks at one device whose memory in use was read. Engines reserve memory, and
// loaded models stay: what does not move says nothing of the load.
func (m *memoryOf) judge(t *trigger.Trigger, d *part, begin, now time.Time) {
	if !isMemory(t) {
		return
	}
	if !m.judged {
		m.judged, m.flat = true, flatness{flat: true}
	}
	motion := d.device.Motion
	known := motion.Known && (begin.IsZero() || now.Sub(begin) >= window.Longest)
	follows := known && d.owners == 1 && motion.Minutes >= movingMinutes
	m.follows = append(m.follows, follows)
	m.any = m.any || follows
	if follows {
		return
	}
	if !known || !motion.WorkKnown {
		m.flat.active, m.flat.works = true, true
		m.flat.flat = m.flat.flat && (known || d.owners > 1)
		return
	}
	utilization, _, ok := d.device.Readings().Mean("gpu_utilization", settle)
	m.flat.active = m.flat.active || !ok || utilization > worksAbove
	m.flat.works = m.flat.works || motion.Worked
}

// value is the replica's: of the devices whose memory follows the load, if there are
// any; else the target while a GPU works, so that the replica asks for no more, and 0
// while all are idle.
func (m *memoryOf) value(t *trigger.Trigger, one *PodReading, values []float64) float64 {
	if m.any {
		n := 0
		for i, v := range values {
			if m.follows[i] {
				values[n] = v
				n++
			}
		}
		return t.Aggregation.Apply(values[:n])
	}
	flat := m.flat
	one.memory = &flat
	switch {
	case !m.flat.works:
		one.Reason = t.Metric.Name + " does not move, and no GPU worked for five minutes: counts as 0"
		return 0
	case m.flat.flat:
		one.Reason = t.Metric.Name + " does not move: counts as the target"
	default:
		one.Reason = "not known yet whether " + t.Metric.Name + " moves: counts as the target"
	}
	return t.Target
}
