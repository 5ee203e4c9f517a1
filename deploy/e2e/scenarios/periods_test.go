package scenarios

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpuscaler/deploy/e2e/cluster"
)

// TestDefaultPeriods is what a user sees who sets no period: KEDA looks every
// 30 s and wakes the workload, the HPA looks every 15 s and scales it up, and
// scales down only after five minutes of less load.
func TestDefaultPeriods(t *testing.T) {
	s := begin(t, setting{name: "periods", fixture: "h200-idle", replicas: 1, on: func() *cluster.Cluster { return untouched(t) }, shares: ofCluster})
	s.scale("", "profile", "triton-inference", "targetValue", "30")
	s.eventually("0 replicas: nobody uses the GPU", s.replicas(0))
	s.load("set * gpu_utilization 100")
	changed := time.Now()
	s.eventually("1 replica, by KEDA's next look", s.atLeast(1))
	awake := time.Now()
	require.LessOrEqual(t, awake.Sub(changed), 33*time.Second, "KEDA looks every 30 s")
	s.eventually("4 replicas, by one of the HPA's next looks", s.replicas(4))
	// Its first look may come before the 15 s mean of the utilization is up.
	require.LessOrEqual(t, time.Since(awake), 33*time.Second, "the HPA looks every 15 s")
	s.load("set * gpu_utilization 40")
	s.always("4 replicas: the HPA waits five minutes before it scales down", 40*time.Second, s.replicas(4))
}
