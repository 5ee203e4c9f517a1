package fleet

import (
	"fmt"
	"math"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/shared/snapshot"
)

func TestElapsedGoingBack(t *testing.T) {
	l := newLocal()
	s := l.Connect()
	say(t, s, 5, gpu(0, values{"temperature": 40}))
	before := l.Node()
	assert.EqualError(t, apply(t, s, "w", 4.9, 6, gpu(0, nil)), "elapsed went back from 5s to 4.9s")
	assert.EqualError(t, apply(t, s, "w", 0, 6, gpu(0, nil)), "elapsed went back from 5s to 0s")
	assert.Same(t, before, l.Node())
	require.NoError(t, apply(t, l.Connect(), "other", 1, 6, gpu(1, nil)), "each connection has a clock of its own")
}

// A sample is as old as it is, however long it waited in the socket.
func TestAgeOfASampleThatWaited(t *testing.T) {
	l := newLocal()
	s := l.Connect()
	require.NoError(t, apply(t, s, "w", 1000, 10, gpu(0, nil)))
	assert.Equal(t, at(10), l.Node().Heard, "the first can only be as old as its arrival")

	// The scaler was busy for 4 s: three samples arrive in one go.
	for _, taken := range []float64{1001, 1002, 1003} {
		require.NoError(t, apply(t, s, "w", taken, 14, gpu(0, nil)))
		assert.Equal(t, at(10+taken-1000), public(t, l, "GPU-0").Heard)
	}

	// One that travels faster than all before shows that those were older.
	require.NoError(t, apply(t, s, "w", 1004, 13.5+.3, gpu(0, nil)))
	require.NoError(t, apply(t, s, "w", 1005, 15, gpu(0, nil)))
	assert.Equal(t, at(14.8), public(t, l, "GPU-0").Heard)
}

// Readings that waited fall into the seconds in which they were taken.
func TestWindowOfSamplesThatWaited(t *testing.T) {
	l := newLocal()
	s := l.Connect()
	for taken := range 20 {
		arrives := float64(taken)
		if taken >= 10 {
			arrives = 19
		}
		require.NoError(t, apply(t, s, "w", 100+float64(taken), arrives, gpu(0, values{"temperature": float64(taken)})))
	}
	assert.Equal(t, 12.0, value(t, l, "GPU-0", "temperature", 15*time.Second), "the mean of 5 to 19")
}

func TestTimeNeverGoesBack(t *testing.T) {
	l := newLocal()
	s := l.Connect()
	require.NoError(t, apply(t, s, "w", 1000, 10, gpu(0, nil))) // waited for 3 s
	require.NoError(t, apply(t, s, "w", 1001, 8, gpu(0, nil)))
	assert.Equal(t, at(10), l.Node().Heard)
	require.NoError(t, apply(t, s, "w", 1004, 11, gpu(0, nil)))
	assert.Equal(t, at(11), l.Node().Heard)
}

func TestWriterWithoutAClock(t *testing.T) {
	l := newLocal()
	s := l.Connect()
	for i := range 4 {
		require.NoError(t, apply(t, s, "simple", 0, float64(i), gpu(0, values{"temperature": float64(i)})))
		assert.Equal(t, at(float64(i)), public(t, l, "GPU-0").Heard)
	}
	assert.Equal(t, 1.5, value(t, l, "GPU-0", "temperature", 15*time.Second))
}

// Times that no honest writer sends neither overflow nor reach the future.
func TestAbsurdClock(t *testing.T) {
	l := newLocal()
	s := l.Connect()
	for i, e := range []time.Duration{1, math.MaxInt64 / 2, math.MaxInt64, math.MaxInt64} {
		require.NoError(t, s.Apply(&snapshot.Sample{Elapsed: e, Devices: []snapshot.Device{gpu(0, nil)}}, at(float64(i))))
		heard := l.Node().Heard
		assert.False(t, heard.After(at(float64(i))), heard)
		assert.False(t, heard.Before(epoch), heard)
	}
	assert.ErrorContains(t, l.Node().Ready(at(30), staleAfter), "nothing heard for")
}

// A sample that is repeated with its time, as from a reader that hangs, ages.
func TestRepeatedSampleAges(t *testing.T) {
	l := newLocal()
	s := l.Connect()
	for now := range 30 {
		require.NoError(t, apply(t, s, "w", 1, float64(now), gpu(0, values{"temperature": 1})))
	}
	assert.Equal(t, at(0), l.Node().Heard)
	assert.Error(t, l.Node().Ready(at(29), staleAfter))
}

// Names that change with every message leave nothing behind.
func TestNamesThatChange(t *testing.T) {
	l := newLocal()
	s := l.Connect()
	for i := range 2000 {
		d := gpu(0, values{})
		d.Failed, d.Counters = map[string]string{}, values{}
		for j := range snapshot.MaxMetrics {
			d.Values[fmt.Sprintf("x_%d_%d", i, j)] = 1
			d.Failed[fmt.Sprintf("x_failed_%d_%d", i, j)] = "BROKEN"
			d.Counters[fmt.Sprintf("counter_%d_%d", i, j)] = 1
		}
		say(t, s, float64(i), d)
	}
	state := l.devices["GPU-0"]
	assert.Len(t, state.gauges, snapshot.MaxMetrics)
	assert.Empty(t, state.counters)
	assert.Len(t, state.public.failed, snapshot.MaxMetrics)
	assert.LessOrEqual(t, len(state.reported), snapshot.MaxMetrics)
	assert.Equal(t, 1+2*snapshot.MaxMetrics, l.weight)
	for i := range 2000 {
		d := gpu(0, nil)
		d.ID = fmt.Sprint("GPU-never-twice-", i)
		say(t, s, 3000+float64(i), d)
	}
	assert.Len(t, l.devices, 1)
	assert.Equal(t, 1, l.weight)
}

// Names that are neither built in nor x_ are left to newer versions.
func TestUnknownMetric(t *testing.T) {
	l := newLocal()
	say(t, l.Connect(), 1, gpu(0, values{"quantum_utilization": 50}))
	assert.Zero(t, public(t, l, "GPU-0").Means().Len())
	assert.Equal(t, 1, l.weight, "the device itself")
}

// What writers can make the node remember is bounded, and a writer that has
// gone is in nobody's way.
func TestBounds(t *testing.T) {
	full := func(from, n int) []snapshot.Device {
		var all []snapshot.Device
		for i := range n {
			d := gpu(from+i, values{})
			for j := range 63 {
				d.Values[fmt.Sprint("x_", j)] = 1
			}
			all = append(all, d) // of weight 64
		}
		return all
	}
	l := newLocal()
	s, other := l.Connect(), l.Connect()
	assert.EqualError(t, apply(t, s, "w", 1, 1, full(0, 97)...), "6208 devices and values; at most 6144 are allowed for one writer")
	say(t, s, 1, full(0, 96)...)
	say(t, s, 2, full(0, 96)...)
	assert.Equal(t, 6144, l.weight, "the same again is no more")
	require.NoError(t, apply(t, other, "v", 1, 3, full(200, 32)...))
	assert.Equal(t, maxWeight, l.weight)
	assert.EqualError(t, apply(t, l.Connect(), "u", 1, 3, gpu(300, nil)),
		"the writers of this node report too much: at most 1024 devices, and 8192 devices and values, are allowed")

	// The devices of those who have gone make room, the oldest first.
	s.Close(at(4))
	sidecar := l.Connect()
	require.NoError(t, apply(t, sidecar, "nvmlsidecar", 1, 5, full(300, 19)...))
	assert.LessOrEqual(t, l.weight, maxWeight)
	require.NotNil(t, l.devices["GPU-300"])
	require.NotNil(t, l.devices["GPU-200"], "its writer lives")

	// A device without a value is one too many as well.
	for c := range 40 {
		churn := l.Connect()
		var all []snapshot.Device
		for i := range snapshot.MaxDevices {
			all = append(all, gpu(1000+c*snapshot.MaxDevices+i, nil))
		}
		require.NoError(t, apply(t, churn, fmt.Sprint("churn-", c), 1, 6, all...))
		churn.Close(at(6))
		require.LessOrEqual(t, len(l.devices), maxDevices)
	}
	require.NoError(t, apply(t, sidecar, "nvmlsidecar", 2, 7, full(300, 19)...))

	// Stale leftovers of a vendor that somebody reports are not missed.
	require.NoError(t, apply(t, other, "v", 20, 20, full(200, 32)...))
	require.NoError(t, apply(t, sidecar, "nvmlsidecar", 20, 20, full(300, 19)...))
	assert.Len(t, l.devices, 32+19)
}

func TestUpdated(t *testing.T) {
	l := newLocal()
	f := New(l)
	s := l.Connect()
	closed := func(c <-chan struct{}) bool {
		select {
		case <-c:
			return true
		default:
			return false
		}
	}
	first := f.Updated()
	assert.False(t, closed(first))
	say(t, s, 1, gpu(0, nil))
	assert.True(t, closed(first))
	second := f.Updated()
	assert.False(t, closed(second))
	require.Error(t, apply(t, s, "w", 0, 2, gpu(0, nil)))
	assert.False(t, closed(second), "a rejected sample is no change")
	s.Close(at(3))
	assert.True(t, closed(second), "the end of a writer is")
}

// Taking Updated before Node misses no change: whoever then sleeps until
// Updated sees the last sample. Meant for -race, too.
func TestConcurrentReadersAndWriters(t *testing.T) {
	const writers, samples = 4, 200
	l := newLocal()
	f := New(l)
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			s := l.Connect()
			for i := range samples {
				d := gpu(w, values{"temperature": float64(i)})
				d.Counters = values{"energy_joules": float64(i)}
				if i%50 == 49 && i+1 < samples {
					s.Close(at(float64(i)))
					s = l.Connect()
				}
				assert.NoError(t, s.Apply(&snapshot.Sample{Writer: fmt.Sprint("w", w), Elapsed: elapsed(float64(i)), Devices: []snapshot.Device{d}}, at(float64(i))))
				runtime.Gosched()
			}
		})
	}
	complete := func(n *Node) bool {
		if len(n.Devices) < writers {
			return false
		}
		for _, d := range n.Devices {
			if v, ok := d.Value("temperature", 0); !ok || v != samples-1 {
				return false
			}
		}
		return true
	}
	for range 8 {
		all.Go(func() {
			deadline := time.After(20 * time.Second)
			for {
				updated, n := f.Updated(), l.Node()
				for _, d := range n.Devices {
					for range d.Means().All() {
					}
					_ = d.MayHave("power_draw")
				}
				_ = n.Ready(at(samples), staleAfter)
				if complete(n) {
					return
				}
				select {
				case <-updated:
				case <-deadline:
					assert.Fail(t, "slept through a change")
					return
				}
			}
		})
	}
	all.Wait()
}

func TestAge(t *testing.T) {
	for want, d := range map[string]time.Duration{"0s": 0, "3.5s": 3_460 * time.Millisecond, "10.1s": 10_001 * time.Millisecond, "1m41s": 100_100 * time.Millisecond} {
		assert.Equal(t, want, Age(d).String())
	}
	assert.False(t, strings.Contains(Age(59_999*time.Millisecond).String(), "."))
}
