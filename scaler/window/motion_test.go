package window

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

// second is a gauge with one reading a second, that of a function of the second.
func second(n int, v func(s int) float64) (g Gauge, t time.Duration) {
	for s := range n {
		t = time.Duration(s) * time.Second
		g.Add(t, v(s))
	}
	return g, t
}

// Memory that follows a load moves in several minutes; a model that is loaded is one step.
func TestMoves(t *testing.T) {
	for name, c := range map[string]struct {
		v    func(s int) float64
		want int
	}{
		"reserved at start":                  {func(int) float64 { return 90 }, 0},
		"noise below a point":                {func(s int) float64 { return 90 + float64(s%2)*0.9 }, 0},
		"a model is loaded":                  {func(s int) float64 { return 10 + 80*step(s, 150) }, 1},
		"a model is loaded between minutes":  {func(s int) float64 { return 10 + 80*step(s, 301-120) }, 1},
		"two models":                         {func(s int) float64 { return 10 + 40*step(s, 50) + 40*step(s, 200) }, 2},
		"a slow ramp, a point in 59 s":       {func(s int) float64 { return 10 + float64(s)/59 }, 5},
		"a wave":                             {func(s int) float64 { return 50 + float64(s%20) }, 5},
		"moved in the last three minutes":    {func(s int) float64 { return 50 + step(s, 125)*float64(s%20) }, 3},
		"exactly one point in three minutes": {func(s int) float64 { return 50 + step(s, 125)*float64(s%2) }, 3},
	} {
		g, at := second(301, c.v)
		assert.Equal(t, c.want, g.Moves(at, 1), name)
	}
}

func step(s, at int) float64 {
	if s < at {
		return 0
	}
	return 1
}

func TestExceeds(t *testing.T) {
	const span = 15 * time.Second
	g, _ := second(300, func(int) float64 { return 5 })
	assert.False(t, g.Exceeds(span, 5), "5 is not above 5")
	g, _ = second(300, func(s int) float64 { return 100 * (step(s, 100) - step(s, 101)) })
	assert.True(t, g.Exceeds(span, 5), "one second at 100 %: 6.7 % over 15 s")
	assert.False(t, g.Exceeds(span, 7))
	g, _ = second(14, func(int) float64 { return 100 })
	assert.False(t, g.Exceeds(span, 5), "there are no 15 s of it")
	g, _ = second(401, func(s int) float64 { return 100 * (1 - step(s, 100)) })
	assert.False(t, g.Exceeds(span, 5), "more than five minutes ago")
	g, _ = second(390, func(s int) float64 { return 100 * (1 - step(s, 106)) })
	assert.True(t, g.Exceeds(span, 5), "just within")
	g = Gauge{}
	for s := 0; s < 300; s += 30 {
		g.Add(time.Duration(s)*time.Second, 50)
	}
	assert.True(t, g.Exceeds(span, 5), "one reading in 30 s")
}

// A window stands on what was read in it: not on what is older than a moment, nor on
// a time without readings.
func TestCoverage(t *testing.T) {
	const s = time.Second
	g, at := second(21, func(s int) float64 { return 100 * (1 - step(s, 10)) })
	m, c, ok := g.Since(at, 10*s)
	assert.True(t, ok)
	assert.Equal(t, Means{}, m, "what was read before does not count")
	assert.Equal(t, Coverage{0, 10 * s, 10 * s, 10 * s}, c)
	_, c, _ = g.Since(at, 9*s+s/2)
	assert.Equal(t, 10*s, c[1], "in whole seconds")
	m, c, _ = g.Since(at, 0)
	assert.InDelta(t, 100*10/21.0, m[2], 1e-9)
	assert.Equal(t, Coverage{0, 15 * s, 20 * s, 20 * s}, c)
	_, _, ok = g.Since(at, at)
	assert.False(t, ok, "nothing was read since")

	g, at = second(400, func(int) float64 { return 1 })
	_, c, _ = g.Since(at, -s)
	assert.Equal(t, Whole, c)

	g.Add(at+20*s, 1) // after a gap
	_, c, _ = g.Since(at+20*s, -s)
	assert.Equal(t, Coverage{0, 0, 40 * s, 280 * s}, c)

	slow := Gauge{}
	for i := range 20 {
		slow.Add(time.Duration(i)*30*s, 1)
	}
	_, c, _ = slow.Since(19*30*s, -s)
	assert.Equal(t, Whole, c, "one reading in 30 s, and that is how it is read")
}

func TestCounterSince(t *testing.T) {
	const s = time.Second
	c := Counter{}
	for i := range 400 {
		c.Add(time.Duration(i)*s, float64(min(i, 390)*100+max(0, i-390)*10))
	}
	m, covered, ok := c.Since(391 * s)
	assert.True(t, ok)
	assert.InDelta(t, 10, m[3], 1e-9, "what was counted before does not count")
	assert.Equal(t, Coverage{0, 8 * s, 8 * s, 8 * s}, covered)
	_, covered, _ = c.Since(-s)
	assert.Equal(t, Whole, covered)
	_, _, ok = c.Since(399 * s)
	assert.False(t, ok, "a rate needs two readings")
}

// A reader that dies after each reading, later each time, covers no window.
func TestGrowingSilences(t *testing.T) {
	g := Gauge{}
	for _, s := range []int{0, 41, 122, 283} {
		at := time.Duration(s) * time.Second
		g.Add(at, 100)
		_, c, _ := g.Since(at, -time.Second)
		assert.Zero(t, c[1], "%d", s)
	}
}
