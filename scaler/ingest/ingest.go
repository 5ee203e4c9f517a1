// Package ingest listens on the Unix socket that the node's readers write to
// and hands their samples on. It treats them as hostile: frames, connections
// and silence are bounded, and a connection that breaks a rule is closed with
// the reason in the log. It never writes to the socket, and does not know what
// a sample means.
package ingest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"gpuscaler/shared/snapshot"
	"gpuscaler/shared/snapshotpb"
)

// maxConnections bounds the writers connected at once. Beyond it the one that
// has been quiet for longest gives way, and first of all the oldest of those
// that never spoke, so that idle connections cannot keep a good writer out.
const maxConnections = 16

// pace is the least time between two samples taken from one connection. A
// writer that is faster is read more slowly, so that it keeps the node less
// busy; twenty a second are twice what the sidecar can be set to.
const pace = 50 * time.Millisecond

// Sink takes the samples of one connection, one at a time.
type Sink interface {
	Apply(s *snapshot.Sample, now time.Time) error
	Close(now time.Time)
}

// Options configure a Listener.
type Options struct {
	// Path of the socket. A stale socket there is replaced; anything else, or
	// a socket that answers, is an error.
	Path string
	// UIDs are the only users whose connections are accepted; none are all.
	UIDs []int
	// FrameTimeout closes a connection on which no whole frame arrives for so
	// long.
	FrameTimeout time.Duration
	// Connect makes the sink of a new connection, of a user.
	Connect func(uid int) Sink
	Log     *slog.Logger
}

// Listener accepts writers.
type Listener struct {
	Options
	listener *net.UnixListener

	mu    sync.Mutex
	conns map[*connection]struct{}
}

type connection struct {
	*net.UnixConn
	since time.Time
	uid   int
	log   *slog.Logger
	spoke time.Time // when the last good sample came; guarded by Listener.mu
}

func (c *connection) quieter(than *connection) bool {
	if order := c.spoke.Compare(than.spoke); order != 0 {
		return order < 0
	}
	return c.since.Before(than.since)
}

// Listen opens the socket, with mode 0660 from its first moment.
func Listen(o Options) (*Listener, error) {
	if err := clear(o.Path); err != nil {
		return nil, err
	}
	// The mode has to be right before the first connection can be made, so
	// the umask is set and not the mode changed. It is process-wide, hence
	// done before anything else runs.
	old := syscall.Umask(0o117)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: o.Path, Net: "unix"})
	syscall.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("--nvml-socket: %w", err)
	}
	return &Listener{Options: o, listener: l, conns: map[*connection]struct{}{}}, nil
}

// clear removes what an earlier process left behind, if it is a dead socket.
func clear(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("--nvml-socket: %w", err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("--nvml-socket: %s is there and is no socket", path)
	}
	c, err := net.Dial("unix", path)
	if err == nil {
		_ = c.Close()
		return fmt.Errorf("--nvml-socket: another process listens on %s", path)
	}
	// Only a refusal says that nobody is there: a listener may be too busy to
	// answer, of another type, or not ours to connect to.
	if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("--nvml-socket: whether another process listens cannot be told: %w", err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("--nvml-socket: %w", err)
	}
	return nil
}

// Run accepts writers until ctx is done, then closes all connections, removes
// the socket and returns nil.
func (l *Listener) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = l.listener.Close() })
	defer stop()
	var readers sync.WaitGroup
	defer readers.Wait()
	defer l.closeAll()
	defer l.listener.Close()
	for {
		conn, err := l.listener.AcceptUnix()
		if ctx.Err() != nil {
			if err == nil {
				_ = conn.Close()
			}
			return nil
		}
		if err != nil {
			if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ECONNABORTED) {
				l.Log.Warn("cannot accept a writer", "error", err)
				time.Sleep(100 * time.Millisecond)
				continue
			}
			return fmt.Errorf("accepting writers: %w", err)
		}
		c := &connection{UnixConn: conn, since: time.Now()}
		if !l.authorize(c) {
			_ = c.Close()
			continue
		}
		l.admit(c)
		readers.Go(func() { l.serve(c) })
	}
}

// admit registers a connection and closes the quietest one if there are too
// many.
func (l *Listener) admit(c *connection) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.conns) >= maxConnections {
		var quietest *connection
		for other := range l.conns {
			if quietest == nil || other.quieter(quietest) {
				quietest = other
			}
		}
		l.Log.Warn("too many writers, closing the quietest", "allowed", maxConnections)
		_ = quietest.Close()
		delete(l.conns, quietest)
	}
	l.conns[c] = struct{}{}
}

func (l *Listener) closeAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.conns {
		_ = c.Close()
	}
}

func (l *Listener) remove(c *connection) {
	_ = c.Close()
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, c)
}

// authorize says whether the user who connected may write. It is asked before
// the connection can take the place of another.
func (l *Listener) authorize(c *connection) bool {
	cred, err := credentials(c.UnixConn)
	if err != nil {
		l.Log.Warn("writer refused: its credentials cannot be read", "error", err)
		return false
	}
	c.uid = int(cred.Uid)
	c.log = l.Log.With("uid", cred.Uid, "gid", cred.Gid, "pid", cred.Pid)
	if len(l.UIDs) > 0 && !slices.Contains(l.UIDs, c.uid) {
		c.log.Warn("writer refused: wrong uid", "allowed", l.UIDs)
		return false
	}
	c.log.Debug("writer connected")
	return true
}

// serve reads one connection to its end.
func (l *Listener) serve(c *connection) {
	defer l.remove(c)
	_ = c.CloseWrite() // nobody will ever answer
	sink := l.Connect(c.uid)
	defer func() { sink.Close(time.Now()) }()
	err := l.read(c, sink)
	switch {
	case errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, unix.ECONNRESET):
		c.log.Debug("writer disconnected")
	case errors.Is(err, os.ErrDeadlineExceeded):
		c.log.Warn("writer dropped: no whole message in time", "timeout", l.FrameTimeout)
	default:
		c.log.Warn("writer dropped", "error", err)
	}
}

// read hands samples on until the connection ends; the error is never nil.
func (l *Listener) read(c *connection, sink Sink) error {
	in := bufio.NewReaderSize(c, 16<<10)
	for {
		if err := c.SetReadDeadline(time.Now().Add(l.FrameTimeout)); err != nil {
			return err
		}
		sample, err := snapshotpb.Read(in)
		if err != nil {
			return err
		}
		now := time.Now()
		if err := sink.Apply(sample, now); err != nil {
			return err
		}
		l.mu.Lock()
		c.spoke = now
		l.mu.Unlock()
		time.Sleep(pace)
	}
}

// credentials are those of the process that connected, as the kernel knows
// them. Across containers uid and gid are right and the pid is 0.
func credentials(c *net.UnixConn) (*unix.Ucred, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return nil, err
	}
	return cred, credErr
}
