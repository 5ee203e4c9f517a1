package meter

import (
	"slices"
	"time"

	"gpuscaler/scaler/fleet"
)

// Counted are what the engines of a workload's pods have counted so far, while they were
// read; Has says which of fleet.Counted some of them has.
type Counted struct {
	Totals fleet.EngineTotals
	Has    [len(fleet.Counted)]bool
	// Latencies are by position in fleet.Measured; nil: none of them has it. Read-only.
	Latencies [len(fleet.Measured)]*fleet.Histogram
}

// observed is what an engine had counted when it was looked at last.
type observed struct {
	totals    fleet.EngineTotals
	latencies [len(fleet.Measured)]*fleet.Histogram
}

// observeEngines adds what engines have counted since the last picture to their pods'
// workloads. An engine that is read in several ways counts once.
func (m *Meter) observeEngines(n *fleet.Node, now time.Time) {
	if len(n.Engines())+len(m.engines) == 0 { // mostly
		return
	}
	chosen := make(map[string]fleet.EngineKey, len(n.Engines())) // by pod
	for key := range n.Engines() {
		if other, ok := chosen[key.UID]; !ok || key.Compare(other) < 0 {
			chosen[key.UID] = key
		}
	}
	last := make(map[fleet.EngineKey]observed, len(n.Engines()))
	for key, e := range n.Engines() {
		if e.Heard.IsZero() {
			continue
		}
		last[key] = observed{e.Totals, e.Latencies}
		p := n.Pod(key.UID)
		if p == nil || chosen[key.UID] != key {
			continue
		}
		s := m.workload(Workload{p.Namespace, p.Owner.Kind, p.Owner.Name}, now)
		before, known := m.engines[key]
		for i, total := range e.Totals {
			if total < 0 {
				continue
			}
			s.Counted.Has[i] = true
			by := total
			if known && before.totals[i] >= 0 && total >= before.totals[i] { // else it is read anew
				by -= before.totals[i]
			}
			s.Counted.Totals[i] += by
		}
		for i, h := range e.Latencies {
			if h != nil && h != before.latencies[i] {
				s.Counted.Latencies[i] = grown(s.Counted.Latencies[i], h, before.latencies[i])
			}
		}
	}
	m.engines = last
}

// grown is a sum with what an engine's histogram grew by. One with other buckets begins
// anew: another version of the engine has them.
func grown(sum, now, before *fleet.Histogram) *fleet.Histogram {
	more := &fleet.Histogram{Bounds: now.Bounds, Counts: slices.Clone(now.Counts), Sum: now.Sum}
	same := func(h *fleet.Histogram) bool { return h != nil && slices.Equal(h.Bounds, now.Bounds) }
	last := len(now.Counts) - 1
	if same(before) && now.Counts[last] >= before.Counts[last] { // else it is read anew
		for i, n := range before.Counts {
			more.Counts[i] = max(0, more.Counts[i]-n)
		}
		more.Sum = max(0, more.Sum-before.Sum)
	}
	if same(sum) {
		for i, n := range sum.Counts {
			more.Counts[i] += n
		}
		more.Sum += sum.Sum
	}
	return more
}
