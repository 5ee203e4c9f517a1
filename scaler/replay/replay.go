// Package replay plays a recorded fixture, in its own time and for ever, in the
// place of the node's readers: the scaler's mode without hardware and without
// a line of C.
package replay

import (
	"context"
	"fmt"
	"time"

	"gpuscaler/shared/fixture"
	"gpuscaler/shared/snapshot"
)

// Sink takes the samples.
type Sink interface {
	Apply(s *snapshot.Sample, now time.Time) error
	Close(now time.Time)
}

// Run gives sink the samples of f, each when it is due, until ctx is done.
func Run(ctx context.Context, f *fixture.Fixture, sink Sink) error {
	start := time.Now()
	defer func() { sink.Close(time.Now()) }()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for n := 0; ; n++ {
		s := f.At(n)
		timer.Reset(time.Until(start.Add(s.Elapsed)))
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		if err := sink.Apply(&s, time.Now()); err != nil {
			return fmt.Errorf("replay: sample %d: %w", n, err)
		}
	}
}
