package meter

import (
	"log/slog"
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/scaler/fleet"
)

// TestEngines: what a workload's engines count adds up over its pods, over pods that go, over
// engines that are read anew, and once for an engine that is read in two ways.
func TestEngines(t *testing.T) {
	now := time.Unix(1e9, 0)
	l, m := fleet.NewLocal("n", time.Minute, slog.New(slog.DiscardHandler), now), New(time.Minute)
	l.Observe(m.Observe)
	owner := fleet.Owner{Kind: "Deployment", Name: "llm"}
	a := fleet.Pod{Namespace: "shop", Name: "a", UID: "a", Owner: owner}
	b := fleet.Pod{Namespace: "shop", Name: "b", UID: "b", Owner: owner}
	ka, ka2, kb := fleet.EngineKey{UID: "a"}, fleet.EngineKey{UID: "a", Port: 8000}, fleet.EngineKey{UID: "b"}
	engine := func(prompt, generation, requests float64) *fleet.Engine {
		return &fleet.Engine{Heard: now, Totals: fleet.EngineTotals{prompt, generation, requests}}
	}
	is := func(generation float64) {
		t.Helper()
		r := m.Read()
		require.Len(t, r.Workloads, 1)
		assert.Equal(t, Workload{"shop", "Deployment", "llm"}, r.Workloads[0].Workload)
		assert.Equal(t, [len(fleet.Counted)]bool{true, true, false}, r.Workloads[0].Counted.Has)
		assert.InDelta(t, generation, r.Workloads[0].Counted.Totals[fleet.GenerationTokens], 1e-9)
		assert.InDelta(t, 10*generation, r.Workloads[0].Counted.Totals[fleet.PromptTokens], 1e-9)
	}
	l.SetPods([]fleet.Pod{a, b}, now)
	set := func(all map[fleet.EngineKey]*fleet.Engine) {
		now = now.Add(time.Second)
		l.SetEngines(all, now)
	}
	set(map[fleet.EngineKey]*fleet.Engine{ka: engine(0, 0, -1), kb: {Error: "not yet"}})
	is(0)
	set(map[fleet.EngineKey]*fleet.Engine{ka: engine(50, 5, -1), kb: engine(20, 2, -1)})
	is(7)
	set(map[fleet.EngineKey]*fleet.Engine{ka: engine(80, 8, -1), ka2: engine(80, 8, -1), kb: engine(20, 2, -1)})
	is(10)
	set(map[fleet.EngineKey]*fleet.Engine{ka2: engine(90, 9, -1), kb: engine(20, 2, -1)})
	is(11)
	set(map[fleet.EngineKey]*fleet.Engine{kb: engine(10, 1, -1)}) // read anew
	is(12)
	l.SetPods([]fleet.Pod{b}, now)
	set(nil)
	is(12)
}

// TestLatencies: the histograms of a workload's engines add up over its pods, over engines
// that are read anew, and begin anew with other buckets.
func TestLatencies(t *testing.T) {
	now := time.Unix(1e9, 0)
	l, m := fleet.NewLocal("n", time.Minute, slog.New(slog.DiscardHandler), now), New(time.Minute)
	l.Observe(m.Observe)
	owner := fleet.Owner{Kind: "Deployment", Name: "llm"}
	l.SetPods([]fleet.Pod{{Namespace: "shop", Name: "a", UID: "a", Owner: owner}, {Namespace: "shop", Name: "b", UID: "b", Owner: owner}}, now)
	a, b := fleet.EngineKey{UID: "a"}, fleet.EngineKey{UID: "b"}
	bounds := []float64{0.5, math.Inf(1)}
	engine := func(bounds []float64, fast, all float64) *fleet.Engine {
		e := &fleet.Engine{Heard: now}
		e.Latencies[fleet.TTFT] = &fleet.Histogram{Bounds: bounds, Counts: []float64{fast, all}, Sum: 2 * all}
		return e
	}
	is := func(all map[fleet.EngineKey]*fleet.Engine, fast, total float64) {
		t.Helper()
		now = now.Add(time.Second)
		l.SetEngines(all, now)
		h := m.Read().Workloads[0].Counted.Latencies
		assert.Equal(t, []float64{fast, total}, h[fleet.TTFT].Counts)
		assert.InDelta(t, 2*total, h[fleet.TTFT].Sum, 1e-9)
		assert.Nil(t, h[fleet.ITL])
	}
	is(map[fleet.EngineKey]*fleet.Engine{a: engine(bounds, 1, 2), b: engine(bounds, 3, 5)}, 4, 7)
	is(map[fleet.EngineKey]*fleet.Engine{a: engine(bounds, 2, 4), b: engine(bounds, 3, 5)}, 5, 9)
	is(map[fleet.EngineKey]*fleet.Engine{a: engine(bounds, 1, 1), b: engine(bounds, 3, 5)}, 6, 10) // read anew
	is(map[fleet.EngineKey]*fleet.Engine{b: engine(bounds, 4, 6)}, 7, 11)
	is(map[fleet.EngineKey]*fleet.Engine{b: engine([]float64{0.25, math.Inf(1)}, 1, 2)}, 1, 2)
}
