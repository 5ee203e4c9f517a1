package llmengine

import (
	"slices"
	"time"
)

// step is what one step computes, for its duration.
type step struct {
	decoding, prefill int // requests, tokens
}

// beginStep composes a step and begins it, if the engine can and there is something to run.
func (e *Engine) beginStep() {
	if e.stepping || !e.Ready() {
		return
	}
	var s step
	if preempted := e.scheduleRunning(&s); !preempted {
		e.admit(&s)
	}
	if s == (step{}) {
		return
	}
	e.stepping = true
	e.stepEnd = e.now + e.duration(s)
	e.busy.add(e.now, e.stepEnd)
}

// duration is how long a step takes: the time to decode, if any request does, and the time
// for the prompts' tokens.
func (e *Engine) duration(s step) time.Duration {
	c := e.config
	seconds := float64(s.prefill) / c.PrefillRate
	if s.decoding > 0 {
		seconds += (c.DecodeStep + time.Duration(s.decoding)*c.DecodeSlope).Seconds()
	}
	if c.Jitter > 0 {
		seconds *= 1 + c.Jitter*(2*e.rng.Float64()-1)
	}
	return max(time.Duration(seconds*float64(time.Second)), 1)
}

// scheduleRunning gives each running request its part of the step, the oldest first. It
// reports whether it preempted one: then nothing is admitted in this step.
func (e *Engine) scheduleRunning(s *step) (preempted bool) {
	for i := 0; i < len(e.running); i++ {
		r := e.running[i]
		if !r.decoding {
			e.prefill(r, s)
			continue
		}
		// Its blocks are there or one more is needed, for the newest token.
		for r.blocks < blocksFor(r.length()) && e.used == e.blocks {
			preempted = true
			if e.preemptYoungest() == r {
				return true
			}
		}
		e.reserve(r)
		r.scheduled = 1
		s.decoding++
	}
	return preempted
}

// prefill schedules as much of a request's prompt as the step allows. Every request may have
// to decode, so prompts leave one token for each of them.
func (e *Engine) prefill(r *request, s *step) {
	room := e.config.BatchTokens - e.config.MaxRunning + 1 - s.prefill
	r.scheduled = max(min(r.length()-r.cached, room), 0)
	s.prefill += r.scheduled
}

// reserve takes the blocks that a request needs for all of its tokens. They must be free.
func (e *Engine) reserve(r *request) {
	more := blocksFor(r.length()) - r.blocks
	r.blocks += more
	e.used += more
}

// preemptYoungest puts the youngest running request back to the head of the queue.
func (e *Engine) preemptYoungest() *request {
	last := len(e.running) - 1
	r := e.running[last]
	e.running[last] = nil
	e.running = e.running[:last]
	e.release(r)
	r.Preemptions++
	e.stats.Preemptions++
	e.waiting = slices.Insert(e.waiting, 0, r)
	return r
}

// admit moves requests from the head of the queue to the batch, as long as their tokens fit.
func (e *Engine) admit(s *step) {
	for len(e.waiting) > 0 && len(e.running) < e.config.MaxRunning {
		r := e.waiting[0]
		if blocksFor(r.length()) > e.blocks-e.used {
			return
		}
		e.waiting[0] = nil
		e.waiting = e.waiting[1:]
		e.running = append(e.running, r)
		e.reserve(r)
		if !r.admitted {
			r.admitted = true
			r.Admitted = e.now
		}
		e.prefill(r, s)
	}
}

// busy keeps the spans of time in which steps ran, as far as the window reaches back.
type busy struct {
	window time.Duration
	spans  []span // in order, apart from each other
}

type span struct{ from, to time.Duration }

// add appends a span that begins no earlier than the last one ends.
func (b *busy) add(from, to time.Duration) {
	if n := len(b.spans); n > 0 && b.spans[n-1].to == from {
		b.spans[n-1].to = to
		return
	}
	old := 0
	for old < len(b.spans) && b.spans[old].to <= from-b.window {
		old++
	}
	b.spans = append(slices.Delete(b.spans, 0, old), span{from, to})
}

// percent is the share of the window before now that the spans cover.
func (b *busy) percent(now time.Duration) float64 {
	var covered time.Duration
	for _, s := range b.spans {
		covered += max(min(s.to, now)-max(s.from, now-b.window), 0)
	}
	return 100 * covered.Seconds() / b.window.Seconds()
}
