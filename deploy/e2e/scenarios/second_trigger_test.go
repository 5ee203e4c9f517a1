package scenarios

import (
	"testing"
	"time"
)

// clients is a second trigger: as many replicas as there are pods of the
// Deployment "clients".
const clients = `  - type: kubernetes-workload
    metadata: {podSelector: app=clients, value: "1"}
`

// TestSecondTrigger: the larger of the two decides, and when ours has no data
// the other one goes on scaling up.
func TestSecondTrigger(t *testing.T) {
	s := begin(t, setting{name: "second", fixture: "h200-idle", replicas: 1, node: scalerFlags("--stale-after=3s")})
	other := s.Named("clients")
	s.must(other.Deploy(s.ctx, "", 1))
	s.load("set * gpu_utilization 75")
	s.scaleOn("external", quick+"\nminReplicaCount: 1", clients, "targetValue", "25", "window", "0s")
	s.eventually("3 replicas for the GPU", s.replicas(3))
	s.must(other.Scale(s.ctx, 4))
	s.eventually("4 replicas for the clients", s.replicas(4))
	s.must(other.Scale(s.ctx, 1))
	s.eventually("3 replicas for the GPU again", s.replicas(3))

	s.node.Sidecar.Kill()
	s.always("3 replicas or more without our data", 8*time.Second, s.atLeast(3))
	s.must(other.Scale(s.ctx, 5))
	s.eventually("5 replicas for the clients, without our data", s.replicas(5))
	s.must(other.Scale(s.ctx, 1))
	s.always("5 replicas: the HPA does not go down on half of the facts", 8*time.Second, s.replicas(5))
	s.must(s.node.StartSidecar())
	s.eventually("3 replicas for the GPU", s.replicas(3))
}
