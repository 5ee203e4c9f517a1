package fleet

import (
	"math"
	"time"

	"gpuscaler/shared/snapshot"
)

// Integrated are the metrics whose integral over time is kept, in the order of
// Totals: joules of power_draw, seconds times the metric's own unit of the others.
var Integrated = [...]string{
	"power_draw", "gpu_utilization", "memory_utilization", "memory_used_mib", "sm_activity", "tensor_activity", "dram_activity",
}

// Power is the position of power_draw in Integrated, Utilization that of
// gpu_utilization.
const (
	Power       = 0
	Utilization = 1
)

// Fine is how many units of Totals make one: a power of two, so that a float64 has
// all of their sums exactly, up to 2^53 of them (8.6e9 J).
const Fine = 1 << 20

// Totals are the integrals of Integrated since the device was found, in units of
// 1/Fine. They only grow.
type Totals [len(Integrated)]int64

// total is one integral that grows.
type total struct {
	known   bool
	at      time.Duration
	sum     int64
	rest    float64 // that is too little for a unit yet
	assumed float64 // what readings added beside a counter that has not advanced yet
	blind   int64   // of sum, what the counter grew by over gaps

	// The counter, where there is one.
	counter   float64 // its last reading
	counterAt time.Duration
	counted   bool // there is one
	counts    bool // it has advanced: then it alone is right
}

// add takes a reading of the metric at t, which stands for the time since the one
// before. Over a gap nothing is known of it.
func (s *total) add(t time.Duration, v float64, gap time.Duration) {
	if d := t - s.at; s.known && d > 0 && d <= gap && v > 0 {
		s.grow(v * d.Seconds())
		s.assumed += v * d.Seconds()
	}
	s.known, s.at = true, t
}

// count takes a reading of the counter that has the integral itself. It spans gaps;
// one that began anew has what it says since then, and one that is higher than
// the metric's most allows has begun anew, too.
func (s *total) count(t time.Duration, v float64, m *snapshot.Metric, gap time.Duration) {
	before, first, span := s.counter, !s.counted, t-s.counterAt
	s.counter, s.counterAt, s.counted = v, t, true
	grown := v - before
	switch {
	case first:
		s.assumed = 0
		return
	case grown < 0:
		grown = v
	}
	if grown <= 0 || grown > m.Max*m.Counter.PerUnitSecond*max(span.Seconds(), 1) {
		return
	}
	grown /= m.Counter.PerUnitSecond
	s.known = true
	if !s.counts {
		s.counts = true
		grown -= min(grown, s.assumed) // is in there already
	}
	was := s.sum
	s.grow(grown)
	if span > gap {
		s.blind += s.sum - was
	}
}

func (s *total) grow(by float64) {
	fine := by*Fine + s.rest
	whole := math.Floor(fine)
	if whole > math.MaxInt64/2-float64(s.sum) { // a writer that exaggerates, or years
		return
	}
	s.sum += int64(whole)
	s.rest = fine - whole
}

// integrate adds a reading, taken t after the start, to the device's totals.
func (d *device) integrate(in *snapshot.Device, t, gap time.Duration) {
	if in.Error != "" { // its counters may go on
		return
	}
	for i, name := range Integrated {
		s := &d.totals[i]
		m, _ := snapshot.Lookup(name)
		if m.Counter != nil {
			c, ok := in.Counters[m.Counter.Name]
			if ok {
				if s.count(t, c, &m, gap); s.counts {
					s.at = t // where readings go on if it ends
					continue
				}
			} else if _, failed := in.Failed[name]; !failed {
				s.counted, s.counts = false, false // it is no more
			}
		}
		v, ok := in.Values[name]
		_, failed := in.Failed[name]
		switch {
		case ok && !s.counts:
			s.add(t, v, gap)
		case !ok && !failed && !s.counts:
			s.known = false // the device has it no more
		}
	}
}

// publishTotals copies the totals to what readers see.
func (d *device) publishTotals() {
	for i := range d.totals {
		d.public.Totals[i], d.public.HasTotal[i] = d.totals[i].sum, d.totals[i].known
	}
	d.public.Blind = d.totals[Power].blind
}
