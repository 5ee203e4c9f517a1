package sampler

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/shared/snapshot"
)

// reader takes as long as it is told to, reading by reading.
type reader struct {
	takes []time.Duration // the last one counts for all that follow
	fail  map[int]error

	n, inside atomic.Int32
	begun     atomic.Pointer[time.Time]
}

func (r *reader) Read(now time.Time) (*snapshot.Sample, error) {
	if r.inside.Add(1) != 1 {
		panic("two readings at a time")
	}
	defer r.inside.Add(-1)
	n := int(r.n.Add(1)) - 1
	r.begun.Store(&now)
	time.Sleep(r.takes[min(n, len(r.takes)-1)])
	r.begun.Store(nil)
	if err := r.fail[n]; err != nil {
		return nil, err
	}
	return &snapshot.Sample{}, nil
}

func (r *reader) Busy(now time.Time) time.Duration {
	if begun := r.begun.Load(); begun != nil {
		return now.Sub(*begun)
	}
	return 0
}

// run gives the times at which samples were emitted, and what they were.
func run(r *reader, total time.Duration) (at []time.Duration, samples []*snapshot.Sample, ended time.Duration, err error) {
	s := &Sampler{Reader: r, Interval: time.Second, HangTimeout: 30 * time.Second, Writer: "w", Version: "v"}
	start := time.Now()
	ctx, cancel := context.WithTimeout(context.Background(), total)
	defer cancel()
	err = s.Run(ctx, func(sample *snapshot.Sample) {
		at = append(at, time.Since(start))
		samples = append(samples, sample)
	})
	ended = time.Since(start)
	// A reading that is still in progress ends here, unheard.
	time.Sleep(200 * time.Second)
	return at, samples, ended, err
}

const (
	ms = time.Millisecond
	s  = time.Second
)

func TestTicks(t *testing.T) {
	for name, c := range map[string]struct {
		takes []time.Duration
		want  []time.Duration
	}{
		"quick":                 {[]time.Duration{10 * ms}, []time.Duration{10 * ms, 1010 * ms, 2010 * ms, 3010 * ms, 4010 * ms, 5010 * ms}},
		"as long as it may":     {[]time.Duration{990 * ms}, []time.Duration{990 * ms, 1990 * ms, 2990 * ms, 3990 * ms, 4990 * ms}},
		"one is slow":           {[]time.Duration{0, 1500 * ms, 0}, []time.Duration{0, 2500 * ms, 2500 * ms, 3 * s, 4 * s, 5 * s}},
		"ticks are not made up": {[]time.Duration{3500 * ms, 0}, []time.Duration{3500 * ms, 3500 * ms, 4 * s, 5 * s}},
		"always too slow":       {[]time.Duration{1600 * ms}, []time.Duration{1600 * ms, 3200 * ms, 4800 * ms}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				at, samples, ended, err := run(&reader{takes: c.takes}, 5500*ms)
				require.NoError(t, err)
				assert.Equal(t, c.want, at)
				assert.Equal(t, 5500*ms, ended)
				for _, sample := range samples {
					assert.Equal(t, "w", sample.Writer)
					assert.Equal(t, "v", sample.Version)
				}
			})
		})
	}
}

// TestHang: nothing is emitted meanwhile, and the end comes in time.
func TestHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		at, _, ended, err := run(&reader{takes: []time.Duration{0, 100 * s}}, 1000*s)
		assert.Equal(t, []time.Duration{0}, at)
		var hang *ErrHang
		require.ErrorAs(t, err, &hang)
		assert.Greater(t, hang.Busy, 30*s)
		assert.Equal(t, 30*s, hang.Allowed)
		assert.ErrorContains(t, err, "more than --hang-timeout 30s")
		assert.InDelta(t, 33, ended.Seconds(), 2)
	})
}

// TestHangEnds: it goes on by itself.
func TestHangEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		at, _, _, err := run(&reader{takes: []time.Duration{0, 20500 * ms, 0}}, 23500*ms)
		require.NoError(t, err)
		assert.Equal(t, []time.Duration{0, 21500 * ms, 21500 * ms, 22 * s, 23 * s}, at)
	})
}

// TestStop: at once, also while a reading hangs; nothing is emitted after it,
// and its goroutine ends with it, which synctest sees to.
func TestStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		at, _, ended, err := run(&reader{takes: []time.Duration{0, 20 * s}}, 5*s)
		require.NoError(t, err)
		assert.Equal(t, []time.Duration{0}, at)
		assert.Equal(t, 5*s, ended)
	})
}

func TestReaderGivesUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		outdated := errors.New("outdated")
		at, _, ended, err := run(&reader{takes: []time.Duration{ms}, fail: map[int]error{2: outdated}}, 100*s)
		require.ErrorIs(t, err, outdated)
		assert.Len(t, at, 2)
		assert.Equal(t, 2001*ms, ended)
	})
}
