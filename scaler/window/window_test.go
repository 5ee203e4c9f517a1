package window

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// taken is one reading as a test remembers it.
type taken struct {
	at    time.Duration
	value float64
}

// naive is the definition that Gauge has to meet, with all readings kept: the
// plain mean of the readings in the last whole seconds of the span.
func naive(all []taken, t time.Duration) (m Means, ok bool) {
	for w, span := range Windows {
		if span == 0 {
			m[w] = all[len(all)-1].value
			continue
		}
		sum, n := 0.0, 0
		for _, r := range all {
			if int64(r.at/time.Second) > int64(t/time.Second)-int64(span/time.Second) {
				sum += r.value
				n++
			}
		}
		if n == 0 {
			return m, false
		}
		m[w] = sum / float64(n)
	}
	return m, true
}

// rhythms are ways in which readings may arrive.
var rhythms = map[string]func(r *rand.Rand) time.Duration{
	"once a second":      func(*rand.Rand) time.Duration { return time.Second },
	"with jitter":        func(r *rand.Rand) time.Duration { return time.Second + time.Duration(r.Int64N(4e8)) - 2e8 },
	"ten a second":       func(*rand.Rand) time.Duration { return 100 * time.Millisecond },
	"three in a second":  func(*rand.Rand) time.Duration { return 333 * time.Millisecond },
	"every 4 s":          func(*rand.Rand) time.Duration { return 4 * time.Second },
	"every 40 s":         func(*rand.Rand) time.Duration { return 40 * time.Second },
	"at any rate":        func(r *rand.Rand) time.Duration { return time.Duration(r.Int64N(5e9)) },
	"sometimes the same": func(r *rand.Rand) time.Duration { return time.Duration(r.IntN(2)) * 700 * time.Millisecond },
	"with gaps": func(r *rand.Rand) time.Duration {
		if r.IntN(50) == 0 {
			return time.Duration(r.Int64N(int64(8 * time.Minute)))
		}
		return time.Second
	},
}

func TestGaugeIsTheNaiveMean(t *testing.T) {
	for name, step := range rhythms {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(2) {
				r := rand.New(rand.NewPCG(seed, 7))
				at := time.Duration(r.Int64N(3e9))
				var g Gauge
				var all []taken
				for range 1200 {
					v := r.Float64() * 100
					g.Add(at, v)
					all = append(all, taken{at, v})
					want, ok := naive(all, at)
					got, gotOK := g.Means(at)
					require.Equal(t, ok, gotOK)
					for w := range want {
						require.InDelta(t, want[w], got[w], 1e-9, "%v at %v, seed %d", Windows[w], at, seed)
					}
					require.LessOrEqual(t, len(g.buckets), int(Longest/time.Second))
					at += step(r)
				}
			}
		})
	}
}

func TestGaugeByHand(t *testing.T) {
	var g Gauge
	_, ok := g.Means(0)
	assert.False(t, ok, "empty")

	g.Add(0, 10)
	m, ok := g.Means(0)
	assert.True(t, ok)
	assert.Equal(t, Means{10, 10, 10, 10}, m, "start-up: one reading is all windows")

	for s := 1; s < 60; s++ {
		g.Add(time.Duration(s)*time.Second, float64(10+s)) // 11 to 69
	}
	m, _ = g.Means(59 * time.Second)
	assert.Equal(t, Means{69, 62, 39.5, 39.5}, m, "15 s are the last 15 readings, 5 m as many as there are")

	m, ok = g.Means(70 * time.Second)
	assert.True(t, ok)
	assert.Equal(t, Means{69, 67.5, 45, 39.5}, m, "in silence the windows move on")
	_, ok = g.Means(59*time.Second + 15*time.Second)
	assert.False(t, ok, "15 s after the last reading the shortest window is empty")
}

// A reading that is out of order, as after a takeover between two writers, is
// counted where it is and breaks nothing.
func TestGaugeOutOfOrder(t *testing.T) {
	var g Gauge
	g.Add(10*time.Second, 10)
	g.Add(9*time.Second, 20)
	m, ok := g.Means(9 * time.Second)
	assert.True(t, ok)
	assert.Equal(t, Means{20, 15, 15, 15}, m)
}

func TestGaugeMemory(t *testing.T) {
	var g Gauge
	for i := range 1_000_000 {
		g.Add(time.Duration(i)*10*time.Millisecond, 1)
	}
	assert.Len(t, g.buckets, 300)
	assert.LessOrEqual(t, cap(g.buckets), 600, "the array behind it is bounded, too")
	steady := testing.AllocsPerRun(1000, func() { g.Add(time.Hour*9, 1) })
	assert.Zero(t, steady)
}

func TestCounterAtAConstantRate(t *testing.T) {
	for name, step := range rhythms {
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(3, 7))
			at := time.Duration(r.Int64N(3e9))
			var c Counter
			for n := range 1500 {
				c.Add(at, 1e6+250*at.Seconds())
				if m, ok := c.Rates(); ok {
					for w := range m {
						require.InDelta(t, 250, m[w], 1e-3, "%v after %d readings", Windows[w], n)
					}
				}
				require.LessOrEqual(t, len(c.readings), 302)
				at += step(r)
			}
		})
	}
}

// The rate over a window is the slope to a reading that is about as old as the
// window: half a second less at least, and not more than the readings' own
// distance (and the second they are folded into) beyond.
func TestCounterWindowEdge(t *testing.T) {
	for name, longest := range map[string]time.Duration{
		"once a second": time.Second, "with jitter": 1200 * time.Millisecond, "ten a second": 100 * time.Millisecond,
		"three in a second": 333 * time.Millisecond, "every 4 s": 4 * time.Second, "every 40 s": 40 * time.Second,
	} {
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(5, 7))
			at, v := time.Duration(r.Int64N(3e9)), 0.0
			var c Counter
			var all []taken
			for range 900 {
				c.Add(at, v)
				all = append(all, taken{at, v})
				if m, ok := c.Rates(); ok {
					for w, span := range Windows {
						requireSlope(t, all, m[w], span, longest)
					}
				}
				at += rhythms[name](r)
				v += r.Float64() * 1000
			}
		})
	}
}

func requireSlope(t *testing.T, all []taken, rate float64, span, longest time.Duration) {
	t.Helper()
	last := all[len(all)-1]
	if span == 0 {
		before := all[len(all)-2]
		require.Equal(t, (last.value-before.value)/(last.at-before.at).Seconds(), rate)
		return
	}
	if last.at-all[0].at < span-500*time.Millisecond {
		require.InDelta(t, (last.value-all[0].value)/(last.at-all[0].at).Seconds(), rate, 1e-9, "start-up: since the first reading")
		return
	}
	for _, from := range all[:len(all)-1] {
		if (last.value-from.value)/(last.at-from.at).Seconds() == rate {
			age := last.at - from.at
			least := span - 500*time.Millisecond
			if span == Longest {
				least = span - longest - time.Second // nothing older is kept
			}
			require.GreaterOrEqual(t, age, least)
			require.LessOrEqual(t, age, span+longest+time.Second)
			return
		}
	}
	require.Fail(t, fmt.Sprintf("%v is no slope between two readings", rate))
}

func TestCounterByHand(t *testing.T) {
	second := func(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
	for name, c := range map[string]struct {
		readings []taken
		want     Means
		ok       bool
	}{
		"none": {},
		"one":  {readings: []taken{{0, 5}}},
		"two":  {[]taken{{0, 5}, {second(1), 7}}, Means{2, 2, 2, 2}, true},
		"two within one second, faster than the buckets": {
			[]taken{{second(.2), 5}, {second(.4), 7}}, Means{10, 10, 10, 10}, true},
		"at rest":                  {[]taken{{0, 5}, {second(1), 5}, {second(2), 5}}, Means{}, true},
		"equal timestamps":         {[]taken{{0, 5}, {second(1), 7}, {second(1), 99}}, Means{2, 2, 2, 2}, true},
		"time that goes back":      {[]taken{{0, 5}, {second(2), 9}, {second(1), 99}}, Means{2, 2, 2, 2}, true},
		"a reset leaves nothing":   {[]taken{{0, 5}, {second(1), 7}, {second(2), 1}}, Means{}, false},
		"after a reset":            {[]taken{{0, 5}, {second(1), 7}, {second(2), 1}, {second(3), 4}}, Means{3, 3, 3, 3}, true},
		"a reset to the same time": {[]taken{{0, 5}, {second(1), 7}, {second(1), 1}, {second(2), 2}}, Means{}, false},
		"0s is the last two":       {[]taken{{0, 0}, {second(10), 100}, {second(11), 100}}, Means{0, 100. / 11, 100. / 11, 100. / 11}, true},
		"a gap is bridged": {
			[]taken{{0, 0}, {second(1), 100}, {second(101), 100}}, Means{0, 0, 0, 100. / 101}, true},
		"a gap longer than all windows": {[]taken{{0, 0}, {second(1), 100}, {second(400), 900}}, Means{}, false},
	} {
		var series Counter
		for _, r := range c.readings {
			series.Add(r.at, r.value)
		}
		got, ok := series.Rates()
		assert.Equal(t, c.ok, ok, name)
		assert.InDeltaSlice(t, c.want[:], got[:], 1e-9, name)
	}
}

// 15 s at one reading a second are 15 intervals, early or late as each may be.
func TestCounterJitter(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 9))
	var c Counter
	var all []taken
	for s := range 400 {
		at := time.Duration(s)*time.Second + 500*time.Millisecond + time.Duration(r.Int64N(4e8)) - 2e8
		all = append(all, taken{at, float64(s * s)})
		c.Add(at, float64(s*s))
		if s < 300 {
			continue
		}
		m, _ := c.Rates()
		for w, intervals := range []int{1, 15, 60, 300} {
			from := all[s-intervals]
			require.InDelta(t, (all[s].value-from.value)/(at-from.at).Seconds(), m[w], 1e-9, "%v at %d s", Windows[w], s)
		}
	}
}

func TestIndex(t *testing.T) {
	for i, w := range Windows {
		assert.Equal(t, i, Index(w))
	}
	assert.Equal(t, -1, Index(time.Second))
	assert.Equal(t, Longest, Windows[len(Windows)-1])
}
