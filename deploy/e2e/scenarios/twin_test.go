package scenarios

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"

	"gpuscaler/deploy/e2e/cluster"
)

// load is how busy pod i of n that serve is, in percent of its GPU or of its core.
type load func(i, n int) float64

// spread is a demand of so many GPUs' worth, spread over the pods: one in three
// has twice as much, and none more than a GPU can do.
func spread(demand float64) load {
	weight := func(i int) float64 {
		if i%3 == 0 {
			return 2
		}
		return 1
	}
	return func(i, n int) float64 {
		total := 0.0
		for j := range n {
			total += weight(j)
		}
		return math.Round(min(100, 100*demand*weight(i)/total))
	}
}

// hide has nothing read of n pods, until it is called again. They are the last that
// the Deployment deletes: if one went, the others would be read with their old loads
// until they get its share, and the HPA would go further down.
func (s *story) hide(n int) {
	s.Helper()
	pods, err := s.Pods(s.ctx)
	s.must(err)
	s.hidden = map[string]bool{}
	for i := range pods[:n] {
		s.must(s.Keep(s.ctx, &pods[i]))
		s.hidden[pods[i].Name] = true
	}
}

// give gives a load to the workload's pods, to their GPUs and to their CPUs
// alike. Those that do not serve yet have nothing to do.
func (s *story) give(ctx context.Context, l load) { s.giveLoading(ctx, l, 0) }

// giveLoading is give where a pod that does not serve yet is busy with loading.
func (s *story) giveLoading(ctx context.Context, l load, loading float64) {
	pods, err := s.Pods(ctx)
	if err != nil {
		return // the next time
	}
	slices.SortStableFunc(pods, func(a, b corev1.Pod) int { // those that are hidden first: of equal weight in all workloads
		switch hides := s.hidden[a.Name]; {
		case hides == s.hidden[b.Name]:
			return 0
		case hides:
			return -1
		default:
			return 1
		}
	})
	serving := 0
	for i := range pods {
		if cluster.Serves(&pods[i]) {
			serving++
		}
	}
	lines, cores, at := map[*cluster.GPUNode][]string{}, map[string]float64{}, 0
	for _, n := range s.all() {
		lines[n] = []string{"set * gpu_utilization 0"}
	}
	for i := range pods {
		percent := loading
		if cluster.Serves(&pods[i]) {
			percent = l(at, serving)
			at++
		}
		reading := fmt.Sprintf("%g", percent)
		if s.hidden[pods[i].Name] {
			reading = "!UNKNOWN"
		} else {
			cores[pods[i].Name] = percent / 100
		}
		for n := range lines {
			for _, id := range n.Kubelet.Given(&pods[i]) {
				lines[n] = append(lines[n], fmt.Sprintf("set %s gpu_utilization %s", id, reading))
			}
		}
	}
	s.on.Usage.Set(s.Namespace, cores)
	for n, of := range lines {
		_ = n.Driver(of...)
	}
}

// scaleOnCPU gives the workload the HPA that Kubernetes' users have: so much of a
// core for each pod. It waits for so long before it goes down.
func (s *story) scaleOnCPU(percent, most int, stabilization time.Duration) {
	s.Helper()
	s.must(s.Apply(s.ctx, fmt.Sprintf(`
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: %[1]s}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: %[2]s, name: %[1]s}
  minReplicas: 1
  maxReplicas: %[4]d
  metrics: [{type: Resource, resource: {name: cpu, target: {type: AverageValue, averageValue: %[3]dm}}}]
  behavior: {scaleDown: {stabilizationWindowSeconds: %[5]d}}
`, s.name, s.Kind, 10*percent, most, int(stabilization.Seconds()))))
}

// TestAsCPU: what scales on its GPUs has as many replicas as what scales on its
// CPUs by Kubernetes alone, for the same load: up, down, within the tolerance,
// while pods load and while some cannot be read.
func TestAsCPU(t *testing.T) {
	const target, most, start = 60, 12, 2
	gpu := begin(t, setting{name: "as-gpu", fixture: "twenty-steps", replicas: start, node: ofWorkloads(), workload: slow, within: 10 * time.Minute})
	cpu := begin(t, setting{name: "as-cpu", fixture: "twenty-steps", replicas: start, node: ofWorkloads(), workload: slow, within: 10 * time.Minute, joins: true})
	both := []*story{gpu, cpu}
	for _, s := range both {
		s.eventually("2 pods are ready", s.replicas(start))
		s.eventually("2 pods have GPUs", s.gpus(start))
	}
	phases := []phase{
		{"at the target", spread(1.2), 0, 0},
		{"within the tolerance", spread(1.3), 0, 0},
		{"up, and the new pods load", spread(2), time.Hour, 0},
		{"they serve", spread(2), 0, 0},
		{"two cannot be read, down", spread(1.2), 0, 2},
		{"one cannot be read, up", spread(4), 0, 1},
		{"down", spread(1), 0, 0},
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed of the last phases: %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	for range 5 {
		demand := 0.4 + 4*random.Float64()
		phases = append(phases, phase{fmt.Sprintf("%.2f GPUs' worth", demand), spread(demand), 0, 0})
	}
	for i, p := range phases {
		p.play(t, both, func() {
			if i == 0 {
				gpu.scale(holding+fmt.Sprintf("\nmaxReplicaCount: %d\nadvanced: {horizontalPodAutoscalerConfig: {behavior: {scaleDown: {stabilizationWindowSeconds: %d}}}}", most, int(stabilized.Seconds())), "targetValue", fmt.Sprint(target), "window", "0s")
				cpu.scaleOnCPU(target, most, stabilized)
			}
		})
	}
}

// phase is a load for as long as it takes to settle.
type phase struct {
	name    string
	load    load
	loading time.Duration // of new pods
	hidden  int           // pods of which nothing can be read
}

const (
	// downscale is how long the HPA waits before it goes down in this cluster, where it is not said.
	downscale = 3 * time.Second
	// stabilized is how long both HPAs of TestAsCPU wait before they go down. When a pod is deleted its
	// load is gone until the others get it, seconds later where the machine is busy;
	// after the cluster's own 3 s that was taken for less load, twice on a busy machine.
	stabilized = 10 * time.Second
	// settled is how long nothing changes when all is done: longer than KEDA, the HPA
	// and its stabilization take.
	settled = stabilized + 4*time.Second
)

// play gives both workloads the load until neither changes any more, and compares.
func (p *phase) play(t *testing.T, both []*story, begin func()) {
	t.Helper()
	started, since := time.Now(), time.Now()
	began := false
	for _, s := range both {
		s.hide(p.hidden)
	}
	var last [2][2]int
	for time.Since(since) < settled {
		require.Less(t, time.Since(started), 2*time.Minute, "%s: it does not settle; last %v", p.name, last)
		var now [2][2]int
		for i, s := range both {
			require.NoError(t, s.on.Ended())
			s.node.Kubelet.Loading(p.loading)
			s.give(s.ctx, p.load)
			var err error
			now[i][0], now[i][1], err = s.Replicas(s.ctx)
			s.must(err)
		}
		if now != last {
			last, since = now, time.Now()
		}
		if !began {
			begin()
			began = true
		}
		time.Sleep(100 * time.Millisecond)
	}
	require.Equal(t, last[1], last[0], "%s: replicas and ready ones by CPU and by GPU", p.name)
	t.Logf("%s: %d replicas, %d of them ready, by GPU and by CPU, after %s", p.name, last[0][0], last[0][1], time.Since(started).Round(100*time.Millisecond))
}
