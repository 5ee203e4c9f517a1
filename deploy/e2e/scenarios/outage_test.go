package scenarios

import (
	"path/filepath"
	"testing"
	"time"

	pb "github.com/kedacore/keda/v2/pkg/scalers/externalscaler"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"gpuscaler/deploy/e2e/cluster"
)

// TestAPIServerOutage: for a minute there is no API server. The scaler answers by
// what it knows, at once, and goes on when it is back.
func TestAPIServerOutage(t *testing.T) {
	turns.turn(t, ofCluster, 5*time.Minute)
	c, err := cluster.Start(t.Context(), cluster.Options{
		Binaries: set, Product: product, Deploy: deploy, Dir: filepath.Join(work, "c"), Progress: func(string) {},
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Stop()) })
	s := begin(t, setting{name: "outage", fixture: "h100x8-uneven", replicas: 2, node: ofWorkloads(), workload: slow, on: func() *cluster.Cluster { return c }, joins: true})
	s.eventually("2 pods have GPUs", s.gpus(2))
	s.loads(map[*story]float64{s: 90})
	s.scale(holding+"\nmaxReplicaCount: 8", "targetValue", "75", "window", "0s")
	s.eventually("3 replicas", s.replicas(3))
	s.eventually("3 pods have GPUs", s.gpus(3))
	s.loads(map[*story]float64{s: 75})
	s.eventually("the third counts", s.hpaValue(75))

	conn, err := grpc.NewClient(s.node.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	s.must(err)
	t.Cleanup(func() { _ = conn.Close() })
	keda := pb.NewExternalScalerClient(conn)
	ref := &pb.ScaledObjectRef{Namespace: s.name, Name: s.name, ScalerMetadata: map[string]string{"targetValue": "75", "window": "0s"}}
	s.must(c.Outage(s.ctx, func() {
		for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
			asked := time.Now()
			r, err := keda.GetMetrics(s.ctx, &pb.GetMetricsRequest{ScaledObjectRef: ref})
			require.NoError(t, err)
			require.InDelta(t, 225, r.GetMetricValues()[0].GetMetricValueFloat(), 0)
			require.Less(t, time.Since(asked), time.Second)
		}
	}))
	// The node was silent, too, and Kubernetes has marked its pods as not ready for that.
	s.always("3 replicas or more", 5*time.Second, s.atLeast(3))
	s.eventually("Ready", s.condition("Ready", "True"))
	s.eventually("its pods are ready again", s.replicas(3))
	s.loads(map[*story]float64{s: 100})
	s.eventually("4 replicas", s.atLeast(4))
}
