package scenarios

import (
	"context"
	"fmt"
	"sync"
	"time"

	pb "github.com/kedacore/keda/v2/pkg/scalers/externalscaler"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// rollEverything replaces all pods of the installation, DaemonSet and fronts at
// once, as "kubectl rollout restart" does, while KEDA and a caller of our own ask
// all the time. Whatever answers says the number that is right, or that it does not
// know; and nothing scales.
func (s *story) rollEverything(right float64) {
	s.Helper()
	restart := client.RawPatch("application/merge-patch+json",
		[]byte(`{"spec":{"template":{"metadata":{"annotations":{"kubectl.kubernetes.io/restartedAt":"now"}}}}}`))
	meta := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: "gpuscaler", Name: name} }
	ctx, stop := context.WithCancel(s.ctx)
	defer stop()
	var caller sync.WaitGroup
	var said answers
	caller.Go(func() {
		said = askAllTheTime(ctx, &pb.ScaledObjectRef{
			Namespace: "own", Name: "engine", ScalerMetadata: map[string]string{"targetValue": "100", "window": "0s"},
		}, serviceAddress)
	})
	s.must(shared.Client.Patch(s.ctx, &appsv1.DaemonSet{ObjectMeta: meta("gpuscaler")}, restart))
	s.must(shared.Client.Patch(s.ctx, &appsv1.Deployment{ObjectMeta: meta("gpuscaler-front")}, restart))
	s.eventually("everything is replaced, with 2 replicas all the time", func() error {
		wanted, _, err := s.Replicas(s.ctx)
		s.must(err)
		require.Equal(s, 2, wanted)
		if err := rolledOut(s.ctx, shared); err != nil {
			return err
		}
		return frontsReady(s.ctx)()
	})
	s.always("2 replicas after the rollout", 3*time.Second, s.replicas(2))
	stop()
	caller.Wait()
	s.Logf("while everything was replaced: %v", said)
	require.Empty(s, said.failed)
	require.NotEmpty(s, said.values)
	for value := range said.values {
		require.InDelta(s, right, value, 0, "%v", said)
	}
}

// answers are what GetMetrics said, and how often.
type answers struct {
	values  map[float64]int
	unknown map[codes.Code]int
	failed  []error // with a code that nobody may see
}

func (a answers) String() string {
	return fmt.Sprintf("values %v, no answer %v", a.values, a.unknown)
}

// askAllTheTime asks until ctx is done, over a new connection each time, so that behind
// a Service it is any replica's turn; of several addresses one after the other.
func askAllTheTime(ctx context.Context, ref *pb.ScaledObjectRef, addresses ...string) answers {
	said := answers{values: map[float64]int{}, unknown: map[codes.Code]int{}}
	for i := 0; ctx.Err() == nil; time.Sleep(20 * time.Millisecond) {
		conn, err := grpc.NewClient(addresses[i%len(addresses)], grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			said.failed = append(said.failed, err)
			break
		}
		i++
		call, cancel := context.WithTimeout(ctx, time.Second)
		r, err := pb.NewExternalScalerClient(conn).GetMetrics(call, &pb.GetMetricsRequest{ScaledObjectRef: ref})
		cancel()
		_ = conn.Close()
		switch code := status.Code(err); {
		case ctx.Err() != nil:
		case code == codes.OK:
			said.values[r.GetMetricValues()[0].GetMetricValueFloat()]++
		case code == codes.Unavailable || code == codes.DeadlineExceeded: // what KEDA holds on
			said.unknown[code]++
		default:
			said.failed = append(said.failed, err)
		}
	}
	return said
}
