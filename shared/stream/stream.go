// Package stream delivers samples to the scaler's Unix socket: it dials, it
// writes, and it never reads, so that nothing can be sent to the process that
// runs the driver's code. It knows nothing of how samples are taken.
package stream

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"time"

	"github.com/cenkalti/backoff/v4"

	"gpuscaler/shared/snapshot"
	"gpuscaler/shared/snapshotpb"
)

// Reconnection waits between firstRetry and lastRetry, jitter included.
const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 5 * time.Second
	jitter     = 0.25
)

// Stream delivers to one socket.
type Stream struct {
	socket  string
	timeout time.Duration
	log     *slog.Logger
	// latest is filled by Send alone, or Send would have to wait.
	latest chan handed
	// unsent is what the last connection broke on. Of Run alone.
	unsent *handed
}

// handed is a sample and when it was handed over.
type handed struct {
	sample *snapshot.Sample
	at     time.Time
}

// New makes a stream to a socket. A write that takes longer than timeout
// counts as a broken connection, and a sample that waited longer is stale: it
// must not arrive as if it were new.
func New(socket string, timeout time.Duration, log *slog.Logger) *Stream {
	return &Stream{socket: socket, timeout: timeout, log: log, latest: make(chan handed, 1)}
}

// Send hands a sample over and never blocks: one that could not be delivered
// by now is replaced, because each sample stands for itself. It must not be
// called concurrently.
func (s *Stream) Send(sample *snapshot.Sample) {
	select {
	case <-s.latest:
	default:
	}
	s.latest <- handed{sample, time.Now()}
}

// Run connects and delivers, again and again, until ctx is done.
func (s *Stream) Run(ctx context.Context) {
	wait := backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(firstRetry),
		backoff.WithMaxInterval(lastRetry*4/5), // the jitter comes on top
		backoff.WithRandomizationFactor(jitter),
		backoff.WithMaxElapsedTime(0),
	)
	var last string
	for ctx.Err() == nil {
		err := s.deliver(ctx, func() { wait.Reset(); last = "" })
		if ctx.Err() != nil {
			return
		}
		if err.Error() != last {
			last = err.Error()
			s.log.Warn("not connected to the scaler, retrying for ever", "socket", s.socket, "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait.NextBackOff()):
		}
	}
}

// deliver writes to one connection until it breaks; delivered is called after
// each sample. The error is never nil.
func (s *Stream) deliver(ctx context.Context, delivered func()) error {
	dialer := net.Dialer{Timeout: s.timeout}
	conn, err := dialer.DialContext(ctx, "unix", s.socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.Close() })
	defer stop()
	s.log.Info("connected to the scaler", "socket", s.socket)
	for {
		next, err := s.next(ctx)
		if err != nil {
			return err
		}
		if time.Since(next.at) > s.timeout {
			continue
		}
		if err := s.write(conn, next.sample); err != nil {
			s.unsent = &next // for the next connection
			return err
		}
		delivered()
	}
}

// next is the newest sample there is: that of Send, else the one that the last
// connection broke on, else the one that comes.
func (s *Stream) next(ctx context.Context) (handed, error) {
	unsent := s.unsent
	s.unsent = nil
	if unsent != nil {
		select {
		case next := <-s.latest:
			return next, nil
		default:
			return *unsent, nil
		}
	}
	select {
	case <-ctx.Done():
		return handed{}, ctx.Err()
	case next := <-s.latest:
		return next, nil
	}
}

func (s *Stream) write(conn net.Conn, sample *snapshot.Sample) error {
	if err := conn.SetWriteDeadline(time.Now().Add(s.timeout)); err != nil {
		return err
	}
	err := snapshotpb.Write(conn, sample)
	var network net.Error
	if err == nil || errors.As(err, &network) || errors.Is(err, io.ErrClosedPipe) {
		return err
	}
	// The sample is at fault and nothing was written: the next one may do.
	s.log.Error("sample not sent", "error", err)
	return nil
}
