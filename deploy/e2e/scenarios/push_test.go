package scenarios

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpuscaler/deploy/e2e/cluster"
)

// TestPushActivatesWithinASecond: an external-push trigger does not wait for the
// poll, which comes every five minutes here.
func TestPushActivatesWithinASecond(t *testing.T) {
	s := begin(t, setting{name: "push", fixture: "h200-idle", replicas: 0, alone: true, node: cluster.GPUNodeOptions{Interval: 200 * time.Millisecond}})
	s.scaleOn("external-push", "pollingInterval: 300\ncooldownPeriod: 300", "", "profile", "triton-inference", "window", "0s")
	s.eventually("Ready", s.condition("Ready", "True"))
	s.always("0 replicas", 5*time.Second, s.replicas(0))
	s.load("set * gpu_utilization 60")
	changed := time.Now()
	s.eventually("1 replica", s.atLeast(1))
	require.Less(s, time.Since(changed), time.Second)
}
