package fleet

import (
	"time"

	"gpuscaler/scaler/window"
)

// Begin is the moment beyond which no window of the pod reaches back: when it first
// became ready, or got its devices, if it has never been ready. What a process does
// while it loads, and what the previous owner of a device did, is not the pod's load.
// Zero: long ago, or not known.
func (p *Pod) Begin() time.Time {
	if !p.FirstReady.IsZero() || p.WasReady {
		return p.FirstReady
	}
	return p.Started
}

// young are the means of the devices of pods that began within the longest window.
func (l *Local) young(n *Node, now time.Time) (all map[string][]Readings) {
	for _, p := range n.Pods {
		begin := p.Begin()
		if len(p.Shares) == 0 || begin.IsZero() || now.Sub(begin) > window.Longest+l.staleAfter {
			continue
		}
		of := make([]Readings, len(p.Shares))
		for i := range p.Shares {
			if d := l.devices[p.Shares[i].Device]; d != nil && d.public.Error == "" {
				of[i] = d.since(begin.Sub(l.start), l.start)
				if now.Sub(l.start) < window.Longest {
					of[i] = of[i].Complete(l.recalledYoung[Part{p.UID, p.Shares[i].Device, begin.Unix()}])
				}
			}
		}
		if all == nil {
			all = map[string][]Readings{}
		}
		all[p.UID] = of
	}
	return all
}

// Recall takes over what another scaler last received of this node from before this
// process began: the means of its devices by ID, which complete the windows that are not
// filled yet. What was recalled first stays.
func (l *Local) Recall(means map[string]Readings) {
	l.mu.Lock()
	defer l.mu.Unlock()
	keepFirst(l.recalled, means, maxDevices)
}

// Part is a device of a pod that began at a time, in seconds since 1970: a pod that was
// loading before, and is ready now, has begun anew.
type Part struct {
	Pod, Device string
	Begin       int64
}

// RecallYoung is Recall with the means of young pods' devices since each pod began.
func (l *Local) RecallYoung(means map[Part]Readings) {
	l.mu.Lock()
	defer l.mu.Unlock()
	keepFirst(l.recalledYoung, means, maxRecalled)
}

// keepFirst adds what is not there yet, up to a bound.
func keepFirst[K comparable](to, from map[K]Readings, most int) {
	for key, r := range from {
		if _, known := to[key]; !known && len(to) < most {
			to[key] = r
		}
	}
}
