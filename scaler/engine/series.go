package engine

import (
	"math"
	"slices"
	"time"

	"gpuscaler/scaler/terms"
	"gpuscaler/scaler/window"
)

// Series keeps the samples of one engine. The zero Series is empty.
type Series struct {
	gauges   [gauges]window.Gauge
	counters [counters]window.Counter
	latency  [latencies]past
	last     *Sample
	at       time.Duration
	totals   Totals
}

// past are the states of a histogram: one for each reading that changed it, at most one
// a second, as far back as the longest window.
type past struct {
	states []state
	// before is the state at the reading before the last one.
	before *Histogram
}

type state struct {
	at time.Duration
	h  *Histogram
}

// Add takes a sample at a time, which must not go back. A counter that went back is a
// process that was started again: no rate and no latency spans that.
func (s *Series) Add(at time.Duration, x *Sample) {
	if s.last == nil {
		for i := range x.counters {
			if math.IsNaN(x.counters[i]) {
				s.setTotal(i, -1)
			}
		}
	}
	for i, v := range x.gauges {
		if !math.IsNaN(v) {
			s.gauges[i].Add(at, v)
		}
	}
	for i, v := range x.counters {
		if math.IsNaN(v) {
			continue
		}
		s.counters[i].Add(at, v)
		s.count(i, v)
	}
	for i, h := range x.latency {
		if h != nil {
			s.latency[i].add(at, h)
			s.totals.Latencies[i] = s.totals.Latencies[i].grown(h, s.previous(Latency(i)))
		}
	}
	s.last, s.at = x, at
}

func (s *Series) previous(l Latency) *Histogram {
	if s.last == nil {
		return nil
	}
	return s.last.latency[l]
}

// count adds what a counter grew by to the totals.
func (s *Series) count(i int, v float64) {
	before := math.NaN()
	if s.last != nil {
		before = s.last.counters[i]
	}
	total := max(0, *s.total(i))
	switch {
	case math.IsNaN(before): // from here on
	case v < before:
		total += v // since it was started again
	default:
		total += v - before
	}
	s.setTotal(i, total)
}

func (s *Series) total(i int) *float64 {
	return [counters]*float64{prompt: &s.totals.PromptTokens, generation: &s.totals.GenerationTokens, requests: &s.totals.Requests}[i]
}

func (s *Series) setTotal(i int, v float64) { *s.total(i) = v }

// grown is a total with what a histogram grew by since the reading before; a total with
// other buckets begins anew.
func (h *Histogram) grown(now, before *Histogram) *Histogram {
	total := &Histogram{Bounds: now.Bounds, Counts: make([]float64, len(now.Counts))}
	if h != nil && slices.Equal(h.Bounds, now.Bounds) {
		copy(total.Counts, h.Counts)
		total.Sum = h.Sum
	}
	if before == nil {
		return total
	}
	more, ok := now.since(before)
	if !ok {
		more = now
	}
	for i, n := range more.Counts {
		total.Counts[i] += n
	}
	total.Sum += more.Sum
	return total
}

func (p *past) add(at time.Duration, h *Histogram) {
	n := len(p.states)
	if n == 0 {
		p.states = append(p.states, state{at, h})
		return
	}
	newest := &p.states[n-1]
	more, ok := h.since(newest.h)
	if !ok {
		p.states, p.before = []state{{at, h}}, nil
		return
	}
	p.before = newest.h
	switch {
	case more.Count() == 0 && more.Sum == 0:
		return
	case n > 1 && newest.at/time.Second == at/time.Second:
		*newest = state{at, h}
		return
	}
	old := 0
	for old+1 < n && p.states[old+1].at <= at-window.Longest {
		old++
	}
	p.states = append(p.states[old:], state{at, h})
}

// Totals are the counters since the first sample.
func (s *Series) Totals() Totals { return s.totals }

// Metrics are those that the engine has had in its last sample: see Sample.Metrics.
func (s *Series) Metrics() []string {
	if s.last == nil {
		return nil
	}
	return s.last.Metrics()
}

// Last is the last sample, or nil.
func (s *Series) Last() *Sample { return s.last }

// Means are the means, the rates and the latencies' quantiles over window.Windows at
// the last sample, of what was read after a moment only, and how much of each window there
// are readings for. They are named by terms.Reading. A rate needs two readings, a quantile, too:
// what lacks them is not there. A latency is terms.NoRequest over a window in which no request says
// anything of it.
func (s *Series) Means(from time.Duration, quantiles []float64) (names []string, means []window.Means, coverage []window.Coverage) {
	if s.last == nil {
		return nil, nil, nil
	}
	add := func(name string, m window.Means, c window.Coverage) {
		names, means, coverage = append(names, name), append(means, m), append(coverage, c)
	}
	for i := range s.gauges {
		if math.IsNaN(s.last.gauges[i]) {
			continue
		}
		if m, c, ok := s.gauges[i].Since(s.at, from); ok {
			add(gaugeNames[i], m, c)
		}
	}
	for i := range s.counters {
		if math.IsNaN(s.last.counters[i]) {
			continue
		}
		if m, c, ok := s.counters[i].Since(from); ok {
			add(counterNames[i], m, c)
		}
	}
	for i := range s.latency {
		if s.last.latency[i] == nil || s.latency[i].before == nil {
			continue
		}
		for _, q := range quantiles {
			m, c, ok := s.latency[i].quantiles(s.last.latency[i], s.at, from, q)
			if ok {
				add(terms.Reading(latencyNames[i], q), m, c)
			}
		}
	}
	return names, means, coverage
}

// quantiles are in milliseconds.
func (p *past) quantiles(now *Histogram, at, from time.Duration, q float64) (m window.Means, c window.Coverage, ok bool) {
	first := slices.IndexFunc(p.states, func(s state) bool { return s.at >= from })
	if first > 0 && p.states[first].at > from {
		first-- // nothing changed until from: that state is from's, too
	}
	if first < 0 { // nothing has changed since
		first = len(p.states) - 1
	}
	began := max(p.states[first].at, from)
	for w, span := range window.Windows {
		before := p.before
		if span > 0 {
			begin := max(at-span, began)
			k := first
			for k+1 < len(p.states) && p.states[k+1].at <= begin {
				k++
			}
			before = p.states[k].h
			c[w] = min(span, at-began)
		}
		m[w] = terms.NoRequest
		if d, fine := now.since(before); fine {
			if seconds, some := d.quantile(q); some {
				m[w] = 1000 * seconds
			}
		}
	}
	return m, c, at > began
}
