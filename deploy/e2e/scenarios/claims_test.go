package scenarios

import (
	"testing"

	"gpuscaler/deploy/e2e/cluster"
)

// TestResourceClaims: pods that have their GPUs by claims (DRA) scale as those of
// a device plugin do. The scheduler allocates, and the driver's ResourceSlice says
// which GPU a device is.
func TestResourceClaims(t *testing.T) {
	s := begin(t, setting{
		name: "claims", fixture: "h100x8-uneven", replicas: 2, node: ofWorkloads(),
		workload: func(w *cluster.Workload) { w.Claims = true },
	})
	s.must(s.node.Publish(s.ctx))
	s.eventually("2 pods have GPUs", s.gpus(2))
	s.loads(map[*story]float64{s: 90})
	s.scale(holding+"\nmaxReplicaCount: 4", "targetValue", "75", "window", "0s")
	s.eventually("3 replicas", s.replicas(3))
	s.eventually("3 pods have GPUs", s.gpus(3))
	s.loads(map[*story]float64{s: 20})
	s.eventually("1 replica", s.replicas(1))
}

// TestMonitorsByClaim: a monitor has all GPUs of the node for administrative access, as the
// GPU operator's own do. A quantity is not divided by it.
func TestMonitorsByClaim(t *testing.T) {
	s := begin(t, setting{
		name: "admin", fixture: "h100x8-uneven", replicas: 2, node: ofWorkloads(),
		workload: func(w *cluster.Workload) { w.Claims = true },
	})
	s.must(s.node.Publish(s.ctx))
	monitor := s.beside("monitor", 1, func(w *cluster.Workload) { w.Claims, w.Monitors = true, true })
	monitor.eventually("the monitor runs", monitor.replicas(1))
	s.eventually("2 pods have GPUs", s.gpus(2))
	s.load("set * power_draw 400")
	// Divided by two owners it would be 200 W for each pod, which asks for no more.
	s.scale(holding+"\nmaxReplicaCount: 4", "metricType", "power_draw", "targetValue", "300", "window", "0s")
	s.eventually("3 replicas", s.replicas(3))
}
