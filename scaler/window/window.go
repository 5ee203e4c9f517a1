// Package window turns readings that arrive at any rate into means over the
// last seconds. It is pure and reads no clock: time is given as the duration
// since an origin of the caller's choice, and must not go back.
//
// Readings are folded into buckets of one second, so that memory is bounded
// whatever the rate: a series holds at most Longest seconds. A mean is that of
// the readings, each counting alike; a reader therefore reads evenly.
package window

import (
	"math"
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

// Coverage is for how much of each of Windows there are readings, in the same order: each
// reading stands for the time since the one before, if that is not longer than Gap. That
// of the last reading is 0.
type Coverage [len(Windows)]time.Duration

// Whole is the coverage with readings for all of each window.
var Whole = Coverage(Windows)

// Gap is the longest time between two readings that the second one stands for, unless the
// readings before were about as far apart. After a longer one a series begins anew,
// though its mean takes in what was before.
const Gap = 15 * time.Second

// slowest is the longest pace of a reader, in seconds, and its jitter: nvmlsidecar's
// --interval is a minute at most. What is longer is a silence in any case.
const slowest = 75

// Gauge is a series of readings of one value. The zero Gauge is empty.
type Gauge struct {
	buckets []bucket // oldest first, at most one a second
	last    float64
	at      time.Duration // of last
	step    int64         // seconds between the last two buckets
}

type bucket struct {
	second int64
	sum    float64
	n      int32
	covers int32 // seconds since the bucket before, 0 after a gap
}

// Add takes a reading at time t and forgets what is older than Longest.
func (g *Gauge) Add(t time.Duration, v float64) {
	g.last, g.at = v, t
	second := int64(t / time.Second)
	b := bucket{second: second, sum: v, n: 1}
	if n := len(g.buckets); n > 0 {
		newest := &g.buckets[n-1]
		if newest.second >= second {
			newest.sum += v
			newest.n++
			return
		}
		since := second - newest.second
		if since <= max(int64(Gap/time.Second), min(2*g.step, slowest)) {
			b.covers = int32(min(since, int64(Longest/time.Second))) //nolint:gosec // at most Longest
		}
		g.step = since
	}
	old := 0
	for old < len(g.buckets) && g.buckets[old].second <= second-int64(Longest/time.Second) {
		old++
	}
	g.buckets = append(g.buckets[old:], b)
}

// Means are the means of the readings in the last 0 s, 15 s, 1 m and 5 m
// before t, of as many as there are since the series began. ok is false when
// there is none within the shortest span.
func (g *Gauge) Means(t time.Duration) (m Means, ok bool) {
	m, _, ok = g.Since(t, math.MinInt64)
	return m, ok
}

// Since are the means as Means has them, of the readings after a moment only, and for
// how much of each window there are some. ok is false when there is none within the
// shortest span.
func (g *Gauge) Since(t, from time.Duration) (m Means, c Coverage, ok bool) {
	second := int64(t / time.Second)
	first := int64(math.MinInt64)
	if from > math.MinInt64 {
		first = int64((from + time.Second - 1) / time.Second) // of the first whole bucket
	}
	var sum float64
	var n, covered int64
	i := len(g.buckets) - 1
	for w, span := range Windows {
		begin := second - int64(span/time.Second)
		for ; i >= 0 && g.buckets[i].second > begin && g.buckets[i].second >= first; i-- {
			sum += g.buckets[i].sum
			n += int64(g.buckets[i].n)
			covered += int64(g.buckets[i].covers)
		}
		if n > 0 {
			m[w] = sum / float64(n)
		} else if span > 0 {
			return m, c, false
		}
		if span > 0 { // less what the oldest stands for before the window
			oldest := g.buckets[i+1]
			before := max(0, int64(oldest.covers)-(oldest.second-max(begin, first)))
			c[w] = time.Duration(covered-before) * time.Second
		}
	}
	m[0] = g.last
	return m, c, g.at > from
}

// jitter is how much too early a reading may be, half a bucket, to be as old as a span.
const jitter = 500 * time.Millisecond

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
	m, _, ok = c.Since(math.MinInt64)
	return m, ok
}

// Since are the rates as Rates has them, of the readings after a moment only, and how
// much of each window they span. ok is false with fewer than two such readings.
func (c *Counter) Since(after time.Duration) (m Means, covered Coverage, ok bool) {
	n := len(c.readings)
	if n < 2 || c.previous.at < after {
		return m, covered, false
	}
	last := c.readings[n-1]
	from := n - 2
	if c.readings[from].at < after { // previous is of the last one's second
		return m, covered, false
	}
	for w, span := range Windows {
		start := c.previous
		if span > 0 {
			// The span begins at the last reading that is at least as old as
			// it is, so that a window of 15 s at one reading a second covers
			// 15 intervals.
			for from > 0 && last.at-c.readings[from].at < span-jitter && c.readings[from-1].at >= after {
				from--
			}
			start = c.readings[from]
			if covered[w] = last.at - start.at; covered[w] >= span-jitter {
				covered[w] = span
			}
		}
		m[w] = (last.value - start.value) / (last.at - start.at).Seconds()
	}
	return m, covered, true
}
