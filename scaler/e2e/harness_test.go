// Package e2e tests the two real binaries as they ship, joined by the real
// socket, on the fake driver, with a real gRPC client in KEDA's place. It has
// no code of its own beside the tests.
package e2e

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	pb "github.com/kedacore/keda/v2/pkg/scalers/externalscaler"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"gpuscaler/nvmlsidecar/fakenvml"
)

// bin holds the binaries under test, built once, as "make build" does.
var bin string

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	var err error
	if bin, err = os.MkdirTemp("", "gpuscaler-e2e-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(bin)
	// The binaries that ship, by the commands that make them.
	for _, command := range [][]string{
		{"make", "-C", "../..", "build", "BIN=" + bin, "VERSION=e2e"},
		{"go", "build", "-o", bin + "/", "gpuscaler/scaler/cmd/demo"},
	} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "%v: %v\n%s", command, err, out)
			return 1
		}
	}
	return m.Run()
}

// node is one GPU node: a folder with the socket, a scaler and a sidecar.
type node struct {
	t       *testing.T
	dir     string
	socket  string
	address string // KEDA's port
	http    string
	control *fakenvml.Control
	fixture string
	scaler  *process
	sidecar *process
	conn    *grpc.ClientConn
	pb.ExternalScalerClient
}

// startNode starts both processes on a recording and waits until the scaler
// serves. Further flags are the scaler's.
func startNode(t *testing.T, fixture string, flags ...string) *node {
	t.Helper()
	dir, err := os.MkdirTemp("", "gpus") // t.TempDir may be too long for a socket
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path, err := filepath.Abs("../../testdata/" + fixture)
	require.NoError(t, err)
	n := &node{
		t: t, dir: dir, socket: dir + "/nvml.sock", fixture: path,
		address: freeAddress(t), http: freeAddress(t), control: fakenvml.NewControl(dir + "/control"),
	}
	n.startScaler(flags...)
	n.startSidecar()
	n.conn, err = grpc.NewClient(n.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { _ = n.conn.Close() })
	n.ExternalScalerClient = pb.NewExternalScalerClient(n.conn)
	n.eventually(10*time.Second, func() error { return n.serving() })
	return n
}

func (n *node) startScaler(flags ...string) {
	args := append([]string{"serve", "--nvml-socket", n.socket, "--listen", n.address, "--http", n.http,
		"--node-name", "node-a", "--log-level", "debug"}, flags...)
	n.scaler = start(n.t, nil, bin+"/scaler", args...)
}

func (n *node) startSidecar() {
	n.sidecar = start(n.t, []string{"FAKENVML_FIXTURE=" + n.fixture, "FAKENVML_CONTROL=" + n.control.Path()},
		bin+"/nvmlsidecar", "--socket", n.socket, "--nvml-library", bin+"/"+fakenvml.Name, "--interval", "200ms")
}

func (n *node) serving() error {
	ctx, cancel := context.WithTimeout(n.t.Context(), time.Second)
	defer cancel()
	r, err := healthpb.NewHealthClient(n.conn).Check(ctx, &healthpb.HealthCheckRequest{})
	if err != nil {
		return err
	}
	if r.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		return fmt.Errorf("health is %v", r.GetStatus())
	}
	return nil
}

// value is what KEDA would be told.
func (n *node) value(metadata map[string]string) (float64, error) {
	ctx, cancel := context.WithTimeout(n.t.Context(), 2*time.Second)
	defer cancel()
	r, err := n.GetMetrics(ctx, &pb.GetMetricsRequest{ScaledObjectRef: n.ref(metadata)})
	if err != nil {
		return 0, err
	}
	require.Len(n.t, r.GetMetricValues(), 1)
	return r.GetMetricValues()[0].GetMetricValueFloat(), nil
}

func (n *node) ref(metadata map[string]string) *pb.ScaledObjectRef {
	return &pb.ScaledObjectRef{Name: "llm", Namespace: "default", ScalerMetadata: metadata}
}

// eventually retries until f returns nil, and says what it said last. It
// returns how long that took.
func (n *node) eventually(within time.Duration, f func() error) time.Duration {
	n.t.Helper()
	began := time.Now()
	for {
		err := f()
		if err == nil {
			return time.Since(began)
		}
		if time.Since(began) > within {
			n.t.Fatalf("not within %v: %v\nscaler:\n%s\nsidecar:\n%s", within, err, n.scaler.log(), n.sidecar.log())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// process is a child that ends with the test.
type process struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error

	mu  sync.Mutex
	out bytes.Buffer
}

func (p *process) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.Write(b)
}

func (p *process) log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.out.String()
}

func start(t *testing.T, environment []string, path string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(path, args...), done: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), environment...)
	p.cmd.Stdout, p.cmd.Stderr = p, p
	require.NoError(t, p.cmd.Start())
	go func() { p.err = p.cmd.Wait(); close(p.done) }()
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("%s:\n%s", filepath.Base(path), p.log())
		}
	})
	return p
}

// kill is kill -9, and waits for the end.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// stop is SIGTERM; it returns the exit status and how long the end took.
func (p *process) stop(t *testing.T) (int, time.Duration) {
	t.Helper()
	began := time.Now()
	require.NoError(t, p.cmd.Process.Signal(syscall.SIGTERM))
	select {
	case <-p.done:
	case <-time.After(10 * time.Second):
		t.Fatalf("did not end within 10 s of SIGTERM:\n%s", p.log())
	}
	return p.cmd.ProcessState.ExitCode(), time.Since(began)
}

// freeAddress is one that a program may listen on later. It is below the ports that the
// kernel gives to connections, which would take it in the meantime, and no test gets it
// twice.
func freeAddress(t *testing.T) string {
	t.Helper()
	const first, ports = 20_000, 12_000
	for range ports {
		address := fmt.Sprintf("127.0.0.1:%d", first+rand.IntN(ports))
		if _, given := givenAddresses.LoadOrStore(address, true); given {
			continue
		}
		if l, err := net.Listen("tcp", address); err == nil {
			require.NoError(t, l.Close())
			return address
		}
	}
	require.Fail(t, "no port is free")
	return ""
}

var givenAddresses sync.Map

func contains(err error, parts ...string) bool {
	for _, part := range parts {
		if err == nil || !strings.Contains(err.Error(), part) {
			return false
		}
	}
	return true
}
