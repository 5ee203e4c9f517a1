package scenarios

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpuscaler/deploy/e2e/cluster"
)

// ofWorkloads is a node whose triggers are about their workloads' own GPUs.
func ofWorkloads() cluster.GPUNodeOptions { return cluster.GPUNodeOptions{Workloads: true} }

// TestTwoWorkloadsOnOneNode: each scales on the GPUs of its own pods, and sees
// nothing of the other's.
func TestTwoWorkloadsOnOneNode(t *testing.T) {
	s := begin(t, setting{name: "two", fixture: "h100x8-uneven", replicas: 2, node: ofWorkloads()})
	quiet := s.beside("quiet", 1)
	s.eventually("the busy one has its GPUs", s.gpus(2))
	quiet.eventually("the quiet one has its GPU", quiet.gpus(1))
	s.loads(map[*story]float64{s: 90, quiet: 20})
	s.scale(holding, "profile", "triton-inference", "window", "0s")
	quiet.scale(holding, "profile", "triton-inference", "window", "0s")
	// ceil(2 x 90 / 75); the third has a GPU with no load, and the mean of 60 asks for 3.
	s.eventually("3 replicas of the busy one", s.replicas(3))
	quiet.eventually("1 replica of the quiet one", quiet.replicas(1))
	s.always("3 replicas of the busy one", 6*time.Second, s.replicas(3))
	quiet.always("1 replica of the quiet one", time.Second, quiet.replicas(1))
	s.loads(map[*story]float64{s: 20, quiet: 90})
	s.eventually("1 replica of the one that was busy", s.replicas(1))
	quiet.eventually("2 replicas of the one that was quiet", quiet.replicas(2))
}

// TestPendingForLackOfGPUs: pods that wait for a GPU are part of the answer. Eight
// GPUs at 40 % with a target of 25 ask for 13, of which five wait; with them the
// mean is within the tolerance, so it stays at 13 instead of growing each second.
func TestPendingForLackOfGPUs(t *testing.T) {
	s := begin(t, setting{name: "lack", fixture: "h100x8-uneven", replicas: 8, node: ofWorkloads()})
	s.eventually("8 pods have GPUs", s.gpus(8))
	s.load("set * gpu_utilization 40")
	s.scale(holding+"\nmaxReplicaCount: 50", "targetValue", "25", "window", "0s")
	s.eventually("13 replicas, 8 of them ready", s.counts(13, 8))
	s.always("13 replicas, 8 of them ready", 10*time.Second, s.counts(13, 8))
}

// TestLoadingPodsDoNotCascade: new pods load their weights for ten minutes, not
// ready and at 0 %, while the old ones stay busy.
func TestLoadingPodsDoNotCascade(t *testing.T) {
	s := begin(t, setting{name: "loading", fixture: "h100x8-uneven", replicas: 2, node: ofWorkloads(), workload: slow})
	s.eventually("2 pods are ready", s.replicas(2))
	s.node.Kubelet.Loading(10 * time.Minute)
	s.eventually("2 pods have GPUs", s.gpus(2))
	s.loads(map[*story]float64{s: 80})
	s.scale(holding+"\nmaxReplicaCount: 8", "targetValue", "50", "window", "0s")
	s.eventually("4 replicas, 2 of them ready", s.counts(4, 2))
	s.always("4 replicas, 2 of them ready", 10*time.Second, s.counts(4, 2))
	s.node.Kubelet.Loading(0)
	s.eventually("4 replicas", s.replicas(4)) // 160 over four is still 80 % of the target
	s.always("4 replicas", 5*time.Second, s.replicas(4))
}

// TestLoadingOutlastsTheCooldown: the first pod after zero loads for longer than
// KEDA waits with a workload that nobody uses, and is not taken away.
func TestLoadingOutlastsTheCooldown(t *testing.T) {
	s := begin(t, setting{name: "first", fixture: "h200-idle", replicas: 0, node: ofWorkloads(), workload: slow})
	s.node.Kubelet.Loading(10 * time.Minute)
	other := s.Named("clients")
	s.must(other.Deploy(s.ctx, "", 0))
	s.scaleOn("external", quick, clients, "profile", "triton-inference", "window", "0s")
	s.eventually("Ready", s.condition("Ready", "True"))
	s.must(other.Scale(s.ctx, 1))
	s.eventually("1 replica, which loads", s.counts(1, 0))
	s.must(other.Scale(s.ctx, 0))
	s.always("1 replica for three cooldowns", 10*time.Second, s.counts(1, 0))
	s.node.Kubelet.Loading(0)
	s.eventually("it is ready", s.replicas(1))
	s.eventually("0 replicas, because nobody uses it", s.replicas(0))
}

// TestStatefulSet: whatever has a scale subresource scales.
func TestStatefulSet(t *testing.T) {
	s := begin(t, setting{name: "stateful", fixture: "h100x8-uneven", replicas: 2, node: ofWorkloads(), workload: func(w *cluster.Workload) { w.Kind = "StatefulSet" }})
	s.eventually("2 pods have GPUs", s.gpus(2))
	s.loads(map[*story]float64{s: 90})
	s.scale(holding, "targetValue", "75", "window", "0s")
	s.eventually("3 replicas", s.replicas(3))
}

// TestMIG: pods with instances of one GPU, each with the instance's own figure.
func TestMIG(t *testing.T) {
	s := begin(t, setting{name: "mig", fixture: "h200-mig", replicas: 2, node: ofWorkloads()})
	s.eventually("2 pods have instances", s.gpus(2))
	ids, err := s.Devices(s.ctx, s.node)
	s.must(err)
	for _, id := range ids {
		require.Contains(s, id, "MIG-")
	}
	s.loads(map[*story]float64{s: 90})
	s.scale(holding+"\nmaxReplicaCount: 4", "targetValue", "75", "window", "0s")
	s.eventually("3 replicas", s.replicas(3))
}

// TestKubeletRestart: its socket is another one afterwards. What pods hold is
// remembered meanwhile, and pods that come later are known, too.
func TestKubeletRestart(t *testing.T) {
	s := begin(t, setting{name: "restart", fixture: "h100x8-uneven", replicas: 2, node: ofWorkloads()})
	s.eventually("2 pods have GPUs", s.gpus(2))
	s.loads(map[*story]float64{s: 50})
	s.scale(holding+"\nmaxReplicaCount: 8", "targetValue", "50", "window", "0s")
	s.eventually("the sum of both", s.hpaValue(50))
	s.node.Kubelet.Stop()
	s.loads(map[*story]float64{s: 90})
	s.eventually("4 replicas, without the kubelet", s.replicas(4))
	s.always("4 replicas, two of them with GPUs that nobody knows", 5*time.Second, s.replicas(4))
	s.must(s.node.Kubelet.Start())
	s.eventually("4 pods have GPUs", s.gpus(4))
	s.loads(map[*story]float64{s: 90})
	s.eventually("8 replicas: the new pods count", s.replicas(8))
}

// slow has pods played by the node's Kubelet.
func slow(w *cluster.Workload) { w.Slow = true }

// counts checks how many replicas are asked for, and how many are ready.
func (s *story) counts(wanted, ready int) func() error {
	return func() error {
		w, r, err := s.Replicas(s.ctx)
		if err == nil && (w != wanted || r != ready) {
			err = fmt.Errorf("%d replicas, %d of them ready; want %d and %d", w, r, wanted, ready)
		}
		return err
	}
}

// shown is the value per replica that the HPA shows.
func (s *story) shown() (float64, error) {
	h, err := s.HPA(s.ctx)
	if err != nil {
		return 0, err
	}
	if len(h.Status.CurrentMetrics) != 1 || h.Status.CurrentMetrics[0].External == nil || h.Status.CurrentMetrics[0].External.Current.AverageValue == nil {
		return 0, fmt.Errorf("no value: %+v", h.Status)
	}
	return h.Status.CurrentMetrics[0].External.Current.AverageValue.AsApproximateFloat64(), nil
}

// hpaValue checks the value per replica that the HPA shows.
func (s *story) hpaValue(want float64) func() error {
	return func() error {
		got, err := s.shown()
		if err == nil && got != want {
			err = fmt.Errorf("the HPA shows %v; want %v", got, want)
		}
		return err
	}
}

// beside is another workload on the same node.
func (s *story) beside(name string, replicas int, options ...func(*cluster.Workload)) *story {
	s.Helper()
	b := *s
	b.name = s.name + "-" + name
	var err error
	b.Workload, err = s.on.AddWorkload(s.ctx, b.name, s.node.Name, replicas, options...)
	require.NoError(s, err)
	s.Cleanup(b.retire)
	return &b
}

// gpus checks that n of the workload's pods have a GPU.
func (s *story) gpus(n int) func() error {
	return func() error {
		total := 0
		for _, node := range s.all() {
			ids, err := s.Devices(s.ctx, node)
			if err != nil {
				return err
			}
			total += len(ids)
		}
		if total != n {
			return fmt.Errorf("its pods have %d GPUs; want %d", total, n)
		}
		return nil
	}
}

// loads sets the GPU utilization of what the workloads' pods have now; all else
// is idle. More are further lines for the driver.
func (s *story) loads(percent map[*story]float64, more ...string) {
	s.Helper()
	lines := append([]string{"set * gpu_utilization 0"}, more...)
	for of, p := range percent {
		ids, err := of.Devices(s.ctx, s.node)
		require.NoError(s, err)
		for _, id := range ids {
			device, _, _ := strings.Cut(id, "::") // which may be shared
			lines = append(lines, fmt.Sprintf("set %s gpu_utilization %g", device, p))
		}
	}
	s.load(lines...)
}
