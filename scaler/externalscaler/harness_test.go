package externalscaler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	pb "github.com/kedacore/keda/v2/pkg/scalers/externalscaler"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"gpuscaler/profiles"
	"gpuscaler/scaler/fleet"
	"gpuscaler/shared/snapshot"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type (
	metadata = map[string]string
	values   = map[string]float64
)

// shelf is a set of profiles that a test replaces.
type shelf struct {
	mu      sync.Mutex
	set     *profiles.Set
	changed chan struct{}
}

func newShelf() *shelf { return &shelf{set: profiles.Builtin(), changed: make(chan struct{})} }

func (s *shelf) Load() *profiles.Set {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.set
}

func (s *shelf) Changed() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.changed
}

// put replaces the custom profiles by one, or by none when name is "".
func (s *shelf) put(t testing.TB, name, metric, target string) {
	t.Helper()
	dir := t.TempDir()
	if name != "" {
		text := fmt.Sprintf("name: %s\ndescription: d\nreason: r\nmetricType: %s\ntargetValue: %s\nscaleToZero: true\n", name, metric, target)
		require.NoError(t, os.WriteFile(filepath.Join(dir, name+".yaml"), []byte(text), 0o600))
	}
	store, err := profiles.NewStore(dir, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.set = store.Load()
	close(s.changed)
	s.changed = make(chan struct{})
}

// node is a fleet with one reader that speaks when the test says so.
type node struct {
	*fleet.Local
	source     *fleet.Source
	staleAfter time.Duration
}

func newNode(staleAfter time.Duration) *node {
	l := fleet.NewLocal("node-1", staleAfter, slog.New(slog.DiscardHandler), time.Now())
	return &node{l, l.Connect(), staleAfter}
}

// fleet is the node's, each time a new one.
func (n *node) fleet() *fleet.Fleet { return fleet.New(n.Local) }

// say is a sample of as many GPUs as there are values.
func (n *node) say(t testing.TB, gpus ...values) {
	t.Helper()
	sample := &snapshot.Sample{Writer: "nvmlsidecar"}
	for i, v := range gpus {
		sample.Devices = append(sample.Devices, snapshot.Device{ID: fmt.Sprint("GPU-", i), Vendor: "nvidia", Model: "NVIDIA H200", Index: i, Values: v})
	}
	require.NoError(t, sample.Validate())
	require.NoError(t, n.source.Apply(sample, time.Now()))
}

func (n *node) utilization(t testing.TB, percent ...float64) {
	t.Helper()
	var gpus []values
	for _, p := range percent {
		gpus = append(gpus, values{"gpu_utilization": p})
	}
	n.say(t, gpus...)
}

func (n *node) ready(now time.Time) error { return n.Node().Ready(now, n.staleAfter) }

// rig is a whole server on a port of its own, and a client as KEDA is one.
type rig struct {
	*node
	shelf  *shelf
	conn   *grpc.ClientConn
	client pb.ExternalScalerClient
	health healthpb.HealthClient
	// stop ends the server and insists that it ends in time. More than one
	// call is one.
	stop func()
}

func serve(t testing.TB, staleAfter time.Duration) *rig {
	t.Helper()
	n, s := newNode(staleAfter), newShelf()
	log := slog.New(slog.DiscardHandler)
	server := NewServer(NewService(n.fleet(), s, staleAfter, log), n.ready, nil, log)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Run(ctx, l) }()
	conn, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	r := &rig{node: n, shelf: s, conn: conn, client: pb.NewExternalScalerClient(conn), health: healthpb.NewHealthClient(conn)}
	r.stop = sync.OnceFunc(func() {
		begun := time.Now()
		cancel()
		select {
		case err := <-done:
			assert.NoError(t, err)
		case <-time.After(10 * time.Second):
			assert.Fail(t, "the server does not stop")
		}
		assert.Less(t, time.Since(begun), 5*time.Second)
	})
	t.Cleanup(func() {
		r.stop()
		_ = conn.Close()
	})
	return r
}

func ref(md metadata) *pb.ScaledObjectRef {
	return &pb.ScaledObjectRef{Name: "llm", Namespace: "default", ScalerMetadata: md}
}

func (r *rig) get(md metadata) (*pb.MetricValue, error) {
	answer, err := r.client.GetMetrics(context.Background(), &pb.GetMetricsRequest{ScaledObjectRef: ref(md), MetricName: "s0-any"})
	if err != nil {
		return nil, err
	}
	if n := len(answer.GetMetricValues()); n != 1 {
		return nil, fmt.Errorf("%d values", n)
	}
	return answer.GetMetricValues()[0], nil
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

// received are the messages of a stream as they come, and how it ended.
type received[T any] struct {
	messages chan *T
	end      chan error
}

func receive[T any](stream grpc.ServerStreamingClient[T]) received[T] {
	r := received[T]{make(chan *T, 1000), make(chan error, 1)}
	go func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				r.end <- err
				return
			}
			r.messages <- m
		}
	}()
	return r
}

func (r received[T]) next(t testing.TB, within time.Duration) *T {
	t.Helper()
	select {
	case m := <-r.messages:
		return m
	case err := <-r.end:
		require.NoError(t, err)
	case <-time.After(within):
		require.Fail(t, "no message in time")
	}
	return nil
}

func (r received[T]) ends(t testing.TB, within time.Duration) error {
	t.Helper()
	select {
	case err := <-r.end:
		return err
	case <-time.After(within):
		require.Fail(t, "the stream does not end")
	}
	return errors.New("unreachable")
}
