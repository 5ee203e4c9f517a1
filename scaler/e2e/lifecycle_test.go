package e2e

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

func dial(address string) (*grpc.ClientConn, error) {
	return grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
}

func TestSidecarKilledAndReturned(t *testing.T) {
	t.Parallel()
	n := startNode(t, "one-75.csv", "--stale-after", "3s")
	killed := time.Now()
	n.sidecar.kill()
	v, err := n.value(metadata{})
	require.NoError(t, err, "what is known is still fresh")
	assert.Equal(t, 75.0, v)

	n.eventually(5*time.Second, func() error {
		v, err := n.value(metadata{})
		if status.Code(err) != codes.Unavailable || !contains(err, "node-a", "GPU 0", "nothing heard for") {
			return fmt.Errorf("%v, %w", v, err)
		}
		return nil
	})
	assert.Less(t, time.Since(killed), 4*time.Second)
	_, err = n.IsActive(t.Context(), n.ref(nil))
	assert.Equal(t, codes.Unavailable, status.Code(err))
	spec, err := n.GetMetricSpec(t.Context(), n.ref(nil))
	require.NoError(t, err, "the spec depends on metadata alone")
	assert.Equal(t, 80.0, spec.GetMetricSpecs()[0].GetTargetSizeFloat())
	training, err := n.IsActive(t.Context(), n.ref(metadata{"profile": "training"}))
	require.NoError(t, err)
	assert.True(t, training.GetResult(), "never to zero, whatever is known")
	n.eventually(2*time.Second, func() error {
		if n.serving() == nil {
			return fmt.Errorf("SERVING while stale")
		}
		return nil
	})

	n.startSidecar()
	took := n.eventually(2*time.Second, func() error { _, err := n.value(metadata{}); return err })
	t.Logf("fresh %v after the sidecar's start", took)
	n.eventually(2*time.Second, n.serving)
}

func TestScalerKilledAndReturned(t *testing.T) {
	t.Parallel()
	n := startNode(t, "one-75.csv")
	n.scaler.kill()
	select {
	case <-n.sidecar.done:
		t.Fatal("the sidecar ended with the scaler")
	case <-time.After(3 * time.Second): // long enough for its back-off to grow
	}
	n.startScaler()
	took := n.eventually(6*time.Second, func() error { _, err := n.value(metadata{}); return err })
	t.Logf("delivered again %v after the scaler's start", took)
}

func TestStopEndsStreamsCleanly(t *testing.T) {
	t.Parallel()
	n := startNode(t, "one-75.csv")
	active, err := n.StreamIsActive(t.Context(), n.ref(nil))
	require.NoError(t, err)
	spec, err := n.StreamMetricSpec(t.Context(), n.ref(nil))
	require.NoError(t, err)
	_, err = active.Recv()
	require.NoError(t, err)
	_, err = spec.Recv()
	require.NoError(t, err)

	code, took := n.scaler.stop(t)
	assert.Equal(t, 0, code)
	assert.Less(t, took, 5*time.Second)
	_, err = active.Recv()
	assert.ErrorIs(t, err, io.EOF, "a clean end resets KEDA's back-off")
	_, err = spec.Recv()
	assert.ErrorIs(t, err, io.EOF)
	_, err = os.Lstat(n.socket)
	assert.ErrorIs(t, err, fs.ErrNotExist, "the socket is gone")

	code, _ = n.sidecar.stop(t)
	assert.Equal(t, 0, code)
}

// What a scaler that was killed leaves behind is not in the way of the next.
func TestStaleSocketIsReplaced(t *testing.T) {
	t.Parallel()
	n := startNode(t, "one-75.csv")
	n.scaler.kill()
	_, err := os.Lstat(n.socket)
	require.NoError(t, err, "kill -9 leaves the socket")
	n.startScaler()
	n.eventually(6*time.Second, func() error { _, err := n.value(metadata{}); return err })
	second := start(t, nil, bin+"/scaler", "serve", "--nvml-socket", n.socket, "--listen", "127.0.0.1:0", "--http", "")
	<-second.done
	assert.Equal(t, 1, second.cmd.ProcessState.ExitCode())
	assert.Contains(t, second.log(), "another process listens on")
}

func TestWrongFlags(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"serve", "--log-level", "loud"}, 2, "--log-level"},
		{[]string{"serve", "--stale-after", "5ms"}, 1, "--stale-after"},
		{[]string{"serve", "--replay", "/nowhere.csv"}, 1, "--replay"},
		{[]string{"serve", "--nvml-socket=", "--peers=127.0.0.1:1", "--listen", "127.0.0.1:x"}, 1, "--listen"},
		{[]string{"serve", "--nvml-socket", "/nowhere/nvml.sock"}, 1, "--nvml-socket"},
		{[]string{"serve", "--nvml-socket=", "--peers=127.0.0.1:1", "--profiles", "/nowhere"}, 1, "/nowhere"},
		{[]string{"serve", "--nvml-socket="}, 1, "--nvml-socket: empty, with no --replay and no --peers"},
		{[]string{"serve", "--peers=node-1"}, 1, `--peers: "node-1": address node-1: missing port in address; allowed is host:port`},
		{[]string{"serve", "--peers=dns:///node-1"}, 1, "--peers: \"node-1\""},
		{[]string{"serve", "--peers=kubernetes:///peers.gpuscaler:6001"}, 1, "--peers: kubernetes:///peers.gpuscaler:6001: there is no Kubernetes API; use dns:///HOST:PORT"},
		{[]string{"serve", "--peers=a:1", "--peer-listen="}, 1, "--peer-listen: empty with --peers=a:1"},
		{[]string{"serve", "--peers=a:1", "--peer-interval=6s"}, 1, "--peer-interval: 6s is outside 100ms to 5s (half of --stale-after)"},
		{[]string{"serve", "--peers=a:1", "--peer-tls-cert-file=x"}, 1, "--peer-tls-cert-file: needs --peer-tls-private-key-file and --peer-ca-file"},
		{[]string{"serve", "--nvml-uid=-5"}, 1, "--nvml-uid"},
		{[]string{"serve", "--nvml-uid=4294967296"}, 1, "--nvml-uid"},
		{[]string{"serve", "--lissten", ":1"}, 2, "--listen"},
	} {
		p := start(t, nil, bin+"/scaler", c.args...)
		<-p.done
		assert.Equal(t, c.code, p.cmd.ProcessState.ExitCode(), "%v", c.args)
		assert.Contains(t, p.log(), c.want, "%v", c.args)
	}
}

// "make run", without make: plain lines, an end by itself, and nothing left
// behind, however it ends.
func TestDemo(t *testing.T) {
	t.Parallel()
	demo := func(environment ...string) *process {
		dir, err := filepath.Abs("../../testdata/h200-mig.csv")
		require.NoError(t, err)
		tmp := t.TempDir()
		return start(t, append(environment, "FIXTURE="+dir, "TMPDIR="+tmp,
			"LISTEN="+freeAddress(t), "HTTP="+freeAddress(t)), bin+"/demo", "--bin", bin)
	}
	t.Run("ends by itself", func(t *testing.T) {
		p := demo("RUN_FOR=4s")
		<-p.done
		require.NoError(t, p.err, p.log())
		assert.Contains(t, p.log(), "grpcurl -plaintext")
		assert.Contains(t, p.log(), "3g.71gb")
		assert.Contains(t, p.log(), "vllm-inference")
		assert.NotContains(t, p.log(), "\x1b", "no escapes where there is no terminal")
		assertGone(t, p)
	})
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGKILL} {
		t.Run(signal.String(), func(t *testing.T) {
			t.Parallel()
			p := demo()
			waitFor(t, 15*time.Second, func() bool { return strings.Contains(p.log(), "vllm-inference") })
			require.NoError(t, p.cmd.Process.Signal(signal))
			<-p.done
			if signal != syscall.SIGKILL {
				assert.NoError(t, p.err)
			}
			assertGone(t, p)
		})
	}
}

// assertGone says that no process and no socket is left of a demo. Its
// children are known by the TMPDIR they inherited.
func assertGone(t *testing.T, p *process) {
	t.Helper()
	var tmp string
	for _, e := range p.cmd.Env {
		if v, ok := strings.CutPrefix(e, "TMPDIR="); ok {
			tmp = v
		}
	}
	waitFor(t, 10*time.Second, func() bool {
		environments, _ := filepath.Glob("/proc/[0-9]*/environ")
		for _, path := range environments {
			if e, err := os.ReadFile(path); err == nil && strings.Contains(string(e), "TMPDIR="+tmp) {
				return false
			}
		}
		sockets, err := filepath.Glob(tmp + "/*/nvml.sock")
		return err == nil && len(sockets) == 0
	})
}

func waitFor(t *testing.T, within time.Duration, f func() bool) {
	t.Helper()
	for began := time.Now(); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Since(began) > within {
			t.Fatalf("not within %v", within)
		}
	}
}
