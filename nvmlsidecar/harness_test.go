package main

import (
	"bufio"
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/nvmlsidecar/fakenvml"
	"gpuscaler/shared/snapshot"
	"gpuscaler/shared/snapshotpb"
)

// These tests run the program that ships, on the fake driver: a process has one
// NVML for good, with the environment of the moment in which it was loaded.
var built struct{ sidecar, library string }

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	flag.Parse()
	// The tests wait for other processes, they do not compute: more of them than
	// there are cores can run at a time.
	if err := flag.Set("test.parallel", "24"); err != nil {
		panic(err)
	}
	// Not t.TempDir: the path of a Unix socket has to be short.
	dir, err := os.MkdirTemp("", "sidecar")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	built.library, err = fakenvml.Build(dir)
	if err != nil {
		panic(err)
	}
	built.sidecar = filepath.Join(dir, "nvmlsidecar")
	if err := build(built.sidecar, raceDetector); err != nil {
		panic(err)
	}
	return m.Run()
}

// build makes the program, with version "v-test".
func build(path string, race bool) error {
	args := []string{"build", "-ldflags", "-s -w -X main.version=v-test", "-o", path}
	if race {
		args = append(args, "-race")
	}
	cmd := exec.Command("go", append(args, ".")...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building the sidecar: %w\n%s", err, out)
	}
	return nil
}

// setup says how to run the program.
type setup struct {
	fixture string   // a file of the repository's testdata, or a path
	library string   // default: the fake driver
	faults  []string // the control file's first lines
	absent  []string // functions that the driver lacks
	env     []string
	args    []string
	no      bool // no socket: the arguments say what to do
}

// sidecar is a running program and what it has sent.
type sidecar struct {
	t       *testing.T
	dir     string
	cmd     *exec.Cmd
	control *fakenvml.Control
	*listener
	output, log *buffer
	ended       chan struct{}
	status      int
}

// start runs the program until the test ends.
func start(t *testing.T, s setup) *sidecar {
	t.Helper()
	dir, err := os.MkdirTemp("", "sc")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if !strings.Contains(s.fixture, "/") {
		s.fixture = filepath.Join("..", "testdata", s.fixture)
	}
	if s.library == "" {
		s.library = built.library
	}
	c := &sidecar{
		t: t, dir: dir, control: fakenvml.NewControl(filepath.Join(dir, "control")),
		output: &buffer{}, log: &buffer{}, ended: make(chan struct{}),
	}
	c.faults(s.faults...)
	args := slices.Concat([]string{"--nvml-library", s.library, "--log-level", "debug"}, s.args)
	if !s.no {
		c.listener = listen(t, filepath.Join(dir, "sock"))
		args = append(args, "--socket", c.path)
	}
	c.cmd = exec.Command(built.sidecar, args...)
	c.cmd.Env = append(plainEnv(), "FAKENVML_FIXTURE="+s.fixture, "FAKENVML_CONTROL="+c.control.Path(),
		"FAKENVML_ABSENT="+strings.Join(s.absent, ","),
		"GORACE=atexit_sleep_ms=0 exitcode=66") // else each end takes a second
	c.cmd.Env = append(c.cmd.Env, s.env...)
	c.cmd.Stdout, c.cmd.Stderr = c.output, c.log
	require.NoError(t, c.cmd.Start())
	go func() {
		_ = c.cmd.Wait()
		c.status = c.cmd.ProcessState.ExitCode()
		close(c.ended)
	}()
	t.Cleanup(func() {
		_ = c.cmd.Process.Kill()
		<-c.ended
		assert.NotContains(t, c.log.String(), "DATA RACE")
		assert.NotContains(t, c.log.String(), "line ignored", "a fault of the test's that makes no sense")
		if t.Failed() {
			t.Log("the sidecar's log:\n" + c.log.String())
		}
	})
	return c
}

// plainEnv is the environment without what would steer the program.
func plainEnv() []string {
	return slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "FAKENVML_") || strings.HasPrefix(v, "GPUSCALER_")
	})
}

func (c *sidecar) faults(lines ...string) {
	c.t.Helper()
	require.NoError(c.t, c.control.Set(lines...))
}

// started waits until the program says so.
func (c *sidecar) started() {
	c.t.Helper()
	require.Eventually(c.t, func() bool { return strings.Contains(c.log.String(), "msg=started") }, 10*time.Second, 10*time.Millisecond)
}

// end waits for the program to end and returns its status.
func (c *sidecar) end(within time.Duration) int {
	c.t.Helper()
	select {
	case <-c.ended:
	case <-time.After(within):
		require.FailNow(c.t, "the program is still there", "after %v", within)
	}
	return c.status
}

// terminate asks the program to end, which it must do at once and cleanly.
func (c *sidecar) terminate() {
	c.t.Helper()
	require.NoError(c.t, c.cmd.Process.Signal(syscall.SIGTERM))
	require.Equal(c.t, 0, c.end(2*time.Second), c.log.String())
}

func (c *sidecar) alive() {
	c.t.Helper()
	select {
	case <-c.ended:
		require.FailNow(c.t, "the program has ended", "with status %d", c.status)
	default:
	}
}

// listener is the scaler's end of the socket.
type listener struct {
	t    *testing.T
	path string

	mu       sync.Mutex
	received []arrival
	broken   error
	more     chan struct{} // closed and replaced with each sample
}

type arrival struct {
	*snapshot.Sample
	at time.Time
}

// listen accepts connections until the test ends, one after the other.
func listen(t *testing.T, path string) *listener {
	t.Helper()
	socket, err := net.Listen("unix", path)
	require.NoError(t, err)
	l := &listener{t: t, path: path, more: make(chan struct{})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := socket.Accept()
			if err != nil {
				return
			}
			l.serve(conn)
		}
	}()
	t.Cleanup(func() {
		_ = socket.Close()
		<-done
		l.mu.Lock()
		defer l.mu.Unlock()
		assert.NoError(t, l.broken, "what arrived was no sample")
	})
	return l
}

func (l *listener) serve(conn net.Conn) {
	defer conn.Close()
	in := bufio.NewReader(conn)
	for {
		s, err := snapshotpb.Read(in)
		l.mu.Lock()
		switch {
		case err == nil:
			l.received = append(l.received, arrival{s, time.Now()})
			close(l.more)
			l.more = make(chan struct{})
		case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET):
			// A program that ends may leave half a frame.
		default:
			l.broken = err
		}
		l.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// all are the samples so far.
func (l *listener) all() []arrival {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.received)
}

// wait returns the first sample that arrives from now on and satisfies ok.
func (l *listener) wait(within time.Duration, what string, ok func(*snapshot.Sample) bool) arrival {
	l.t.Helper()
	next := len(l.all())
	timeout := time.After(within)
	for {
		l.mu.Lock()
		all, more := l.received, l.more
		l.mu.Unlock()
		for ; next < len(all); next++ {
			if ok(all[next].Sample) {
				return all[next]
			}
		}
		select {
		case <-more:
		case <-timeout:
			last := "none"
			if len(all) > 0 {
				last = fmt.Sprintf("%v ago: %+v", time.Since(all[len(all)-1].at), *all[len(all)-1].Sample)
			}
			require.FailNow(l.t, "no sample with: "+what, "within %v; the last one is %s", within, last)
		}
	}
}

// settle is wait, and then for such a sample some passes of the slow readings
// later: these are refreshed beside the samples, and may be of before.
func (l *listener) settle(within time.Duration, what string, ok func(*snapshot.Sample) bool) arrival {
	l.t.Helper()
	first := l.wait(within, what, ok)
	for {
		if s := l.wait(within, what, ok); s.at.Sub(first.at) > 1200*time.Millisecond {
			return s
		}
	}
}

// silent checks that nothing arrives any more, after a moment for what is on
// its way.
func (l *listener) silent(moment, lasting time.Duration) {
	l.t.Helper()
	time.Sleep(moment)
	n := len(l.all())
	time.Sleep(lasting)
	require.Len(l.t, l.all(), n, "samples arrive")
}

// complete says that nothing has yet to be read: all devices are there, and
// their slow readings too.
func complete(s *snapshot.Sample) bool {
	for i := range s.Devices {
		if s.Devices[i].Error != "" || len(s.Devices[i].Failed) > 0 {
			return false
		}
	}
	return s.Error == "" && len(s.Devices) > 0
}

func healthy(devices int) func(*snapshot.Sample) bool {
	return func(s *snapshot.Sample) bool { return complete(s) && len(s.Devices) == devices }
}

// buffer collects a process's output while others look.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
