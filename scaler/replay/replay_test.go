package replay

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/shared/fixture"
	"gpuscaler/shared/snapshot"
)

type played struct {
	sample snapshot.Sample
	at     time.Duration
}

type recorder struct {
	start  time.Time
	all    []played
	closed int
	apply  func(n int) error
}

func (r *recorder) Apply(s *snapshot.Sample, now time.Time) error {
	r.all = append(r.all, played{*s, now.Sub(r.start)})
	if r.apply != nil {
		return r.apply(len(r.all) - 1)
	}
	return nil
}

func (r *recorder) Close(time.Time) { r.closed++ }

// three samples at 0, 1 and 3 s, on a recording that began at 100 s, with a
// counter that grows by 10 a second.
func three() *fixture.Fixture {
	f := &fixture.Fixture{}
	for _, t := range []time.Duration{100, 101, 103} {
		f.Samples = append(f.Samples, snapshot.Sample{Writer: "fixture", Elapsed: t * time.Second, Devices: []snapshot.Device{{
			ID: "GPU-0", Vendor: "nvidia",
			Values:   map[string]float64{"gpu_utilization": float64(t - 100)},
			Counters: map[string]float64{"energy_joules": 1000 + 10*float64(t-100)},
		}}})
	}
	return f
}

// run plays f for so long, on a clock that costs nothing.
func run(t *testing.T, f *fixture.Fixture, long time.Duration) *recorder {
	var r *recorder
	synctest.Test(t, func(t *testing.T) {
		r = &recorder{start: time.Now()}
		ctx, cancel := context.WithTimeout(t.Context(), long)
		defer cancel()
		require.NoError(t, Run(ctx, f, r))
		assert.Equal(t, long, time.Since(r.start), "it plays until it is told to stop, and no longer")
		assert.Equal(t, 1, r.closed)
	})
	return r
}

func TestPlaysInTimeAndForEver(t *testing.T) {
	r := run(t, three(), 13*time.Second-time.Millisecond)
	want := []time.Duration{0, 1, 3, 4, 5, 7, 8, 9, 11, 12}
	require.Len(t, r.all, len(want))
	for i, p := range r.all {
		assert.Equal(t, want[i]*time.Second, p.at, "sample %d is played when it is due", i)
		assert.Equal(t, p.at, p.sample.Elapsed)
		require.NoError(t, p.sample.Validate())
		d := p.sample.Devices[0]
		assert.Equal(t, []float64{0, 1, 3}[i%3], d.Values["gpu_utilization"], "values begin anew")
		assert.InDelta(t, 1000+10*p.at.Seconds(), d.Counters["energy_joules"], 1e-9, "counters go on")
	}
	assert.Equal(t, 100*time.Second, three().Samples[0].Elapsed)
}

func TestOneSampleIsPlayedEachSecond(t *testing.T) {
	f := three()
	f.Samples = f.Samples[:1]
	r := run(t, f, 4500*time.Millisecond)
	require.Len(t, r.all, 5)
	assert.Equal(t, 4*time.Second, r.all[4].at)
}

// A sink that was busy gets what it missed at once, each with its own time.
func TestCatchesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{start: time.Now()}
		r.apply = func(n int) error {
			if n == 1 {
				time.Sleep(4500 * time.Millisecond) // until 5.5 s
			}
			return nil
		}
		ctx, cancel := context.WithTimeout(t.Context(), 7500*time.Millisecond)
		defer cancel()
		require.NoError(t, Run(ctx, three(), r))
		var at []time.Duration
		for _, p := range r.all {
			at = append(at, p.at)
		}
		assert.Equal(t, []time.Duration{0, time.Second, 5500 * time.Millisecond, 5500 * time.Millisecond, 5500 * time.Millisecond, 7 * time.Second}, at)
		assert.Equal(t, 3*time.Second, r.all[2].sample.Elapsed)
	})
}

func TestSinkThatRefuses(t *testing.T) {
	r := &recorder{start: time.Now(), apply: func(int) error { return errors.New("no") }}
	assert.EqualError(t, Run(t.Context(), three(), r), "replay: sample 0: no")
	assert.Equal(t, 1, r.closed)
}

// Every recording that comes with the scaler can be played past its end.
func TestFixtures(t *testing.T) {
	f, err := fixture.Load("../../testdata/h200-bursts.csv")
	require.NoError(t, err)
	r := run(t, f, f.Period()+time.Duration(5)*time.Second)
	require.Greater(t, len(r.all), len(f.Samples))
	for i := 1; i < len(r.all); i++ {
		before, after := r.all[i-1].sample, r.all[i].sample
		require.Greater(t, after.Elapsed, before.Elapsed)
		require.GreaterOrEqual(t, after.Devices[0].Counters["energy_joules"], before.Devices[0].Counters["energy_joules"])
	}
}
