// Package meter adds up what pods and workloads take of a node's devices over time:
// joules, and the seconds that they are busy. What a device grows by between two
// pictures of the node is shared by those that hold it then, in whole units, so that
// all parts add up to the device exactly. It must not know where pictures come from
// or who reads the sums.
package meter

import (
	"sync"
	"time"

	"gpuscaler/scaler/fleet"
)

const (
	// kept is for how long a workload that holds nothing any more keeps its series, and a
	// device that is gone; podKept for how long a pod does: some scrapes.
	kept    = 15 * time.Minute
	podKept = 5 * time.Minute
	// Bounds on series, whatever comes and goes: a node has 110 pods, 500 at most.
	maxWorkloads = 1024
	maxPods      = 4096
	maxDevices   = 2048
	// sweepEvery is how often it is looked for what has expired.
	sweepEvery = 10 * time.Second
)

// Workload names what runs pods: by [fleet.Owner].
type Workload struct{ Namespace, Kind, Name string }

// Pod names a pod's part in a device. One that takes the place of another by the same
// name, as a StatefulSet's do, goes on where that stopped.
type Pod struct {
	Workload
	Pod, Container string
	// Device is what has been read: a GPU or an instance.
	Device string
}

// Has says of each of [fleet.Integrated] whether a device ever reported it. Where none
// did, a total of 0 means that nothing was measured, not that nothing was used.
type Has [len(fleet.Integrated)]bool

func (h *Has) merge(with Has) {
	for i, has := range with {
		h[i] = h[i] || has
	}
}

// Sums are what something has taken so far.
type Sums struct {
	Totals fleet.Totals
	// Has says which totals its devices reported while it held them.
	Has Has
	// Idle is the part of the energy in which the device did nothing, in units of
	// 1/fleet.Fine joules. HasIdle: a device reported energy, and whether it worked.
	Idle    int64
	HasIdle bool
	// Counted is what the workload's engines have done; of pods' parts in devices it is
	// empty.
	Counted Counted
}

func (s *Sums) add(i int, by int64, idle bool) {
	s.Totals[i] += by
	s.Has[i] = true
	if i == fleet.Power && idle {
		s.Idle += by
		s.HasIdle = true
	}
}

// report notes what a device reports, also where it is 0 so far.
func (s *Sums) report(has Has, hasIdle bool) {
	s.Has.merge(has)
	s.HasIdle = s.HasIdle || hasIdle
}

// Meter adds up. Its methods may be called concurrently.
type Meter struct {
	staleAfter time.Duration

	mu        sync.Mutex
	devices   map[string]*device
	workloads map[Workload]*series
	pods      map[Pod]*series
	unheld    fleet.Totals // devices that nobody holds
	unknown   fleet.Totals // it is not known who does
	expired   fleet.Totals // of workloads that are forgotten
	gone      fleet.Totals // of devices that are forgotten
	has       Has          // what any device has reported
	swept     time.Time

	engines map[fleet.EngineKey]observed // when they were last looked at

	held    []*fleet.Pod // that holders was made of
	holders map[string][]holder
}

// series are sums with when they were last of somebody there.
type series struct {
	Sums
	seen time.Time
}

// device is what a device had when it was last looked at, and all that it has had.
type device struct {
	last  fleet.Totals
	blind int64
	sum   fleet.Totals
	has   Has
	is    *fleet.Device
	seen  time.Time
}

// holder is a pod's part in a device, of so many.
type holder struct {
	pod     Pod
	holders int
}

// New makes a meter. What the kubelet told longer ago than staleAfter says nothing of
// who holds what.
func New(staleAfter time.Duration) *Meter {
	return &Meter{
		staleAfter: staleAfter, devices: map[string]*device{}, workloads: map[Workload]*series{}, pods: map[Pod]*series{},
	}
}

// Observe takes over a picture of the node. Pictures come in order.
func (m *Meter) Observe(n *fleet.Node, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.indexHolders(n, now)
	m.observeEngines(n, now)
	known := n.PodsKnown && !n.Allocated.IsZero() && now.Sub(n.Allocated) <= m.staleAfter
	// Somebody whom nobody knows holds something that nobody knows.
	strangers := len(n.Strangers) > 0 || n.ClaimsUnknown
	split := splitByInstances(n)
	for _, d := range n.Devices {
		grown, blind := m.grown(d)
		idle, hasIdle := m.idle(n, d, grown)
		shared := m.reported(d)
		for i := range shared { // what instances report themselves is theirs
			shared[i] = shared[i] && (d.Parent != "" || !split[d.ID][i])
		}
		if known && shared != (Has{}) {
			for _, h := range m.holders[d.ID] {
				m.report(h.pod, shared, hasIdle && shared[fleet.Power], now)
			}
		}
		if grown == (fleet.Totals{}) {
			continue
		}
		for i, by := range grown {
			if by == 0 || (d.Parent == "" && split[d.ID][i]) {
				continue
			}
			if i == fleet.Power { // whoever held it then, and whether it was idle
				m.unknown[i] += blind
				by -= blind
			}
			holders := m.holders[d.ID]
			switch {
			case !known:
				m.unknown[i] += by
			case len(holders) == 0 && strangers:
				m.unknown[i] += by
			case len(holders) == 0:
				m.unheld[i] += by
			default:
				m.share(holders, i, by, idle, now)
			}
		}
	}
	for _, d := range n.Devices {
		known := m.devices[d.ID]
		known.last, known.blind, known.is, known.seen = d.Totals, d.Blind, d, now
	}
	if now.Sub(m.swept) >= sweepEvery || len(m.devices) > maxDevices {
		m.sweep(now)
	}
}

// grown is by what a device has grown, and how much of the energy it has used unseen.
// One that was forgotten, and found again, has begun anew.
func (m *Meter) grown(d *fleet.Device) (by fleet.Totals, blind int64) {
	known := m.devices[d.ID]
	if known == nil {
		known = &device{}
		m.devices[d.ID] = known
	}
	for i, total := range d.Totals {
		by[i] = total - known.last[i]
		if by[i] < 0 {
			by[i] = total
		}
		known.sum[i] += by[i]
		if by[i] > 0 {
			known.has[i], m.has[i] = true, true
		}
	}
	if blind = d.Blind - known.blind; blind < 0 {
		blind = d.Blind
	}
	return by, blind
}

// reported is what a device has reported since the last picture: nothing where that
// reading is still the last, or failed.
func (m *Meter) reported(d *fleet.Device) Has {
	known := m.devices[d.ID]
	if d.Error != "" || (known.is != nil && !d.Heard.After(known.is.Heard)) {
		return Has{}
	}
	known.has.merge(d.HasTotal)
	m.has.merge(d.HasTotal)
	return d.HasTotal
}

// idle says whether a GPU did nothing while it grew: none of its instances, if it has
// any. Where utilization is not read that is not known, and it counts as busy.
func (m *Meter) idle(n *fleet.Node, gpu *fleet.Device, grown fleet.Totals) (idle, known bool) {
	if !gpu.HasTotal[fleet.Power] && grown[fleet.Power] == 0 { // no energy to tell apart
		return false, false
	}
	known = readsUtilization(gpu)
	if known && grown[fleet.Utilization] > 0 {
		return false, true
	}
	idle = true
	for _, d := range n.Devices {
		if d.Parent != gpu.ID {
			continue
		}
		if !readsUtilization(d) {
			return false, false
		}
		known = true
		if before := m.devices[d.ID]; before == nil || d.Totals[fleet.Utilization] != before.last[fleet.Utilization] {
			idle = false
		}
	}
	return idle && known, known
}

// readsUtilization says whether it was read this time.
func readsUtilization(d *fleet.Device) bool {
	_, ok := d.Value(fleet.Integrated[fleet.Utilization], 0)
	return ok
}

// splitByInstances are the GPUs whose instances tell of something themselves, so that it
// would count twice.
func splitByInstances(n *fleet.Node) map[string][len(fleet.Integrated)]bool {
	var split map[string][len(fleet.Integrated)]bool
	for _, d := range n.Devices {
		if d.Parent == "" {
			continue
		}
		if split == nil {
			split = map[string][len(fleet.Integrated)]bool{}
		}
		has := split[d.Parent]
		for i := range has {
			has[i] = has[i] || d.HasTotal[i]
		}
		split[d.Parent] = has
	}
	return split
}

// share divides what a device has grown by between those who hold it: equally, with
// what does not divide to the first. Holders that are not known have their part, too.
func (m *Meter) share(holders []holder, i int, by int64, idle bool, now time.Time) {
	of := int64(max(holders[0].holders, len(holders)))
	part, rest := by/of, by%of
	for _, h := range holders {
		p := part + rest
		rest = 0
		m.workload(h.pod.Workload, now).add(i, p, idle)
		if s := m.pod(h.pod, now); s != nil {
			s.add(i, p, idle)
		}
	}
	m.unknown[i] += part * (of - int64(len(holders)))
}

// report notes what a device that a pod holds reports.
func (m *Meter) report(p Pod, has Has, hasIdle bool, now time.Time) {
	m.workload(p.Workload, now).report(has, hasIdle)
	if s := m.pod(p, now); s != nil {
		s.report(has, hasIdle)
	}
}

func (m *Meter) workload(w Workload, now time.Time) *series {
	s := m.workloads[w]
	if s == nil {
		if len(m.workloads) >= maxWorkloads {
			m.dropOldest()
		}
		s = &series{}
		m.workloads[w] = s
	}
	s.seen = now
	return s
}

// pod is nil when there are too many.
func (m *Meter) pod(p Pod, now time.Time) *series {
	s := m.pods[p]
	if s == nil {
		if len(m.pods) >= maxPods {
			return nil
		}
		s = &series{}
		m.pods[p] = s
	}
	s.seen = now
	return s
}

// indexHolders finds who holds each device: an instance's are those of its own, a GPU's
// those of any piece of it.
func (m *Meter) indexHolders(n *fleet.Node, now time.Time) {
	same := len(m.held) == len(n.Pods) && (len(n.Pods) == 0 || &m.held[0] == &n.Pods[0])
	if !same || m.holders == nil {
		m.held, m.holders = n.Pods, map[string][]holder{}
		for _, p := range n.Pods {
			for _, s := range p.Shares {
				m.hold(p, s.Device, s.Container(), s.Holders)
				if s.GPU != s.Device {
					m.hold(p, s.GPU, s.Container(), s.GPUHolders)
				}
			}
		}
	}
	for _, holders := range m.holders { // whatever they take
		for _, h := range holders {
			m.workload(h.pod.Workload, now)
			m.pod(h.pod, now)
		}
	}
}

func (m *Meter) hold(p *fleet.Pod, id, container string, holders int) {
	for _, h := range m.holders[id] {
		if h.pod.Namespace == p.Namespace && h.pod.Pod == p.Name { // of two of its instances
			return
		}
	}
	m.holders[id] = append(m.holders[id], holder{
		Pod{Workload{p.Namespace, p.Owner.Kind, p.Owner.Name}, p.Name, container, id}, holders,
	})
}

// sweep forgets what is over for long.
func (m *Meter) sweep(now time.Time) {
	m.swept = now
	for w, s := range m.workloads {
		if now.Sub(s.seen) > kept {
			m.drop(w)
		}
	}
	for p, s := range m.pods {
		if now.Sub(s.seen) > podKept {
			delete(m.pods, p)
		}
	}
	all := len(m.devices)
	for id, d := range m.devices { // with too many, all that are gone
		if !d.seen.Equal(now) && (all > maxDevices || now.Sub(d.seen) > kept) {
			for i, v := range d.sum {
				m.gone[i] += v
			}
			delete(m.devices, id)
		}
	}
}

func (m *Meter) dropOldest() {
	var oldest Workload
	var since time.Time
	for w, s := range m.workloads {
		if since.IsZero() || s.seen.Before(since) {
			oldest, since = w, s.seen
		}
	}
	m.drop(oldest)
}

func (m *Meter) drop(w Workload) {
	for i, v := range m.workloads[w].Totals {
		m.expired[i] += v
	}
	delete(m.workloads, w)
}
