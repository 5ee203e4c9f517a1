// Package sampler takes a reading at every tick of an interval and keeps watch
// over a reader that may hang. It knows nothing of NVML or of what becomes of
// the samples.
package sampler

import (
	"context"
	"fmt"
	"time"

	"gpuscaler/shared/snapshot"
)

// Reader reads all devices. Read may block for as long as the driver does.
type Reader interface {
	// Read takes a sample and says when it was; an error means that reading is over for good.
	Read(now time.Time) (*snapshot.Sample, error)
	// Busy is for how long the longest call in progress has been running.
	Busy(now time.Time) time.Duration
}

// Sampler reads at an interval.
type Sampler struct {
	Reader   Reader
	Interval time.Duration
	// HangTimeout is how long one call of the reader may take.
	HangTimeout time.Duration
	// Writer and Version are written into each sample.
	Writer, Version string
}

// ErrHang says that a call did not return in time. The thread that made it is
// lost; only a new process helps.
type ErrHang struct{ Busy, Allowed time.Duration }

func (e *ErrHang) Error() string {
	return fmt.Sprintf("a call into the driver has not returned for %v, more than --hang-timeout %v; a restart is needed",
		e.Busy.Round(time.Second), e.Allowed)
}

type result struct {
	sample *snapshot.Sample
	err    error
}

// Run gives every sample to emit until ctx is done, when it returns nil. While
// a reading takes longer than the interval, nothing is emitted: a sample that
// cannot be taken must not look fresh. The error is the reader's, or *ErrHang;
// a reading may then still be in progress.
func (s *Sampler) Run(ctx context.Context, emit func(*snapshot.Sample)) error {
	tick := time.NewTicker(s.Interval)
	defer tick.Stop()
	watch := time.NewTicker(max(s.HangTimeout/10, time.Millisecond))
	defer watch.Stop()
	results := make(chan result, 1) // a reading that ends after us must not block
	reading := false
	read := func() {
		sample, err := s.Reader.Read(time.Now())
		if sample != nil {
			sample.Writer, sample.Version = s.Writer, s.Version
		}
		results <- result{sample, err}
	}
	due := true
	for {
		if due && !reading {
			due, reading = false, true
			go read()
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			due = true
		case r := <-results:
			reading = false
			if ctx.Err() != nil {
				return nil
			}
			if r.err != nil {
				return r.err
			}
			emit(r.sample)
		case <-watch.C:
			if busy := s.Reader.Busy(time.Now()); busy > s.HangTimeout {
				return &ErrHang{busy, s.HangTimeout}
			}
		}
	}
}
