package ingest

import (
	"context"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func open(path string) (*Listener, error) {
	return Listen(Options{Path: path, Log: slog.New(slog.DiscardHandler)})
}

func TestMode(t *testing.T) {
	for _, umask := range []int{0, 0o022, 0o077, 0o777} {
		path := socketPath(t)
		old := syscall.Umask(umask)
		l, err := open(path)
		after := syscall.Umask(old)
		require.NoError(t, err)
		assert.Equal(t, umask, after, "the umask is as it was")
		info, err := os.Lstat(l.Path)
		require.NoError(t, err)
		assert.Equal(t, fs660, info.Mode(), "whatever the umask, from the first moment")
		require.NoError(t, l.listener.Close())
		assert.NoFileExists(t, l.Path)
	}
}

const fs660 = os.ModeSocket | 0o660

// stale leaves a socket behind, as a process that was killed does.
func stale(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	l.SetUnlinkOnClose(false)
	require.NoError(t, l.Close())
	require.FileExists(t, path)
}

func TestStaleSocketIsReplaced(t *testing.T) {
	r, path := listen(t, func(o *Options) { stale(t, o.Path) })
	served(t, r, path, "good")
}

func TestWhatIsThereAlready(t *testing.T) {
	for name, c := range map[string]struct {
		given func(t *testing.T, path string)
		want  string
	}{
		"a live socket": {func(t *testing.T, path string) {
			l, err := net.Listen("unix", path)
			require.NoError(t, err)
			t.Cleanup(func() { _ = l.Close() })
		}, "--nvml-socket: another process listens on "},
		"a live socket too busy to answer": {func(t *testing.T, path string) {
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			require.NoError(t, err)
			t.Cleanup(func() { _ = unix.Close(fd) })
			require.NoError(t, unix.Bind(fd, &unix.SockaddrUnix{Name: path}))
			require.NoError(t, unix.Listen(fd, 0))
			for { // until its queue is full
				c, err := net.Dial("unix", path)
				if err != nil {
					break
				}
				t.Cleanup(func() { _ = c.Close() })
			}
		}, "--nvml-socket: whether another process listens cannot be told: dial unix "},
		"a live socket of another type": {func(t *testing.T, path string) {
			l, err := net.ListenPacket("unixgram", path)
			require.NoError(t, err)
			t.Cleanup(func() { _ = l.Close() })
		}, "--nvml-socket: whether another process listens cannot be told: dial unix "},
		"a file": {func(t *testing.T, path string) {
			require.NoError(t, os.WriteFile(path, []byte("precious"), 0o600))
		}, " is there and is no socket"},
		"a folder": {func(t *testing.T, path string) {
			require.NoError(t, os.Mkdir(path, 0o700))
		}, " is there and is no socket"},
		"a link to a socket": {func(t *testing.T, path string) {
			require.NoError(t, os.Symlink("elsewhere", path))
		}, " is there and is no socket"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "s")
			c.given(t, path)
			before, err := os.Lstat(path)
			require.NoError(t, err)
			_, err = open(path)
			assert.ErrorContains(t, err, c.want)
			after, err := os.Lstat(path)
			require.NoError(t, err)
			assert.True(t, os.SameFile(before, after), "it is left alone")
		})
	}
}

func TestPathThatCannotBe(t *testing.T) {
	_, err := open(filepath.Join(t.TempDir(), "none", "s"))
	assert.ErrorContains(t, err, "--nvml-socket: ")
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err = open(filepath.Join(file, "s"))
	assert.ErrorContains(t, err, "--nvml-socket: ")
}

// The scaler never answers: a writer that reads finds the end at once.
func TestNothingIsSentBack(t *testing.T) {
	r, path := listen(t)
	c := served(t, r, path, "good")
	require.NoError(t, c.SetReadDeadline(time.Now().Add(5*time.Second)))
	_, err := c.Read(make([]byte, 1))
	assert.ErrorIs(t, err, io.EOF)
	_, err = c.Write(frame(t, sample("good")))
	require.NoError(t, err, "and can go on writing")
	eventually(t, "the second sample", func() bool { return r.heard("good") == 2 })
}

func TestOwnUIDIsAccepted(t *testing.T) {
	r, path := listen(t, func(o *Options) { o.UIDs = []int{os.Getuid() + 1, os.Getuid()} })
	served(t, r, path, "good")
}

func TestOtherUIDIsRefused(t *testing.T) {
	if os.Getuid() != 0 {
		r, path := listen(t, func(o *Options) { o.UIDs = []int{os.Getuid() + 1, os.Getuid() + 2} })
		dropped(t, dial(t, path))
		eventually(t, "log", func() bool { return r.logged("writer refused: wrong uid") == 1 })
		return
	}
	const nobody = 65534
	dir, err := os.MkdirTemp("/tmp", "ingest")
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, os.Remove(dir)) })
	require.NoError(t, os.Chmod(dir, 0o755))
	r, path := listen(t, func(o *Options) { o.UIDs, o.Path = []int{0}, filepath.Join(dir, "s") })
	require.NoError(t, os.Chmod(path, 0o666))

	// A system call that changes one thread only; the thread dies with its
	// goroutine, which never unlocks it.
	conn := make(chan any)
	go func() {
		runtime.LockOSThread()
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, nobody, nobody, nobody); e != 0 {
			conn <- e
			return
		}
		c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			conn <- err
			return
		}
		conn <- c
	}()
	c, ok := (<-conn).(*net.UnixConn)
	require.True(t, ok, c)
	defer c.Close()
	_, _ = c.Write(frame(t, sample("stranger")))
	dropped(t, c)
	eventually(t, "log", func() bool { return r.logged("writer refused: wrong uid") == 1 })
	assert.Equal(t, 1, r.logged("uid=65534"), r.lines())
	assert.Zero(t, r.heard("stranger"))
	served(t, r, path, "good")
}

// Whoever connects or writes while the listener ends is let go of.
func TestEndWithOpenConnections(t *testing.T) {
	r := &recorder{}
	l, err := Listen(Options{Path: socketPath(t), FrameTimeout: time.Hour, Connect: r.connect, Log: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- l.Run(ctx) }()
	idle, busy := dial(t, l.Path), served(t, r, l.Path, "good")
	cancel()
	select {
	case err := <-done:
		assert.NoError(t, err)
	case <-time.After(5 * time.Second):
		require.Fail(t, "it waits for silent writers")
	}
	assert.NoFileExists(t, l.Path)
	dropped(t, idle)
	dropped(t, busy)
	assert.Equal(t, r.open, r.closed)
}

// A listener that breaks down leaves no socket behind.
func TestAcceptFails(t *testing.T) {
	r := &recorder{}
	l, err := Listen(Options{Path: socketPath(t), FrameTimeout: time.Hour, Connect: r.connect, Log: slog.New(slog.DiscardHandler)})
	require.NoError(t, err)
	require.NoError(t, l.listener.SetDeadline(time.Now()))
	assert.ErrorContains(t, l.Run(t.Context()), "accepting writers: ")
	assert.NoFileExists(t, l.Path)
}
