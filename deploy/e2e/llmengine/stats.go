package llmengine

import (
	"slices"
	"sort"
	"time"
)

// Stats are the counts since the engine's start, and the latencies in seconds of model time.
type Stats struct {
	// Arrived requests are those that Submit accepted. They are all of: finished, cancelled,
	// waiting and running.
	Arrived, Finished, Cancelled uint64
	// Preemptions counts returns to the queue.
	Preemptions uint64
	// PromptTokens counts the prompts of requests that have their first token, each once.
	PromptTokens, GenerationTokens uint64

	// TimeToFirstToken is observed at the first token, InterTokenLatency at each further
	// one, the others when a request has finished.
	TimeToFirstToken, InterTokenLatency, Latency, QueueTime Histogram
}

// Histogram counts observations by upper bound. Read-only outside of this package.
type Histogram struct {
	// Bounds are the inclusive upper bounds in seconds, without the infinite one.
	Bounds []float64
	// Counts are the observations in each bucket alone; the last is above all bounds.
	Counts []uint64
	Sum    float64
}

// Count is the number of all observations.
func (h Histogram) Count() (n uint64) {
	for _, c := range h.Counts {
		n += c
	}
	return n
}

func (h *Histogram) observe(d time.Duration) {
	seconds := d.Seconds()
	h.Counts[sort.SearchFloat64s(h.Bounds, seconds)]++
	h.Sum += seconds
}

// The bounds of vLLM's histograms.
var (
	firstTokenBounds = []float64{0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640, 2560}
	interTokenBounds = []float64{0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80}
	requestBounds    = []float64{0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680}
)

func newStats() Stats {
	empty := func(bounds []float64) Histogram {
		return Histogram{Bounds: bounds, Counts: make([]uint64, len(bounds)+1)}
	}
	return Stats{
		TimeToFirstToken:  empty(firstTokenBounds),
		InterTokenLatency: empty(interTokenBounds),
		Latency:           empty(requestBounds),
		QueueTime:         empty(requestBounds),
	}
}

func (s *Stats) finish(c Completion) {
	s.Finished++
	s.Latency.observe(c.Finished - c.Arrived)
	s.QueueTime.observe(c.Admitted - c.Arrived)
}

// State is what an engine looks like at one time. It does not change with the engine.
type State struct {
	Now time.Duration
	// Ready says whether the model is loaded.
	Ready bool
	// Waiting and Running are numbers of requests.
	Waiting, Running int
	// UsedBlocks of all Blocks of the KV cache are in use.
	UsedBlocks, Blocks int
	// BusyPercent is Engine.Busy.
	BusyPercent float64
	Stats       Stats
}

// State returns the engine's present state.
func (e *Engine) State() State {
	s := e.stats
	for _, h := range []*Histogram{&s.TimeToFirstToken, &s.InterTokenLatency, &s.Latency, &s.QueueTime} {
		h.Counts = slices.Clone(h.Counts)
	}
	return State{
		Now: e.now, Ready: e.Ready(),
		Waiting: len(e.waiting), Running: len(e.running),
		UsedBlocks: e.used, Blocks: e.blocks,
		BusyPercent: e.Busy(), Stats: s,
	}
}
