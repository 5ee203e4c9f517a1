package llmengine

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/deploy/e2e/arrivals"
)

// small is an engine that a few requests fill, loaded at once.
func small() Config {
	c := Default()
	c.Loading = 0
	return c
}

func engine(t *testing.T, c Config) *Engine {
	t.Helper()
	e, err := New(c)
	require.NoError(t, err)
	return e
}

func submit(t *testing.T, e *Engine, prompt, output int) ID {
	t.Helper()
	id, err := e.Submit(prompt, output)
	require.NoError(t, err)
	return id
}

// check asserts what is true of every engine at any time, and of its state after another.
func check(t *testing.T, e *Engine, before State) State {
	t.Helper()
	s := e.State()
	ensure := func(ok bool, what string) { // testify would be most of the test's time
		t.Helper()
		if !ok {
			require.FailNow(t, what, "%+v", s)
		}
	}
	ensure(s.Stats.Arrived == s.Stats.Finished+s.Stats.Cancelled+uint64(s.Waiting+s.Running), "conservation")

	used := 0
	var last ID
	for _, r := range e.running {
		ensure(r.blocks == blocksFor(r.cached+max(r.scheduled, blocked(r))), "blocks of a request")
		ensure(r.ID > last, "the batch is in order of arrival")
		used, last = used+r.blocks, r.ID
	}
	ensure(used == s.UsedBlocks, "blocks of the running requests")
	ensure(s.UsedBlocks <= s.Blocks && s.Running <= e.config.MaxRunning, "limits")
	for _, r := range e.waiting {
		ensure(r.blocks == 0, "a waiting request has no blocks")
		ensure(r.ID > last, "nobody overtakes")
		last = r.ID
	}
	ensure(!s.Ready || s.Waiting+s.Running == 0 || e.stepping, "an engine with requests works")
	ensure(s.BusyPercent >= 0 && s.BusyPercent <= 100, "busy")
	ensure(s.Stats.Finished == s.Stats.Latency.Count() && s.Stats.Finished == s.Stats.QueueTime.Count(), "latencies of finished requests")
	ensure(s.Stats.GenerationTokens == s.Stats.TimeToFirstToken.Count()+s.Stats.InterTokenLatency.Count(), "a latency for each token")
	if before.Blocks > 0 {
		was, is := counters(before.Stats), counters(s.Stats)
		for i := range was {
			ensure(is[i] >= was[i], "a counter went back")
		}
	}
	return s
}

// blocked is how many of a request's tokens have blocks but are not computed: a request in
// prefill has the blocks of its whole prompt.
func blocked(r *request) int {
	if r.decoding {
		return 0
	}
	return r.length() - r.cached
}

func counters(s Stats) []float64 {
	list := []float64{
		float64(s.Arrived), float64(s.Finished), float64(s.Cancelled), float64(s.Preemptions),
		float64(s.PromptTokens), float64(s.GenerationTokens),
	}
	for _, h := range []Histogram{s.TimeToFirstToken, s.InterTokenLatency, s.Latency, s.QueueTime} {
		list = append(list, h.Sum)
		for _, n := range h.Counts {
			list = append(list, float64(n))
		}
	}
	return list
}

// TestAnyTraffic: random requests, pauses and cancellations, on engines small enough that
// they queue and preempt, break nothing; all that is not cancelled finishes; and the same
// seed does the same.
func TestAnyTraffic(t *testing.T) {
	run := func(seed uint64, check func(*testing.T, *Engine, State) State) ([]Completion, State) {
		rng := rand.New(rand.NewPCG(seed, 0))
		c := small()
		c.MaxRunning = 1 + rng.IntN(8)
		c.KVTokens = 400 + rng.IntN(1500)
		c.BatchTokens = c.MaxRunning + rng.IntN(300)
		c.Loading = time.Duration(rng.IntN(3)) * time.Second
		c.Jitter, c.Seed = 0.2, seed
		e := engine(t, c)
		var s State
		var done []Completion
		var ids []ID
		for range 400 {
			switch rng.IntN(10) {
			case 0, 1, 2:
				ids = append(ids, submit(t, e, 1+rng.IntN(200), 1+rng.IntN(150)))
			case 3:
				if len(ids) > 0 {
					e.Cancel(ids[rng.IntN(len(ids))])
				}
			default:
				done = append(done, e.Advance(e.Now()+time.Duration(rng.IntN(300))*time.Millisecond)...)
			}
			s = check(t, e, s)
		}
		for s.Waiting+s.Running > 0 {
			next, ok := e.Next()
			require.True(t, ok, "no request is forgotten")
			done = append(done, e.Advance(next)...)
			s = check(t, e, s)
		}
		require.Zero(t, s.UsedBlocks)
		require.Equal(t, s.Stats.Arrived, s.Stats.Finished+s.Stats.Cancelled)
		require.Len(t, done, int(s.Stats.Finished))
		for _, d := range done {
			require.Less(t, d.Admitted, d.FirstToken)
			require.LessOrEqual(t, d.Arrived, d.Admitted)
			require.LessOrEqual(t, d.FirstToken, d.Finished)
		}
		return done, s
	}
	var preempted uint64
	for seed := range uint64(20) {
		done, s := run(seed, check)
		again, state := run(seed, func(_ *testing.T, e *Engine, _ State) State { return e.State() })
		require.Equal(t, done, again)
		require.Equal(t, s, state)
		preempted += s.Stats.Preemptions
	}
	assert.Greater(t, preempted, uint64(100), "the traffic was enough to preempt")
}

// TestAdvanceIsOneTime: many small advances and one large one give the same.
func TestAdvanceIsOneTime(t *testing.T) {
	c := small()
	c.Jitter = 0.3
	one, many := engine(t, c), engine(t, c)
	for range 40 {
		submit(t, one, 500, 100)
		submit(t, many, 500, 100)
	}
	a := one.Advance(time.Hour)
	var b []Completion
	for many.Now() < time.Hour {
		b = append(b, many.Advance(many.Now()+7*time.Second/3)...)
	}
	many.Advance(time.Hour)
	assert.Equal(t, a, b)
	assert.Len(t, a, 40)
	assert.Equal(t, one.State().Stats, many.State().Stats)
}

// TestOneRequest: the times of a request alone are those of the configuration.
func TestOneRequest(t *testing.T) {
	e := engine(t, small()) // 8000 tokens/s, 20.5 ms for a step of one
	submit(t, e, 4000, 11)
	assert.Equal(t, 250, e.State().UsedBlocks)
	assert.Empty(t, e.Advance(600*time.Millisecond))
	done := e.Advance(time.Minute)
	require.Len(t, done, 1)
	assert.Equal(t, Completion{
		ID: 1, PromptTokens: 4000, OutputTokens: 11,
		FirstToken: 500 * time.Millisecond, Finished: 705 * time.Millisecond,
	}, done[0])
	s := e.State().Stats
	assert.Equal(t, uint64(4000), s.PromptTokens)
	assert.Equal(t, uint64(11), s.GenerationTokens)
	assert.InDelta(t, 0.205, s.InterTokenLatency.Sum, 1e-9)
	assert.Equal(t, uint64(10), s.InterTokenLatency.Counts[1], "above 10 and up to 25 ms")
	assert.Equal(t, uint64(1), s.TimeToFirstToken.Counts[9], "500 ms is in the bucket of 500 ms")
}

// TestPrefillIsShared: two prompts together take as long as one of both lengths, and delay
// the tokens of those that decode.
func TestPrefillIsShared(t *testing.T) {
	e := engine(t, small())
	submit(t, e, 16, 200)
	e.Advance(100 * time.Millisecond)
	submit(t, e, 4000, 1)
	submit(t, e, 4000, 1)
	done := e.Advance(time.Minute)
	require.Len(t, done, 3)
	assert.Equal(t, []ID{2, 3, 1}, []ID{done[0].ID, done[1].ID, done[2].ID})
	assert.InDelta(t, 1.1, (done[1].Finished - done[1].Arrived).Seconds(), 0.1, "8000 tokens, and a decode step beside each part")
	assert.Less(t, done[0].Finished, done[1].Finished)
	assert.Positive(t, e.State().Stats.InterTokenLatency.Counts[7], "a token waited for a part of a prompt")
}

func TestLoading(t *testing.T) {
	e := engine(t, Default())
	submit(t, e, 100, 5)
	e.Advance(19 * time.Second)
	assert.False(t, e.Ready())
	assert.Equal(t, 1, e.State().Waiting)
	assert.Zero(t, e.Busy())
	next, ok := e.Next()
	assert.True(t, ok)
	assert.Equal(t, 20*time.Second, next)
	done := e.Advance(30 * time.Second)
	assert.True(t, e.Ready())
	require.Len(t, done, 1)
	assert.Equal(t, 20*time.Second, done[0].Admitted)
	_, ok = e.Next()
	assert.False(t, ok)
}

// TestBusy: the share of the last second, through its beginning and its end.
func TestBusy(t *testing.T) {
	c := small()
	c.DecodeStep, c.DecodeSlope = 100*time.Millisecond, 0
	e := engine(t, c)
	e.Advance(10 * time.Second)
	submit(t, e, 800, 5) // 100 ms of prefill and 4 steps
	for _, at := range []struct {
		ms   int
		busy float64
	}{{10000, 0}, {10100, 10}, {10250, 25}, {10500, 50}, {10900, 50}, {11000, 50}, {11250, 25}, {11500, 0}, {20000, 0}} {
		e.Advance(time.Duration(at.ms) * time.Millisecond)
		assert.InDelta(t, at.busy, e.Busy(), 1e-6, "at %d ms", at.ms)
	}
	for range 30 {
		submit(t, e, 800, 100)
	}
	e.Advance(25 * time.Second)
	assert.InDelta(t, 100, e.Busy(), 1e-9)
}

// TestPreemption: the youngest goes back to the head of the queue, keeps its tokens, and
// finishes before those that arrived later begin.
func TestPreemption(t *testing.T) {
	c := small()
	c.KVTokens = 20 * BlockTokens
	e := engine(t, c)
	for range 3 {
		submit(t, e, 128, 64) // 8 blocks, 12 at the end
	}
	var done []Completion
	var s State
	for len(done) < 3 {
		next, ok := e.Next()
		require.True(t, ok)
		done = append(done, e.Advance(next)...)
		s = check(t, e, s)
	}
	ids := []ID{done[0].ID, done[1].ID, done[2].ID}
	assert.Equal(t, []ID{1, 2, 3}, ids)
	assert.Zero(t, done[0].Preemptions)
	assert.Positive(t, done[1].Preemptions)
	assert.GreaterOrEqual(t, done[2].Admitted, done[1].FirstToken)
	assert.Equal(t, uint64(3*128), s.Stats.PromptTokens, "a preempted prompt counts once")
	assert.Equal(t, uint64(3*64), s.Stats.GenerationTokens, "no token is generated twice")
}

// TestCancel: a request leaves from the queue, from the batch, and not twice.
func TestCancel(t *testing.T) {
	c := small()
	c.MaxRunning = 1
	e := engine(t, c)
	first, second, third := submit(t, e, 100, 50), submit(t, e, 100, 50), submit(t, e, 100, 50)
	e.Advance(200 * time.Millisecond)
	assert.True(t, e.Cancel(first))
	assert.Zero(t, e.State().UsedBlocks)
	assert.True(t, e.Cancel(second))
	assert.False(t, e.Cancel(second))
	assert.False(t, e.Cancel(99))
	done := e.Advance(time.Minute)
	require.Len(t, done, 1)
	assert.Equal(t, third, done[0].ID)
	assert.False(t, e.Cancel(third))
	s := check(t, e, State{})
	assert.Equal(t, uint64(2), s.Stats.Cancelled)
}

func TestSubmitRefuses(t *testing.T) {
	c := small()
	c.KVTokens = 1607 // 100 blocks
	e := engine(t, c)
	const most = int(^uint(0) >> 1)
	for _, lengths := range [][2]int{{0, 1}, {1, 0}, {-1, 5}, {1601, 1}, {1600, 2}, {1, 1601}, {most, most}} {
		_, err := e.Submit(lengths[0], lengths[1])
		assert.ErrorIs(t, err, ErrRequest, "%v", lengths)
	}
	assert.Zero(t, e.State().Stats.Arrived)
	submit(t, e, 1600, 1)
	submit(t, e, 1, 1600)
	assert.Len(t, e.Advance(time.Hour), 2, "what fits alone finishes")
}

// TestCapacity: the queue grows while more arrives than the engine serves, and drains
// afterwards; no request waits for ever.
func TestCapacity(t *testing.T) {
	// At most 16 tokens each 28 ms, 150 a request: some 3.5 requests/s, less the prefill.
	curve := arrivals.Curve{{At: 0, PerSecond: 1}, {At: 5 * time.Minute, PerSecond: 1}, {At: 5 * time.Minute, PerSecond: 6},
		{At: 10 * time.Minute, PerSecond: 6}, {At: 10 * time.Minute, PerSecond: 0.5}, {At: 30 * time.Minute, PerSecond: 0.5}}
	for seed := range uint64(5) {
		trace, err := arrivals.Generate(curve, arrivals.Chat(), seed)
		require.NoError(t, err)
		e := engine(t, small())
		waiting := map[time.Duration]int{}
		var done []Completion
		var s State
		look := time.Minute
		for _, r := range trace {
			for ; look <= r.At; look += time.Minute {
				done = append(done, e.Advance(look)...)
				s = check(t, e, s)
				waiting[look] = s.Waiting
			}
			done = append(done, e.Advance(r.At)...)
			submit(t, e, r.PromptTokens, r.OutputTokens)
		}
		done = append(done, e.Advance(time.Hour)...)
		assert.Less(t, waiting[5*time.Minute], 10, "below its capacity")
		for m := 6 * time.Minute; m <= 10*time.Minute; m += time.Minute {
			assert.Greater(t, waiting[m], waiting[m-time.Minute]+20, "seed %d, above its capacity, %v", seed, m)
		}
		assert.Zero(t, waiting[29*time.Minute], "drained")
		require.Len(t, done, len(trace))
		slowest := slices.MaxFunc(done, func(a, b Completion) int { return int((a.Finished - a.Arrived) - (b.Finished - b.Arrived)) })
		assert.Less(t, slowest.Finished-slowest.Arrived, 10*time.Minute)
	}
}

func TestNewRefuses(t *testing.T) {
	_, err := New(Config{Jitter: 1, DecodeSlope: -1, Loading: -1})
	for _, part := range []string{"max running", "KV cache", "prefill rate", "decode step", "decode slope", "loading", "busy window", "jitter"} {
		assert.ErrorContains(t, err, part)
	}
	c := Default()
	c.BatchTokens = 15
	_, err = New(c)
	assert.EqualError(t, err, "a step has 15 tokens, it must have at least 16, one for each request")
}
