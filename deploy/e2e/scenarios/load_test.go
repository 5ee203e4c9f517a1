package scenarios

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpuscaler/deploy/e2e/cluster"
)

// quick makes KEDA look every second and end a workload after three.
const quick = "pollingInterval: 1\ncooldownPeriod: 3"

// holding is for what has to stay while our answer is an error. When KEDA 2.21
// clears its cache of scalers for an error, a poll that reads the closed cache
// takes it for no error and no activity (ErrCacheClosed, kedacore/keda#7737), and
// scales to zero, which minReplicaCount prevents.
const holding = quick + "\nminReplicaCount: 1"

// TestRecordedLoadScalesUpAndBack plays a recorded LLM engine four times as fast:
// its tensor cores go from 3 % to 37 % and back in 20 s.
func TestRecordedLoadScalesUpAndBack(t *testing.T) {
	s := begin(t, setting{name: "load", fixture: "h200-llm", replicas: 1, node: cluster.GPUNodeOptions{Speed: 4}})
	s.scale(quick+"\nminReplicaCount: 1\nmaxReplicaCount: 8", "profile", "llm-saturation", "targetValue", "10", "window", "0s")
	s.eventually("3 replicas or more", s.atLeast(3))
	s.eventually("1 replica", s.replicas(1))
	s.eventually("3 replicas or more in the next wave", s.atLeast(3))
}

// TestIdleGoesToZero: after the cooldown, and not before.
func TestIdleGoesToZero(t *testing.T) {
	s := begin(t, setting{name: "zero", fixture: "h200-idle", replicas: 1})
	s.eventually("1 replica", s.replicas(1))
	s.load("set * gpu_utilization 60")
	s.scale("pollingInterval: 1\ncooldownPeriod: 8", "profile", "triton-inference", "window", "0s")
	s.eventually("active", s.condition("Active", "True"))
	s.load("set * gpu_utilization 10") // not above the profile's activation
	s.eventually("inactive", s.condition("Active", "False"))
	// By KEDA's own clock: on a busy machine its condition may be seen seconds late.
	s.eventually("0 replicas are asked for", func() error {
		wanted, _, err := s.Replicas(s.ctx)
		if err == nil && wanted != 0 {
			err = fmt.Errorf("%d replicas; want 0", wanted)
		}
		return err
	})
	o, err := s.ScaledObject(s.ctx)
	s.must(err)
	require.NotNil(t, o.Status.LastActiveTime)
	require.GreaterOrEqual(t, time.Since(o.Status.LastActiveTime.Time), 8*time.Second, "before the cooldown is over")
	s.eventually("0 replicas", s.replicas(0))
	s.load("set * gpu_utilization 60") // as when another workload wakes the GPU
	s.eventually("1 replica again", s.replicas(1))
}

// TestTrainingHoldsWithoutData: what the load asked for stays.
func TestTrainingHoldsWithoutData(t *testing.T) {
	s := begin(t, setting{name: "training-blind", fixture: "h200-idle", replicas: 1})
	s.load("set * gpu_utilization 100")
	s.scale(holding, "profile", "training", "targetValue", "50", "window", "0s")
	s.eventually("2 replicas", s.replicas(2))
	s.load("error nvmlDeviceGetUtilizationRates * UNKNOWN")
	s.eventually("KEDA is told", s.said("KEDAScalerFailed"))
	s.always("2 replicas without data", 10*time.Second, s.replicas(2))
}

// TestTrainingNeverGoesToZero: not even without load, for many cooldowns.
func TestTrainingNeverGoesToZero(t *testing.T) {
	s := begin(t, setting{name: "training", fixture: "h200-idle", replicas: 2})
	s.scale("pollingInterval: 1\ncooldownPeriod: 1", "profile", "training", "window", "0s")
	s.eventually("active", s.condition("Active", "True"))
	s.eventually("1 replica", s.replicas(1)) // the HPA's own minimum
	s.always("1 replica", 10*time.Second, s.replicas(1))
}
