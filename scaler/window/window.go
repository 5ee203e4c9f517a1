// Package window turns readings that arrive at any rate into means over the
// last seconds. It is pure and reads no clock: time is given as the duration
// since an origin of the caller's choice, and must not go back.
//
// Readings are folded into buckets of one second, so that memory is bounded
// whatever the rate: a series holds at most Longest seconds. A mean is that of
// the readings, each counting alike; a reader therefore reads evenly.
package window

import (
	"slices"
	"time"
)

// Windows are the spans that means are kept for, in the order of Means. 0 is
// the last reading.
var Windows = [...]time.Duration{0, 15 * time.Second, time.Minute, 5 * time.Minute}

// Longest is the longest of Windows.
const Longest = 5 * time.Minute

// Means are the means over Windows, in the same order.
type Means [len(Windows)]float64

// Index is the position of a window in Means, or -1.
func Index(w time.Duration) int { return slices.Index(Windows[:], w) }

// Gauge is a series of readings of one value. The zero Gauge is empty.
type Gauge struct {
	buckets []bucket // oldest first, at most one a second
	last    float64
}

type bucket struct {
	second int64
	sum    float64
	n      int
}

// Add takes a reading at time t and forgets what is older than Longest.
func (g *Gauge) Add(t time.Duration, v float64) {
	g.last = v
	second := int64(t / time.Second)
	if n := len(g.buckets); n > 0 && g.buckets[n-1].second >= second {
		g.buckets[n-1].sum += v
		g.buckets[n-1].n++
		return
	}
	old := 0
	for old < len(g.buckets) && g.buckets[old].second <= second-int64(Longest/time.Second) {
		old++
	}
	g.buckets = append(g.buckets[old:], bucket{second, v, 1})
}

// Means are the means of the readings in the last 0 s, 15 s, 1 m and 5 m
// before t, of as many as there are since the series began. ok is false when
// there is none within the shortest span.
func (g *Gauge) Means(t time.Duration) (m Means, ok bool) {
	second := int64(t / time.Second)
	var sum float64
	var n int
	i := len(g.buckets) - 1
	for w, span := range Windows {
		for ; i >= 0 && g.buckets[i].second > second-int64(span/time.Second); i-- {
			sum += g.buckets[i].sum
			n += g.buckets[i].n
		}
		if n > 0 {
			m[w] = sum / float64(n)
		} else if span > 0 {
			return m, false
		}
	}
	m[0] = g.last
	return m, true
}

// Counter is a series of readings of a cumulative figure. The zero Counter is
// empty.
type Counter struct {
	readings []reading // oldest first, the last one of each second
	previous reading   // the reading before the last one, for the rate "now"
}

type reading struct {
	at    time.Duration
	value float64
}

// Add takes a reading at time t. A counter that went back has been reset: what
// was known of it is forgotten, because no rate spans a reset. Nor does one
// span a silence longer than all windows.
func (c *Counter) Add(t time.Duration, v float64) {
	n := len(c.readings)
	switch {
	case n == 0:
		c.readings = append(c.readings, reading{t, v})
		return
	case t <= c.readings[n-1].at:
		return
	case v < c.readings[n-1].value, t-c.readings[n-1].at >= Longest:
		c.readings = append(c.readings[:0], reading{t, v})
		c.previous = reading{}
		return
	}
	c.previous = c.readings[n-1]
	if n > 1 && int64(c.readings[n-1].at/time.Second) == int64(t/time.Second) {
		c.readings[n-1] = reading{t, v}
		return
	}
	// The last reading that is as old as the longest window is where it begins.
	old := 0
	for old+1 < n && c.readings[old+1].at <= t-Longest {
		old++
	}
	c.readings = append(c.readings[old:], reading{t, v})
}

// Rates are the mean growths per second over Windows; the first is that
// between the last two readings. ok is false with fewer than two readings.
func (c *Counter) Rates() (m Means, ok bool) {
	n := len(c.readings)
	if n < 2 {
		return m, false
	}
	last := c.readings[n-1]
	from := n - 2
	for w, span := range Windows {
		start := c.previous
		if span > 0 {
			// The span begins at the last reading that is at least as old as
			// it is, so that a window of 15 s at one reading a second covers
			// 15 intervals. Half a bucket absorbs the jitter of the readings.
			for from > 0 && last.at-c.readings[from].at < span-500*time.Millisecond {
				from--
			}
			start = c.readings[from]
		}
		m[w] = (last.value - start.value) / (last.at - start.at).Seconds()
	}
	return m, true
}
