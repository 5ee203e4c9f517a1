package llmengine

import (
	"errors"
	"fmt"
	"math"
	"time"
)

// BlockTokens is how many tokens one block of the KV cache stores.
const BlockTokens = 16

// Config describes an engine with its model and its GPU.
type Config struct {
	// MaxRunning is how many requests run at a time at most.
	MaxRunning int
	// KVTokens is the size of the KV cache in tokens, rounded down to whole blocks.
	KVTokens int
	// BatchTokens is how many tokens one step processes at most: one for each request that
	// decodes, the rest is for prefill. It must be at least MaxRunning.
	BatchTokens int
	// PrefillRate is the speed of prefill in tokens per second, of all requests together.
	PrefillRate float64
	// DecodeStep and DecodeSlope are the duration of a step in which requests decode:
	// DecodeStep plus DecodeSlope for each of them.
	DecodeStep, DecodeSlope time.Duration
	// Loading is how long the engine loads its model before it runs requests.
	Loading time.Duration
	// BusyWindow is the time that Busy looks back.
	BusyWindow time.Duration
	// Jitter varies the duration of each step by up to this share, below 1, in both
	// directions. 0: every step of one size takes the same time.
	Jitter float64
	// Seed is the seed of the jitter.
	Seed uint64
}

// Default is an 8B model on one GPU, with a batch that is small enough to fill in a test.
func Default() Config {
	return Config{
		MaxRunning:  16,
		KVTokens:    60000,
		BatchTokens: 2048,
		PrefillRate: 8000,
		DecodeStep:  20 * time.Millisecond,
		DecodeSlope: 500 * time.Microsecond,
		Loading:     20 * time.Second,
		BusyWindow:  time.Second,
	}
}

// Validate says what is wrong with the configuration, all of it.
func (c Config) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(c.MaxRunning >= 1, "max running is %d, it must be at least 1", c.MaxRunning)
	check(c.KVTokens >= BlockTokens, "KV cache has %d tokens, it must have at least %d", c.KVTokens, BlockTokens)
	check(c.BatchTokens >= c.MaxRunning, "a step has %d tokens, it must have at least %d, one for each request", c.BatchTokens, c.MaxRunning)
	check(c.PrefillRate > 0 && !math.IsInf(c.PrefillRate, 0), "prefill rate is %v tokens/s, it must be positive", c.PrefillRate)
	check(c.DecodeStep > 0, "decode step is %v, it must be positive", c.DecodeStep)
	check(c.DecodeSlope >= 0, "decode slope is %v, it must not be negative", c.DecodeSlope)
	check(c.Loading >= 0, "loading time is %v, it must not be negative", c.Loading)
	check(c.BusyWindow > 0, "busy window is %v, it must be positive", c.BusyWindow)
	check(c.Jitter >= 0 && c.Jitter < 1, "jitter is %v, it must be at least 0 and below 1", c.Jitter)
	return errors.Join(errs...)
}

// blocksFor is the number of blocks that store this many tokens.
func blocksFor(tokens int) int { return (tokens + BlockTokens - 1) / BlockTokens }
