package fleet

import (
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
			public.means, public.failed = previous.means, previous.failed
		}
		d.lose(in.Error, heard)
		return
	}
	d.forget(in)
	means := make(map[string]window.Means, len(in.Values)+len(in.Counters))
	for name, v := range in.Values {
		if _, known := snapshot.Lookup(name); !known {
			continue // a newer writer's metric, or a typing error in its name
		}
		g := d.gauges[name]
		if g == nil {
			g = new(window.Gauge)
			d.gauges[name] = g
		}
		g.Add(t, v)
		if m, ok := g.Means(t); ok {
			means[name] = m
		}
	}
	public.failed = d.count(in, t, means)
	for name, reason := range in.Failed {
		public.failed[name] = reason
		delete(means, name)
	}
	public.means = readingsOf(means)
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

// count derives the means of the metrics that are slopes of counters, and
// returns those that cannot be told yet.
func (d *device) count(in *snapshot.Device, t time.Duration, means map[string]window.Means) (pending map[string]string) {
	pending = map[string]string{}
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
		rates, ok := c.Rates()
		if ok && m.Check(rates[0]/m.Counter.PerUnitSecond) != nil {
			// No device is that fast: the counter has begun anew, higher up.
			*c, ok = window.Counter{}, false
			c.Add(t, v)
		}
		if !ok {
			if m.Counter.Complete {
				pending[m.Name] = "a rate needs two readings"
			}
			continue
		}
		sampled, hasSamples := means[m.Name]
		for w := range rates {
			rates[w] /= m.Counter.PerUnitSecond
			// The last reading is the gauge's where there is one, and a
			// counter at rest says nothing unless it alone is the metric.
			if hasSamples && (w == 0 || (rates[w] == 0 && !m.Counter.Complete)) {
				rates[w] = sampled[w]
			}
		}
		if hasSamples || m.Counter.Complete {
			means[m.Name] = rates
		}
	}
	return pending
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
	public.means = Readings{}
	d.public = &public
}
