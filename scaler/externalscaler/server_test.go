package externalscaler

import (
	"context"
	"log/slog"
	"net"
	"testing"
	"time"

	pb "github.com/kedacore/keda/v2/pkg/scalers/externalscaler"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
)

var nopLog = slog.New(slog.DiscardHandler)

const (
	serving    = healthpb.HealthCheckResponse_SERVING
	notServing = healthpb.HealthCheckResponse_NOT_SERVING
)

func (r *rig) isServing(t *testing.T, service string) healthpb.HealthCheckResponse_ServingStatus {
	t.Helper()
	answer, err := r.health.Check(t.Context(), &healthpb.HealthCheckRequest{Service: service})
	require.NoError(t, err)
	return answer.GetStatus()
}

func TestHealth(t *testing.T) {
	t.Parallel()
	r := serve(t, 1500*time.Millisecond)
	services := []string{"", "externalscaler.ExternalScaler"}
	become := func(want healthpb.HealthCheckResponse_ServingStatus) {
		t.Helper()
		for _, s := range services {
			eventually(t, s+" becomes "+want.String(), func() bool { return r.isServing(t, s) == want })
		}
	}
	for _, s := range services {
		assert.Equal(t, notServing, r.isServing(t, s), "nothing heard yet")
	}
	assert.Equal(t, serving, r.isServing(t, "liveness"), "whatever is known")
	watched, err := r.health.Watch(t.Context(), &healthpb.HealthCheckRequest{})
	require.NoError(t, err)
	changes := receive(watched)
	assert.Equal(t, notServing, changes.next(t, 5*time.Second).GetStatus())

	r.utilization(t, 75)
	become(serving)
	become(notServing) // by age alone
	assert.Equal(t, serving, r.isServing(t, "liveness"), "staleness is no reason to restart")
	r.utilization(t, 75)
	become(serving)
	for _, want := range []healthpb.HealthCheckResponse_ServingStatus{serving, notServing, serving} {
		assert.Equal(t, want, changes.next(t, 5*time.Second).GetStatus())
	}
}

// Liveness ends with the process and not before.
func TestLivenessEndsWithTheServer(t *testing.T) {
	t.Parallel()
	r := serve(t, minute)
	watched, err := r.health.Watch(t.Context(), &healthpb.HealthCheckRequest{Service: "liveness"})
	require.NoError(t, err)
	changes := receive(watched)
	assert.Equal(t, serving, changes.next(t, 5*time.Second).GetStatus())
	r.stop()
	assert.Error(t, changes.ends(t, 5*time.Second)) // what came before it is in messages
	require.Len(t, changes.messages, 1)
	assert.Equal(t, notServing, (<-changes.messages).GetStatus())
}

// All of the API can be found by grpcurl and its like.
func TestReflection(t *testing.T) {
	r := serve(t, minute)
	stream, err := reflectionpb.NewServerReflectionClient(r.conn).ServerReflectionInfo(t.Context())
	require.NoError(t, err)
	require.NoError(t, stream.Send(&reflectionpb.ServerReflectionRequest{
		MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{ListServices: "*"}}))
	answer, err := stream.Recv()
	require.NoError(t, err)
	var names []string
	for _, s := range answer.GetListServicesResponse().GetService() {
		names = append(names, s.GetName())
	}
	assert.Contains(t, names, "externalscaler.ExternalScaler")
	assert.Contains(t, names, "grpc.health.v1.Health")
	require.NoError(t, stream.CloseSend())
}

// A signal that comes before serving has begun is a clean end, too.
func TestStoppedBeforeItBegan(t *testing.T) {
	n := newNode(minute)
	server := NewServer(NewService(n.fleet(), newShelf(), minute, nopLog), n.ready, nil, nopLog)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	server.grpc.Stop() // what Run's other goroutine may do before this one serves
	require.NoError(t, server.Run(ctx, l))
	require.Error(t, l.Close(), "the listener is closed")
}

// Streams of others (health, reflection) that their clients keep open do not
// keep the server.
func TestStopWithStreamsThatStayOpen(t *testing.T) {
	t.Parallel()
	r := serve(t, minute)
	watched, err := r.health.Watch(t.Context(), &healthpb.HealthCheckRequest{})
	require.NoError(t, err)
	_, err = watched.Recv()
	require.NoError(t, err)
	reflected, err := reflectionpb.NewServerReflectionClient(r.conn).ServerReflectionInfo(t.Context())
	require.NoError(t, err)
	r.utilization(t, 75)
	stream, err := r.client.StreamIsActive(t.Context(), ref(nil))
	require.NoError(t, err)
	active := receive(stream)
	active.next(t, 5*time.Second)

	r.stop() // within 5 s, which it insists on
	assert.EqualError(t, active.ends(t, 5*time.Second), "EOF", "our own end cleanly in spite of them")
	_, err = reflected.Recv()
	assert.Error(t, err)
}

// Nothing but the calls' own goroutines, and they end with the calls.
func TestCallsAfterStop(t *testing.T) {
	r := serve(t, minute)
	r.utilization(t, 75)
	_, err := r.get(nil)
	require.NoError(t, err)
	r.stop()
	_, err = r.client.IsActive(t.Context(), &pb.ScaledObjectRef{})
	assert.Error(t, err)
}
