// Package arrivals makes, compresses, reads and writes traces of the requests that arrive at
// inference engines: when each arrives, and how many tokens its prompt and its output have.
//
// It is pure and has no clock: the same arguments give the same trace. It must not know an
// engine, HTTP or any test.
package arrivals

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"time"
)

// Request is one arrival.
type Request struct {
	// At is the time since the trace's start.
	At                         time.Duration
	PromptTokens, OutputTokens int
}

// Trace is requests in order of arrival.
type Trace []Request

// Compress returns the same requests in a trace that is faster by a factor, which must be
// positive: rates grow by it. It suits engines whose model time is faster by the same factor.
// To keep the rates and have fewer requests, compress the Curve instead.
func (t Trace) Compress(factor float64) Trace {
	out := make(Trace, len(t))
	for i, r := range t {
		out[i] = r
		out[i].At = time.Duration(math.Round(float64(r.At) / factor))
	}
	return out
}

// LogNormal is a distribution of lengths in tokens. What it draws beyond a bound becomes the
// bound.
type LogNormal struct {
	// Median is that of the lengths, Sigma the standard deviation of their logarithms.
	Median, Sigma float64
	Min, Max      int
}

// Validate says what is wrong with the distribution.
func (l LogNormal) Validate() error {
	switch {
	case !(l.Median > 0) || math.IsInf(l.Median, 0):
		return fmt.Errorf("median is %v, it must be positive", l.Median)
	case !(l.Sigma >= 0) || math.IsInf(l.Sigma, 0):
		return fmt.Errorf("sigma is %v, it must not be negative", l.Sigma)
	case l.Min < 1 || l.Max < l.Min:
		return fmt.Errorf("bounds are %d and %d, they must be in order and at least 1", l.Min, l.Max)
	}
	return nil
}

func (l LogNormal) draw(rng *rand.Rand) int {
	tokens := math.Round(l.Median * math.Exp(l.Sigma*rng.NormFloat64()))
	return int(min(max(tokens, float64(l.Min)), float64(l.Max)))
}

// Lengths are the distributions of prompts and of outputs, independent of each other.
type Lengths struct{ Prompt, Output LogNormal }

// Chat is short conversations: prompts around 300 tokens and answers around 150.
func Chat() Lengths {
	return Lengths{
		Prompt: LogNormal{Median: 300, Sigma: 0.8, Min: 8, Max: 4000},
		Output: LogNormal{Median: 150, Sigma: 0.7, Min: 2, Max: 1000},
	}
}

// Generate draws a Poisson process whose rate follows the curve, by thinning one of the
// curve's largest rate. Arrival times depend on the curve and the seed only, so two traces of
// one seed with different lengths have the same times.
func Generate(c Curve, l Lengths, seed uint64) (Trace, error) {
	if err := errors.Join(c.Validate(), prefix("prompt", l.Prompt.Validate()), prefix("output", l.Output.Validate())); err != nil {
		return nil, err
	}
	times := rand.New(rand.NewPCG(seed, 1))
	lengths := rand.New(rand.NewPCG(seed, 2))
	most, end := c.Max(), c.Length()
	var t Trace
	if most == 0 {
		return t, nil
	}
	for at := 0.0; ; {
		at += times.ExpFloat64() / most
		if at >= end.Seconds() {
			return t, nil
		}
		d := time.Duration(at * float64(time.Second))
		if times.Float64()*most >= c.At(d) {
			continue
		}
		t = append(t, Request{At: d, PromptTokens: l.Prompt.draw(lengths), OutputTokens: l.Output.draw(lengths)})
	}
}

func prefix(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}
