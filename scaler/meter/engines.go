package meter

import (
	"time"

	"gpuscaler/scaler/fleet"
)

// Counted are what the engines of a workload's pods have counted so far, while they were
// read; Has says which of fleet.Counted some of them has.
type Counted struct {
	Totals fleet.EngineTotals
	Has    [len(fleet.Counted)]bool
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
	last := make(map[fleet.EngineKey]fleet.EngineTotals, len(n.Engines()))
	for key, e := range n.Engines() {
		if e.Heard.IsZero() {
			continue
		}
		last[key] = e.Totals
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
			if known && before[i] >= 0 && total >= before[i] { // else it is read anew
				by -= before[i]
			}
			s.Counted.Totals[i] += by
		}
	}
	m.engines = last
}
