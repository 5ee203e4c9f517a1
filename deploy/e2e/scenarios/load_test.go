package scenarios

import (
	"testing"
	"time"

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
	s.always("1 replica during the cooldown", 4*time.Second, s.replicas(1))
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
