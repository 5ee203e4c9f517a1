package fleet

import (
	"cmp"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"gpuscaler/scaler/window"
	"gpuscaler/shared/snapshot"
)

// Local merges the samples of this node's writers. Its methods may be called
// concurrently; readers take no lock.
type Local struct {
	name       string
	staleAfter time.Duration
	log        *slog.Logger
	start      time.Time

	node    atomic.Pointer[Node]
	changed func() // told of each change of node, if not nil
	observe func(n *Node, now time.Time)

	mu      sync.Mutex
	devices map[string]*device
	writers []*Source
	weight  int // of all devices
	heard   time.Time
	leftOut uint64
	pods    pods
	// recalled are the devices' means of before this process began, by ID: see Recall.
	recalled map[string]Readings
	// recalledYoung are those of pods that had just begun.
	recalledYoung map[Part]Readings
	boot          uint64
	engines       map[EngineKey]*Engine // replaced, never changed
}

// device is the mutable state behind a Device. Guarded by Local.mu.
type device struct {
	owner    *Source // nil when its connection is gone
	left     string  // then the name of its writer
	weight   int     // see weight
	gauges   map[string]*window.Gauge
	counters map[string]*window.Counter
	totals   [len(Integrated)]total
	slowed   [len(snapshot.Throttles)]total
	public   *Device
	reported map[string]string   // the failing metrics that the log knows of
	recalled map[string]Readings // Local.recalled
}

// Source is one writer's connection. Its methods must not be called
// concurrently.
type Source struct {
	local *Local
	// offset maps the writer's clock to ours: the smallest delay seen between
	// taking a sample and its arrival. A sample that waited in the socket is
	// so as old as it is, not as old as it arrived.
	offset  time.Duration
	elapsed time.Duration
	started bool
	merged  bool // has told its devices
	writer  Writer
}

// NewLocal makes an empty node. staleAfter is the age beyond which a silent
// writer's devices may be taken over by another.
func NewLocal(name string, staleAfter time.Duration, log *slog.Logger, now time.Time) *Local {
	l := &Local{name: name, staleAfter: staleAfter, log: log, start: now, devices: map[string]*device{}, recalled: map[string]Readings{}, recalledYoung: map[Part]Readings{}, boot: rand.Uint64() | 1} //nolint:gosec // tells two starts apart
	l.node.Store(&Node{Name: name})
	return l
}

// Observe has each picture of the node told to a function, in order, which must
// return at once. It must be called before the node is told of anything.
func (l *Local) Observe(by func(n *Node, now time.Time)) { l.observe = by }

// Node is the present picture. Never nil.
func (l *Local) Node() *Node { return l.node.Load() }

// Connect begins a writer's connection.
func (l *Local) Connect() *Source { return &Source{local: l} }

// Apply merges a sample that arrived at now. The sample must be valid. An
// error rejects it whole: a clock that goes back, or a device that belongs to
// another connection.
func (s *Source) Apply(sample *snapshot.Sample, now time.Time) error {
	l := s.local
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := s.admit(sample, now); err != nil {
		return err
	}
	heard := s.clock(sample, now)
	if !s.started {
		s.started = true
		l.writers = append(l.writers, s)
		l.log.Info("writer speaks", "writer", sample.Writer, "version", sample.Version, "devices", len(sample.Devices))
	}
	if sample.Error != s.writer.Error {
		l.log.Warn("writer's state changed", "writer", sample.Writer, "error", sample.Error)
	}
	allocates := sample.Allocation != nil || (sample.Error != "" && s.writer.Allocates)
	s.writer = Writer{Name: sample.Writer, Version: sample.Version, Heard: heard, Error: sample.Error, Allocates: allocates, Refused: sample.Refused}
	if sample.Allocation != nil {
		l.pods.allocate(sample.Allocation, heard)
	}
	// The reader of the kubelet says nothing of devices, not that there are none.
	if !allocates || len(sample.Devices) > 0 {
		if heard.After(l.heard) {
			l.heard = heard
		}
		if sample.Error != "" {
			s.fail(sample.Error, heard)
		} else {
			s.merge(sample, heard)
		}
	}
	l.publish(now)
	return nil
}

// Close ends the connection. Its devices stay, and grow old, until another
// connection reports them, or they are forgotten (see forget).
func (s *Source) Close(now time.Time) {
	l := s.local
	l.mu.Lock()
	defer l.mu.Unlock()
	if !s.started {
		return
	}
	for _, d := range l.devices {
		if d.owner == s {
			d.owner, d.left = nil, s.writer.Name
		}
	}
	l.writers = slices.DeleteFunc(l.writers, func(w *Source) bool { return w == s })
	l.log.Info("writer gone", "writer", s.writer.Name)
	l.publish(now)
}

// clock says when, by our clock, a sample was taken. A writer without a clock
// (Elapsed 0) took it when it arrived.
func (s *Source) clock(sample *snapshot.Sample, now time.Time) time.Time {
	arrived := now.Sub(s.local.start)
	taken := arrived
	if sample.Elapsed > 0 {
		if offset := arrived - sample.Elapsed; s.elapsed == 0 || offset < s.offset {
			s.offset = offset
		}
		taken = sample.Elapsed + s.offset
		s.elapsed = sample.Elapsed
	}
	heard := s.local.start.Add(taken)
	if heard.Before(s.writer.Heard) {
		return s.writer.Heard
	}
	return heard
}

// fail marks all devices of the connection as unreadable.
func (s *Source) fail(reason string, heard time.Time) {
	for _, d := range s.local.devices {
		if d.owner == s {
			d.lose(reason, heard)
			s.local.leftOut += d.public.leftOut()
		}
	}
}

func (s *Source) merge(sample *snapshot.Sample, heard time.Time) {
	l := s.local
	var found, gone []string
	reported := make(map[string]bool, len(sample.Devices))
	for i := range sample.Devices {
		in := &sample.Devices[i]
		reported[in.ID] = true
		d := l.devices[in.ID]
		if d == nil {
			d = &device{gauges: map[string]*window.Gauge{}, counters: map[string]*window.Counter{}, reported: map[string]string{}, recalled: l.recalled}
			l.devices[in.ID] = d
			found = append(found, in.ID)
		}
		before := d.public
		d.owner = s
		d.update(in, heard, heard.Sub(l.start))
		d.integrate(in, heard.Sub(l.start), l.staleAfter)
		d.publishTotals()
		d.public.Health = d.diagnose(in, before, heard.Sub(l.start), l.staleAfter)
		l.weight -= d.weight
		d.weight = 1 + len(d.gauges) + len(d.counters) + len(d.public.failed)
		l.weight += d.weight
		l.leftOut += d.public.leftOut()
		l.report(d, before, d.public)
	}
	for id, d := range l.devices {
		// A message is complete. What a writer no longer reports is gone, and so
		// is what its predecessor left behind: a reader that was restarted
		// because the devices changed must not leave the old ones to go stale.
		heir := !s.merged && d.owner == nil && d.left != "" && d.left == sample.Writer
		if (d.owner == s || heir) && !reported[id] {
			gone = append(gone, id)
			l.drop(id)
		}
	}
	s.merged = true
	if len(found)+len(gone) > 0 {
		l.log.Info("devices changed", "writer", sample.Writer, "found", some(found), "gone", some(gone), "devices", len(sample.Devices))
	}
}

func (l *Local) drop(id string) {
	l.weight -= l.devices[id].weight
	delete(l.devices, id)
}

// report logs what changed in the health of a device, once. A metric is
// reported when it fails twice in a row: many need two readings to begin.
func (l *Local) report(d *device, before, after *Device) {
	if before == nil {
		before = &Device{}
	}
	if before.Error != after.Error {
		l.log.Warn("device's state changed", "device", after.String(), "id", after.ID, "error", after.Error)
	}
	if after.Error != "" {
		return
	}
	for metric, reason := range after.failed {
		if before.failed[metric] == reason && d.reported[metric] != reason {
			d.reported[metric] = reason
			l.log.Warn("metric cannot be read", "device", after.String(), "id", after.ID, "metric", metric, "reason", reason)
		}
	}
	for metric := range d.reported {
		if _, still := after.failed[metric]; !still {
			delete(d.reported, metric)
			l.log.Info("metric can be read again", "device", after.String(), "id", after.ID, "metric", metric)
		}
	}
}

// publish makes the present state visible to readers and wakes those who wait.
func (l *Local) publish(now time.Time) {
	l.forget(now)
	n := &Node{Name: l.name, Boot: l.boot, Completed: len(l.recalled) > 0, Heard: l.heard, LeftOut: l.leftOut, Devices: make([]*Device, 0, len(l.devices))}
	for d := range maps.Values(l.devices) {
		n.Devices = append(n.Devices, d.public)
	}
	slices.SortFunc(n.Devices, func(a, b *Device) int {
		return cmp.Or(cmp.Compare(a.Vendor, b.Vendor), cmp.Compare(a.Index, b.Index),
			cmp.Compare(a.Parent, b.Parent), cmp.Compare(a.Instance, b.Instance), cmp.Compare(a.ID, b.ID))
	})
	for _, s := range l.writers {
		n.Writers = append(n.Writers, s.writer)
	}
	l.pods.attribute(n)
	n.young, n.engines = l.young(n, now), l.engines
	l.node.Store(n)
	if l.observe != nil {
		l.observe(n, now)
	}
	if l.changed != nil {
		l.changed()
	}
}
