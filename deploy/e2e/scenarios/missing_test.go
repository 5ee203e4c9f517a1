package scenarios

import (
	"testing"
	"time"
)

// outage is longer than it takes for readings to become stale here, so that the
// scaler says so, and long enough for many polls and many looks of the HPA.
const outage = 12 * time.Second

// TestMissingDataNeverScalesDown: three replicas do not become fewer while scaler
// or sidecar are gone, and the workload scales again when they are back.
func TestMissingDataNeverScalesDown(t *testing.T) {
	t.Parallel() // with what follows, too
	for name, fallback := range map[string]string{
		"plain": "",
		// More than there are, as a careful user has it.
		"fallback": "\nfallback: {failureThreshold: 3, replicas: 4}",
	} {
		t.Run(name, func(t *testing.T) {
			s := begin(t, setting{name: "missing-" + name, fixture: "h200-idle", replicas: 1, node: scalerFlags("--stale-after=3s")})
			s.load("set * gpu_utilization 75")
			s.scale(holding+"\nmaxReplicaCount: 6"+fallback, "metricType", "gpu_utilization", "targetValue", "25", "window", "0s")
			s.eventually("3 replicas", s.replicas(3))

			s.node.Sidecar.Kill()
			s.always("3 replicas or more without the sidecar", outage, s.atLeast(3))
			s.afterOutage(fallback)
			s.load("set * gpu_utilization 50") // known only once the sidecar is back
			s.must(s.node.StartSidecar())
			s.eventually("2 replicas by the sidecar's new reading", s.replicas(2))

			s.node.Scaler.Kill()
			s.always("2 replicas or more without the scaler", outage, s.atLeast(2))
			s.load("set * gpu_utilization 100")
			s.must(s.node.StartScaler())
			s.eventually("4 replicas by the scaler's return", s.replicas(4))
			s.load("set * gpu_utilization 25")
			s.eventually("1 replica", s.replicas(1))
		})
	}
}

// afterOutage is what the user sees while the data is missing.
func (s *story) afterOutage(fallback string) {
	s.Helper()
	s.eventually("the message names node, GPU and age", s.said("KEDAScalerFailed", "node "+s.name+": GPU 0 (NVIDIA H200): nothing heard for"))
	if fallback == "" {
		s.eventually("still 3 replicas", s.replicas(3))
		return
	}
	s.eventually("the fallback is in force", s.condition("Fallback", "True"))
	s.eventually("the fallback's 4 replicas", s.replicas(4))
}
