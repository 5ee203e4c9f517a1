package arrivals

import (
	"errors"
	"fmt"
	"math"
	"sort"
	"time"
)

// Point is a rate of arrivals at a time.
type Point struct {
	At        time.Duration
	PerSecond float64
}

// Curve is a rate of arrivals over time: straight lines between points. The first point is
// at 0, the last one is the end. Two points at one time are a jump.
type Curve []Point

// Validate says what is wrong with the curve.
func (c Curve) Validate() error {
	if len(c) < 2 || c[0].At != 0 {
		return errors.New("curve: it must have two points at least, the first one at 0")
	}
	for i, p := range c {
		if i > 0 && p.At < c[i-1].At {
			return fmt.Errorf("curve: point %d at %v is before the one ahead of it", i+1, p.At)
		}
		if !(p.PerSecond >= 0) || math.IsInf(p.PerSecond, 0) {
			return fmt.Errorf("curve: point %d has a rate of %v, it must not be negative", i+1, p.PerSecond)
		}
	}
	return nil
}

// Length is the time of the last point.
func (c Curve) Length() time.Duration { return c[len(c)-1].At }

// Max is the largest rate.
func (c Curve) Max() (most float64) {
	for _, p := range c {
		most = max(most, p.PerSecond)
	}
	return most
}

// At is the rate at a time, in requests per second; 0 outside of the curve. At a jump it is
// the rate after it.
func (c Curve) At(t time.Duration) float64 {
	i := sort.Search(len(c), func(i int) bool { return c[i].At > t })
	if i == 0 || i == len(c) {
		return 0
	}
	from, to := c[i-1], c[i]
	share := float64(t-from.At) / float64(to.At-from.At)
	return from.PerSecond + share*(to.PerSecond-from.PerSecond)
}

// Requests is how many requests the curve lets expect between two times.
func (c Curve) Requests(from, to time.Duration) (n float64) {
	for i := 1; i < len(c); i++ {
		a, b := max(c[i-1].At, from), min(c[i].At, to)
		if a >= b {
			continue
		}
		// A line's mean is its value in the middle, which is never at a jump.
		n += c.At(a+(b-a)/2) * (b - a).Seconds()
	}
	return n
}

// Compress returns the curve with another length: its shape and its rates stay, so the
// number of requests changes with the length.
func (c Curve) Compress(length time.Duration) Curve {
	out := make(Curve, len(c))
	for i, p := range c {
		share := float64(p.At) / float64(c.Length())
		out[i] = Point{At: time.Duration(math.Round(share * float64(length))), PerSecond: p.PerSecond}
	}
	return out
}

// The hours of Day between which nothing arrives, and those at which the rate has its noon
// and its evening maximum.
const (
	SilentFrom   = 2 * time.Hour
	SilentTo     = 5 * time.Hour
	Noon         = 12*time.Hour + 30*time.Minute
	EveningBurst = 20*time.Hour + 30*time.Minute
)

// Day is 24 hours of users in one time zone. noon is the rate at noon, in requests per
// second: the night has 5 % of it and three hours of none, the morning ramps up from 5 to 9,
// and the evening has a burst of half an hour that begins within 5 minutes and has 160 %.
func Day(noon float64) Curve {
	clock := func(hour, minute int, share float64) Point {
		return Point{At: time.Duration(hour)*time.Hour + time.Duration(minute)*time.Minute, PerSecond: share * noon}
	}
	return Curve{
		clock(0, 0, 0.05), clock(2, 0, 0.05), clock(2, 0, 0), // silence
		clock(5, 0, 0), clock(6, 30, 0.15), clock(9, 0, 0.7), // the morning
		clock(11, 0, 0.75), clock(12, 15, 1), clock(13, 0, 1), clock(14, 0, 0.7), // noon
		clock(17, 0, 0.7), clock(19, 0, 0.45),
		clock(20, 10, 0.5), clock(20, 15, 1.6), clock(20, 45, 1.6), clock(20, 55, 0.5), // the burst
		clock(22, 0, 0.3), clock(24, 0, 0.05),
	}
}
