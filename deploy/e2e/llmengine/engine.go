// Package llmengine is a model of an inference engine with continuous batching, as vLLM is
// one: requests wait in a queue, run together in a batch, fill a KV cache, and leave counts
// and latencies in the metrics that vLLM exposes. It exists so that a scaler of such engines
// can be tested without a GPU.
//
// The model has no clock, no I/O and no goroutine: its caller says how far time is, and the
// same calls give the same result. It must not know HTTP, the wall clock or any test.
//
// Time passes in steps. A step runs one token of each request that decodes, and a part of
// the prompts of those in prefill; what it produced is there when the step ends. Between two
// steps the engine admits requests and preempts them:
//
//   - The queue is first in, first out. Its head is admitted when the batch has room and the
//     KV cache has blocks for the whole prompt; nobody overtakes a head that has to wait.
//   - Prompts are prefilled in the order of admission, in as large parts as a step allows.
//   - A request that needs a block when none is free preempts the youngest one, or itself
//     when it is the youngest. The preempted one goes back to the head of the queue, keeps
//     the tokens that it has generated, and computes its KV cache anew, as vLLM does.
//
// The oldest running request always gets its blocks, so every request finishes at some time.
package llmengine

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// ErrRequest is the reason for which Submit refuses a request that can never run.
var ErrRequest = errors.New("invalid request")

// ID identifies a request within its engine. IDs count from 1 in order of arrival.
type ID uint64

// Completion is a request that has finished. Its times are model time since the engine's start.
type Completion struct {
	ID                         ID
	PromptTokens, OutputTokens int
	// Arrived is the time of Submit, Admitted that of the first admission, FirstToken and
	// Finished those at which the first and the last token were there.
	Arrived, Admitted, FirstToken, Finished time.Duration
	// Preemptions is how often the request went back to the queue.
	Preemptions int
}

// request is one that waits or runs.
type request struct {
	Completion
	generated int
	// cached is the number of tokens whose KV is computed, blocks what they and those of the
	// current step occupy. The newest generated token is not cached yet.
	cached, blocks int
	// scheduled is the number of tokens that the current step computes.
	scheduled int
	// decoding says that the prompt, and what was generated before a preemption, is cached.
	decoding  bool
	admitted  bool
	lastToken time.Duration
}

// length is how many tokens the request has so far.
func (r *request) length() int { return r.PromptTokens + r.generated }

// Engine is one engine. It is not safe for concurrent use.
type Engine struct {
	config Config
	blocks int // of the whole KV cache
	rng    *rand.Rand

	now    time.Duration
	lastID ID
	// waiting and running are both in order of arrival, and all of running arrived before
	// all of waiting.
	waiting, running []*request
	used             int // blocks
	// stepEnd is the end of the current step, valid if stepping.
	stepEnd  time.Duration
	stepping bool

	busy  busy
	stats Stats
}

// New is an engine that begins to load its model at time 0.
func New(c Config) (*Engine, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	return &Engine{
		config: c,
		blocks: c.KVTokens / BlockTokens,
		rng:    rand.New(rand.NewPCG(c.Seed, 1)),
		busy:   busy{window: c.BusyWindow},
		stats:  newStats(),
	}, nil
}

// Now is the time up to which the engine has been advanced.
func (e *Engine) Now() time.Duration { return e.now }

// Ready says whether the model is loaded.
func (e *Engine) Ready() bool { return e.now >= e.config.Loading }

// Busy is the share of the last BusyWindow in which steps ran, in percent: 0 to 100.
func (e *Engine) Busy() float64 { return e.busy.percent(e.now) }

// Submit adds a request at the engine's present time, also while it loads. It fails with
// ErrRequest if a length is below 1 or if the KV cache is too small for the request alone.
func (e *Engine) Submit(promptTokens, outputTokens int) (ID, error) {
	if promptTokens < 1 || outputTokens < 1 {
		return 0, fmt.Errorf("%w: %d prompt tokens and %d output tokens, both must be at least 1", ErrRequest, promptTokens, outputTokens)
	}
	// Apart, so that no sum can overflow. The last token is never cached.
	limit := e.blocks * BlockTokens
	if promptTokens > limit || outputTokens-1 > limit-promptTokens {
		return 0, fmt.Errorf("%w: %d prompt tokens and %d output tokens are more than the %d of the KV cache", ErrRequest, promptTokens, outputTokens, limit)
	}
	e.lastID++
	e.stats.Arrived++
	e.waiting = append(e.waiting, &request{Completion: Completion{
		ID: e.lastID, PromptTokens: promptTokens, OutputTokens: outputTokens, Arrived: e.now,
	}})
	e.beginStep()
	return e.lastID, nil
}

// Cancel removes a request that waits or runs. It reports false if there is none, because
// the request has finished or never was. The current step does not get shorter.
func (e *Engine) Cancel(id ID) bool {
	is := func(r *request) bool { return r.ID == id }
	if i := slices.IndexFunc(e.waiting, is); i >= 0 {
		e.waiting = slices.Delete(e.waiting, i, i+1)
	} else if i := slices.IndexFunc(e.running, is); i >= 0 {
		e.release(e.running[i])
		e.running = slices.Delete(e.running, i, i+1)
	} else {
		return false
	}
	e.stats.Cancelled++
	return true
}

// Next is the time at which the engine's state changes by itself: when the model is loaded
// or the current step ends. It reports false if only a Submit can change anything.
func (e *Engine) Next() (time.Duration, bool) {
	if !e.Ready() {
		return e.config.Loading, true
	}
	return e.stepEnd, e.stepping
}

// Advance lets time pass until the given one, and returns the requests that finished in the
// meantime, in the order in which they did. A time that has passed already changes nothing.
func (e *Engine) Advance(to time.Duration) []Completion {
	var finished []Completion
	for {
		next, ok := e.Next()
		if !ok || next > to {
			break
		}
		e.now = next
		if e.stepping {
			finished = e.endStep(finished)
		}
		e.beginStep()
	}
	e.now = max(e.now, to)
	return finished
}

// release gives back the blocks of a request.
func (e *Engine) release(r *request) {
	e.used -= r.blocks
	r.blocks, r.cached, r.scheduled, r.decoding = 0, 0, 0, false
}

// endStep gives each running request what the step computed, and appends those that finished.
func (e *Engine) endStep(finished []Completion) []Completion {
	e.stepping = false
	left := e.running[:0]
	for _, r := range e.running {
		r.cached += r.scheduled
		r.scheduled = 0
		if r.cached < r.length() {
			left = append(left, r)
			continue
		}
		e.token(r)
		if r.generated < r.OutputTokens {
			left = append(left, r)
			continue
		}
		e.release(r)
		r.Finished = e.now
		e.stats.finish(r.Completion)
		finished = append(finished, r.Completion)
	}
	clear(e.running[len(left):])
	e.running = left
	return finished
}

// token counts one generated token.
func (e *Engine) token(r *request) {
	r.decoding = true
	r.generated++
	e.stats.GenerationTokens++
	if r.generated == 1 {
		r.FirstToken = e.now
		e.stats.PromptTokens += uint64(r.PromptTokens)
		e.stats.TimeToFirstToken.observe(e.now - r.Arrived)
	} else {
		e.stats.InterTokenLatency.observe(e.now - r.lastToken)
	}
	r.lastToken = e.now
}
