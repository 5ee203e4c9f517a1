package fleet

import (
	"math"
	"time"

	"gpuscaler/scaler/window"
	"gpuscaler/shared/snapshot"
)

// update takes over one reading, taken at heard, which is t after the start.
func (d *device) update(in *snapshot.Device, heard time.Time, t time.Duration) {
	public := &Device{
		ID: in.ID, Vendor: in.Vendor, Model: in.Model, File: in.File, Parent: in.Parent, Profile: in.Profile,
		Index: in.Index, Instance: in.Instance, MemoryTotalMiB: in.MemoryTotalMiB,
		Heard: heard,
	}
	previous := d.public
	d.public = public
	if in.Error != "" {
		if previous != nil { // what it is known to have
			public.means, public.failed, public.last = previous.means, previous.failed, previous.last
		}
		d.lose(in.Error, heard)
		return
	}
	d.forget(in)
	d.add(in, t)
	all, pending := d.measure(t, math.MinInt64, func(metric string) bool {
		_, ok := in.Values[metric]
		return ok
	})
	public.failed = pending
	if previous != nil {
		public.last = previous.last
	}
	for name, reason := range in.Failed {
		public.failed[name] = reason
		delete(all, name)
		if previous != nil && previous.means.index(name) >= 0 {
			public.last = new(previous.means)
		}
	}
	public.means = readingsOf(all)
	public.Motion = d.motion(t)
	if before, ok := d.recalled[in.ID]; ok && t < window.Longest {
		public.means = public.means.Complete(before)
	}
}

// add takes the sample's values and counters into the windows.
func (d *device) add(in *snapshot.Device, t time.Duration) {
	for name, v := range in.Values {
		if _, known := snapshot.Lookup(name); !known {
			continue // a newer reader's metric, or a typing error in its name
		}
		g := d.gauges[name]
		if g == nil {
			g = new(window.Gauge)
			d.gauges[name] = g
		}
		g.Add(t, v)
	}
	for i := range snapshot.Metrics {
		m := &snapshot.Metrics[i]
		if m.Counter == nil {
			continue
		}
		v, ok := in.Counters[m.Counter.Name]
		if !ok {
			continue
		}
		c := d.counters[m.Counter.Name]
		if c == nil {
			c = new(window.Counter)
			d.counters[m.Counter.Name] = c
		}
		c.Add(t, v)
		if rates, ok := c.Rates(); ok && m.Check(rates[0]/m.Counter.PerUnitSecond) != nil {
			// No device is that fast: the counter has begun anew, higher up.
			*c = window.Counter{}
			c.Add(t, v)
		}
	}
}

// measure has the means at t of the readings after a moment, of the metrics whose values
// are read now and of those that are slopes of counters; pending are those of them that
// have no rate yet.
func (d *device) measure(t, from time.Duration, read func(metric string) bool) (all map[string]measured, pending map[string]string) {
	all, pending = make(map[string]measured, len(d.gauges)+len(d.counters)), map[string]string{}
	for name, g := range d.gauges {
		if !read(name) {
			continue
		}
		if means, coverage, ok := g.Since(t, from); ok {
			all[name] = measured{means, coverage}
		}
	}
	for i := range snapshot.Metrics {
		m := &snapshot.Metrics[i]
		if m.Counter == nil || d.counters[m.Counter.Name] == nil {
			continue
		}
		rates, coverage, ok := d.counters[m.Counter.Name].Since(from)
		if !ok {
			if m.Counter.Complete {
				pending[m.Name] = "a rate needs two readings"
			}
			continue
		}
		sampled, hasSamples := all[m.Name]
		for w := range rates {
			rates[w] /= m.Counter.PerUnitSecond
			// The last reading is the gauge's where there is one, and a
			// counter at rest says nothing unless it alone is the metric.
			if hasSamples && (w == 0 || (rates[w] == 0 && !m.Counter.Complete)) {
				rates[w], coverage[w] = sampled.means[w], sampled.coverage[w]
			}
		}
		if hasSamples || m.Counter.Complete {
			all[m.Name] = measured{rates, coverage}
		}
	}
	return all, pending
}

// since are the means of what was read after a moment, of the metrics that the device's
// last reading had.
func (d *device) since(from time.Duration, start time.Time) Readings {
	all, _ := d.measure(d.public.Heard.Sub(start), from, func(metric string) bool {
		_, ok := d.public.means.Get(metric)
		return ok
	})
	for name := range d.public.failed {
		delete(all, name)
	}
	return readingsOf(all)
}

const (
	// busyAbove is the gpu_utilization above which a GPU works, in percent, as a mean
	// over workSpan.
	busyAbove = 5
	workSpan  = 15 * time.Second
)

// motion says whether memory in use moves, and whether the GPU worked.
func (d *device) motion(t time.Duration) (m Motion) {
	memory, step := d.gauges["memory_used_percent"], 1.0
	if memory == nil {
		if memory = d.gauges["memory_used_mib"]; memory == nil || d.public.MemoryTotalMiB <= 0 {
			return m
		}
		step = d.public.MemoryTotalMiB / 100
	}
	_, covered, ok := memory.Since(t, math.MinInt64)
	if !ok || covered != window.Whole {
		return m
	}
	m.Known, m.Minutes = true, uint8(memory.Moves(t, step)) //nolint:gosec // five at most
	if work := d.gauges["gpu_utilization"]; work != nil {
		_, covered, ok = work.Since(t, math.MinInt64)
		m.WorkKnown, m.Worked = ok && covered == window.Whole, work.Exceeds(workSpan, busyAbove)
	}
	return m
}

// forget drops the history of what the device no longer has. What could only
// not be read keeps it.
func (d *device) forget(in *snapshot.Device) {
	gone := func(name, metric string, present map[string]float64) bool {
		_, read := present[name]
		_, failed := in.Failed[metric]
		return !read && !failed
	}
	for name := range d.gauges {
		if gone(name, name, in.Values) {
			delete(d.gauges, name)
		}
	}
	for _, m := range snapshot.Metrics {
		if m.Counter != nil && gone(m.Counter.Name, m.Name, in.Counters) {
			delete(d.counters, m.Counter.Name)
		}
	}
}

// lose marks the device as unreadable since heard, for one reason: so are all
// metrics that it is known to have.
func (d *device) lose(reason string, heard time.Time) {
	public := *d.public
	public.Error, public.Heard = reason, heard
	public.failed = map[string]string{}
	for name := range d.public.means.All() {
		public.failed[name] = reason
	}
	for name := range d.public.failed {
		public.failed[name] = reason
	}
	if public.means.Len() > 0 {
		public.last = new(public.means)
	}
	public.means = Readings{}
	d.public = &public
}
