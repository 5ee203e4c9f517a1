package scenarios

import (
	"testing"
	"time"
)

// timeSliced is a node each of whose devices may be shared by so many pods.
func timeSliced(pods int) setting {
	node := ofWorkloads()
	node.Shared = pods
	return setting{fixture: "h100x8-uneven", node: node}
}

// TestSaturatedSharedGPUs: two pods on each of two time-sliced GPUs, which are used up:
// the workload gets more replicas, not fewer.
func TestSaturatedSharedGPUs(t *testing.T) {
	scene := timeSliced(2)
	scene.name, scene.replicas = "saturated", 4
	s := begin(t, scene)
	s.eventually("4 pods have parts of GPUs", s.gpus(4))
	s.loads(map[*story]float64{s: 100})
	s.scale(holding+"\nmaxReplicaCount: 16", "targetValue", "75", "window", "0s")
	s.eventually("6 replicas: 4 x 100 / 75", s.replicas(6)) // the two new ones have a GPU without load
	s.always("6 replicas", 6*time.Second, s.replicas(6))
	s.loads(nil)
	s.eventually("1 replica without load", s.replicas(1))
}

// TestSharedGPU: time-sliced between four pods of two workloads, each of which is used
// as much as the GPU is; and each of the two is told that the other one counts, too.
func TestSharedGPU(t *testing.T) {
	scene := timeSliced(4)
	scene.name, scene.fixture, scene.replicas = "shared", "h200-idle", 3
	s := begin(t, scene)
	other := s.beside("other", 1)
	s.eventually("three of the four parts", s.gpus(3))
	other.eventually("the fourth part", other.gpus(1))
	s.load("set * gpu_utilization 80")
	s.scale(holding, "targetValue", "75", "window", "0s", "metricName", "part")
	other.scale(holding, "targetValue", "75", "window", "0s", "metricName", "part")
	other.eventually("the whole GPU's utilization", other.hpaValue(80))
	s.eventually("the same for each of the three", s.hpaValue(80))
	s.eventually("the user is told", s.said("SharedDevice", "allocated to 4 pods, 1 of them of other workloads"))
	other.eventually("and so is the other one", other.said("SharedDevice", "allocated to 4 pods, 3 of them of other workloads"))
	s.always("3 replicas: 80 is within the tolerance", 3*time.Second, s.replicas(3))
	s.load("set * gpu_utilization 20")
	s.eventually("1 replica: 3 x 20 / 75", s.replicas(1))
	other.always("1 replica of the other one", time.Second, other.replicas(1))
}
