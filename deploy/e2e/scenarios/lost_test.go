package scenarios

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// TestLostGPUOfAnIdleWorkload: the driver lost the GPU of one of ten pods, and nobody
// uses the others. The workload goes to its minimum all the same, and never to the
// replicas of its fallback.
func TestLostGPUOfAnIdleWorkload(t *testing.T) {
	t.Parallel() // with what follows, too
	for name, c := range map[string]struct {
		spec string
		left int
	}{
		"minimum":  {holding, 1},
		"zero":     {quick, 0},
		"fallback": {holding + "\nfallback: {failureThreshold: 3, replicas: 12}", 1},
	} {
		t.Run(name, func(t *testing.T) {
			s := begin(t, setting{name: "lost-" + name, fixture: "twenty-steps", replicas: 10, node: ofWorkloads()})
			s.eventually("10 pods have GPUs", s.gpus(10))
			s.eventually("10 pods are ready", s.replicas(10))
			pods, err := s.Pods(s.ctx)
			s.must(err)
			// Of nine readings and a missing one nobody can say anything if the missing one alone is left.
			lost := pods[3]
			before := lost.DeepCopy()
			metav1.SetMetaDataAnnotation(&lost.ObjectMeta, "controller.kubernetes.io/pod-deletion-cost", "-1")
			s.must(s.on.Client.Patch(s.ctx, &lost, client.MergeFrom(before)))
			ids := s.node.Kubelet.Given(&lost)
			require.Len(t, ids, 1)
			s.load("set * gpu_utilization 0", "lost "+ids[0])
			s.eventually("the scaler misses it", s.exported(0, "gpuscaler_gpu_up", ids[0]))

			most := 0
			s.scale(c.spec+"\nmaxReplicaCount: 20", "targetValue", "80", "window", "0s")
			s.eventually("the minimum", func() error {
				wanted, _, err := s.Replicas(s.ctx)
				s.must(err)
				most = max(most, wanted)
				return s.replicas(c.left)()
			})
			require.Equal(t, 10, most, "the most replicas that it asked for")
			s.always("it stays there", 5*time.Second, s.replicas(c.left))
		})
	}
}
