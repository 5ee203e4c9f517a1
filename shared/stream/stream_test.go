package stream

import (
	"bufio"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/shared/snapshot"
	"gpuscaler/shared/snapshotpb"
)

// socketPath is short, as the path of a Unix socket has to be.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "s")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "sock")
}

func listen(t *testing.T, path string) net.Listener {
	t.Helper()
	l, err := net.Listen("unix", path)
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// run starts a stream and a sender that hands over a sample at every interval;
// Elapsed is the time since the start. It returns what stops both.
func run(t *testing.T, path string, interval time.Duration, sample func() *snapshot.Sample) (stop func()) {
	t.Helper()
	s := New(path, time.Second, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(context.Background())
	start := time.Now()
	var both sync.WaitGroup
	both.Go(func() { s.Run(ctx) })
	both.Go(func() {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			next := sample()
			next.Elapsed = time.Since(start)
			begun := time.Now()
			s.Send(next)
			assert.Less(t, time.Since(begun), 500*time.Millisecond, "Send blocks")
		}
	})
	return func() {
		cancel()
		ended := make(chan struct{})
		go func() { both.Wait(); close(ended) }()
		select {
		case <-ended:
		case <-time.After(5 * time.Second):
			assert.Fail(t, "it does not end")
		}
	}
}

func empty() *snapshot.Sample { return &snapshot.Sample{Writer: "w"} }

// large is a sample of some 100 KiB: two of them fill a socket.
func large() *snapshot.Sample {
	s := empty()
	for i := range 100 {
		d := snapshot.Device{ID: strings.Repeat("d", 1+i), Vendor: "v", Failed: map[string]string{}}
		for j := range 5 {
			d.Failed["x_"+strings.Repeat("f", 1+j)] = strings.Repeat("r", 200)
		}
		s.Devices = append(s.Devices, d)
	}
	return s
}

func accept(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	require.NoError(t, l.(*net.UnixListener).SetDeadline(time.Now().Add(10*time.Second)))
	conn, err := l.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(20*time.Second)))
	return conn
}

// TestReconnects stays without a listener for longer and longer, up to hours,
// and looks how old its first sample is when there is one again. Time is
// synthetic; the sockets are real.
func TestReconnects(t *testing.T) {
	path := socketPath(t)
	synctest.Test(t, func(t *testing.T) {
		begun := time.Now()
		stop := run(t, path, 100*time.Millisecond, empty)
		defer stop()
		for _, outage := range []time.Duration{0, time.Second, 10 * time.Second, time.Minute, 3 * time.Hour} {
			time.Sleep(outage + 50*time.Millisecond)
			l, err := net.Listen("unix", path)
			require.NoError(t, err)
			back := time.Since(begun)
			time.Sleep(7 * time.Second)
			// What has connected by now waits to be accepted.
			conn := accept(t, l)
			first, err := snapshotpb.Read(bufio.NewReader(conn))
			require.NoError(t, err)
			// It may have been handed over a moment before.
			assert.Greater(t, first.Elapsed, back-time.Second, "after %v", outage)
			assert.LessOrEqual(t, first.Elapsed, back+lastRetry+100*time.Millisecond, "after %v", outage)
			require.NoError(t, conn.Close())
			require.NoError(t, l.Close())
		}
	})
}

// TestListenerReturns is the promise, in real time: again within 6 s.
func TestListenerReturns(t *testing.T) {
	t.Parallel()
	before := runtime.NumGoroutine()
	path := socketPath(t)
	stop := run(t, path, 20*time.Millisecond, empty)
	for range 3 {
		l := listen(t, path)
		back := time.Now()
		conn := accept(t, l)
		in := bufio.NewReader(conn)
		var last time.Duration
		for range 5 {
			s, err := snapshotpb.Read(in)
			require.NoError(t, err)
			assert.Greater(t, s.Elapsed, last)
			last = s.Elapsed
		}
		assert.Less(t, time.Since(back), 6*time.Second)
		require.NoError(t, conn.Close())
		require.NoError(t, l.Close())
	}
	stop()
	// Other tests of this package may have some too, but those end.
	assert.Eventually(t, func() bool { return runtime.NumGoroutine() <= before }, 15*time.Second, 50*time.Millisecond)
}

// TestListenerThatDoesNotRead: the writer must not wait for it, and what it
// finds when it reads at last, or after a reconnection, is whole frames.
func TestListenerThatDoesNotRead(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	l := listen(t, path)
	defer run(t, path, 20*time.Millisecond, large)()
	first := accept(t, l)
	// The socket is full when the stream gives this connection up.
	second := accept(t, l)
	read := func(conn net.Conn, atMost int) (n int, err error) {
		in := bufio.NewReader(conn)
		for ; n < atMost && err == nil; n++ {
			var s *snapshot.Sample
			if s, err = snapshotpb.Read(in); err == nil {
				assert.Len(t, s.Devices, 100)
			}
		}
		return n, err
	}
	n, err := read(first, 1000)
	assert.Greater(t, n, 1)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF, "the connection broke within a frame")
	n, err = read(second, 10)
	require.NoError(t, err)
	assert.Equal(t, 10, n)
}

// TestNeverReads: whatever the listener says, nobody hears it.
func TestNeverReads(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	l := listen(t, path)
	defer run(t, path, 20*time.Millisecond, empty)()
	conn := accept(t, l)
	// Until nobody has taken any of it for a second.
	written := 0
	require.NoError(t, conn.SetWriteDeadline(time.Now().Add(time.Second)))
	for {
		n, err := conn.Write(make([]byte, 1<<16))
		written += n
		if errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
		require.NoError(t, err)
	}
	assert.Less(t, written, 4<<20, "somebody reads")
	in := bufio.NewReader(conn)
	begun := time.Now()
	var last time.Duration
	for range 100 {
		s, err := snapshotpb.Read(in)
		require.NoError(t, err)
		assert.Greater(t, s.Elapsed, last)
		last = s.Elapsed
	}
	assert.Less(t, time.Since(begun), 5*time.Second)
}

// TestStaleSample: a sample that waited for the listener is not delivered as
// if it were new. The driver hangs meanwhile, say: there is no other.
func TestStaleSample(t *testing.T) {
	path := socketPath(t)
	synctest.Test(t, func(t *testing.T) {
		s := New(path, time.Second, slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); s.Run(ctx) }()
		s.Send(&snapshot.Sample{Writer: "old"})
		time.Sleep(3 * time.Second)
		l := listen(t, path)
		time.Sleep(6 * time.Second)
		s.Send(&snapshot.Sample{Writer: "new"})
		synctest.Wait()
		got, err := snapshotpb.Read(bufio.NewReader(accept(t, l)))
		require.NoError(t, err)
		assert.Equal(t, "new", got.Writer)
		cancel()
		<-done
	})
}

// TestBadSample: one that nobody would accept is dropped, and the connection
// goes on.
func TestBadSample(t *testing.T) {
	t.Parallel()
	path := socketPath(t)
	l := listen(t, path)
	n := 0
	defer run(t, path, 20*time.Millisecond, func() *snapshot.Sample {
		if n++; n%2 == 0 {
			return &snapshot.Sample{Error: "an error", Devices: make([]snapshot.Device, 1)}
		}
		return empty()
	})()
	in := bufio.NewReader(accept(t, l))
	for range 5 {
		s, err := snapshotpb.Read(in)
		require.NoError(t, err)
		assert.Empty(t, s.Error)
	}
}

// TestLatest: what could not be delivered is replaced.
func TestLatest(t *testing.T) {
	s := New("nowhere", time.Second, slog.New(slog.DiscardHandler))
	for i := range 10 {
		s.Send(&snapshot.Sample{Elapsed: time.Duration(i)})
	}
	assert.Equal(t, time.Duration(9), (<-s.latest).sample.Elapsed)
	assert.Empty(t, s.latest)
}

// TestOutageIsLogged: once each, not at every attempt.
func TestOutageIsLogged(t *testing.T) {
	path := socketPath(t)
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		s := New(path, time.Second, slog.New(slog.NewTextHandler(&log, nil)))
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); s.Run(ctx) }()
		time.Sleep(time.Hour)
		l := listen(t, path)
		time.Sleep(6 * time.Second)
		conn := accept(t, l)
		s.Send(empty())
		synctest.Wait()
		require.NoError(t, conn.Close())
		require.NoError(t, l.Close())
		s.Send(empty())
		time.Sleep(time.Hour)
		cancel()
		<-done
		missing, broken := "no such file or directory", "broken pipe"
		assert.Equal(t, 2, strings.Count(log.String(), missing), log.String())
		assert.Equal(t, 1, strings.Count(log.String(), broken), log.String())
	})
}

// What a broken connection did not take goes to the next one, without waiting
// for a newer sample.
func TestUnsentGoesToTheNextConnection(t *testing.T) {
	path := socketPath(t)
	l := listen(t, path)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	s := New(path, 5*time.Second, slog.New(slog.DiscardHandler))
	go func() { defer close(ended); s.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	first, err := l.Accept()
	require.NoError(t, err)
	require.NoError(t, first.Close())
	s.Send(&snapshot.Sample{Writer: "once"})
	second, err := l.Accept()
	require.NoError(t, err)
	defer second.Close()
	require.NoError(t, second.SetReadDeadline(time.Now().Add(10*time.Second)))
	got, err := snapshotpb.Read(bufio.NewReader(second))
	require.NoError(t, err)
	assert.Equal(t, "once", got.Writer)
}

// A scaler that breaks every connection, and then is gone, must not hold up who
// takes the samples: that one also listens for the signal to stop.
func TestSendNeverBlocksWhileConnectionsBreak(t *testing.T) {
	path := socketPath(t)
	l := listen(t, path)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.Close()
		}
	}()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	s := New(path, time.Second, slog.New(slog.DiscardHandler))
	go func() { defer close(ended); s.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); {
		began := time.Now()
		s.Send(&snapshot.Sample{Writer: "w"})
		require.Less(t, time.Since(began), 50*time.Millisecond, "Send has to wait for nobody")
	}
}
