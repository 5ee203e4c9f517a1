package ingest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"gpuscaler/shared/snapshot"
	"gpuscaler/shared/snapshotpb"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// recorder is what becomes of all connections: the samples taken, and how many
// sinks were opened and closed.
type recorder struct {
	mu           sync.Mutex
	samples      []*snapshot.Sample
	open, closed int
	refuse       error
	log          bytes.Buffer
}

type recorderSink struct{ *recorder }

func (r *recorder) connect(int) Sink {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.open++
	return recorderSink{r}
}

func (r recorderSink) Apply(s *snapshot.Sample, now time.Time) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Since(now) > time.Minute {
		return fmt.Errorf("%v is not now", now)
	}
	if r.refuse != nil {
		return r.refuse
	}
	r.samples = append(r.samples, s)
	return nil
}

func (r recorderSink) Close(time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed++
}

// Write takes log lines.
func (r *recorder) Write(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.Write(p)
}

func (r *recorder) lines() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.log.String()
}

func (r *recorder) logged(part string) int { return strings.Count(r.lines(), part) }

// heard counts the samples of one writer.
func (r *recorder) heard(writer string) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.samples {
		if s.Writer == writer {
			n++
		}
	}
	return n
}

func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(15 * time.Second); !holds(); {
		if time.Now().After(deadline) {
			require.Fail(t, "not in time: "+what)
		}
		time.Sleep(time.Millisecond)
	}
}

// socketPath is short enough for a socket, whatever the test's name.
func socketPath(t testing.TB) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	require.Less(t, len(path), 100)
	return path
}

// listen runs a listener until the test ends.
func listen(t testing.TB, change ...func(*Options)) (*recorder, string) {
	t.Helper()
	r := &recorder{}
	o := Options{
		Path: socketPath(t), FrameTimeout: 10 * time.Second, Connect: r.connect,
		Log: slog.New(slog.NewTextHandler(r, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	for _, f := range change {
		f(&o)
	}
	l, err := Listen(o)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			assert.NoError(t, err)
		case <-time.After(5 * time.Second):
			assert.Fail(t, "the listener does not end")
		}
		assert.NoFileExists(t, o.Path)
		r.mu.Lock()
		defer r.mu.Unlock()
		assert.Equal(t, r.open, r.closed, "every sink is closed")
	})
	return r, o.Path
}

func dial(t testing.TB, path string) *net.UnixConn {
	t.Helper()
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func sample(writer string) *snapshot.Sample {
	return &snapshot.Sample{Writer: writer, Elapsed: time.Second, Devices: []snapshot.Device{
		{ID: "GPU-0", Vendor: "nvidia", Values: map[string]float64{"gpu_utilization": 75}}}}
}

func frame(t testing.TB, s *snapshot.Sample) []byte {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, snapshotpb.Write(&b, s))
	return b.Bytes()
}

// served insists that a good writer is heard, on a connection of its own.
func served(t testing.TB, r *recorder, path, writer string) *net.UnixConn {
	t.Helper()
	c := dial(t, path)
	before := r.heard(writer)
	_, err := c.Write(frame(t, sample(writer)))
	require.NoError(t, err)
	eventually(t, writer+" is heard", func() bool { return r.heard(writer) == before+1 })
	return c
}

// dropped insists that the other side has closed the connection: writing fails.
func dropped(t testing.TB, c *net.UnixConn) {
	t.Helper()
	eventually(t, "the connection is closed", func() bool {
		_ = c.SetWriteDeadline(time.Now().Add(10 * time.Millisecond))
		_, err := c.Write([]byte{0}) // an empty frame, which would be skipped
		var late net.Error
		return err != nil && (!errors.As(err, &late) || !late.Timeout())
	})
}
