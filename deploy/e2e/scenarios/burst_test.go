package scenarios

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// evenly is a demand of so many GPUs' worth, spread evenly.
func evenly(demand float64) load {
	return func(_, n int) float64 { return min(100, 100*demand/float64(n)) }
}

// TestBurst: demand for 8 replicas comes at once, and each new pod is at 100 % while it
// loads, longer than the window is. What a pod did while it loaded is not its load: the
// replica count goes to 8 and stops there, as it does with the HPA on CPU.
func TestBurst(t *testing.T) {
	const (
		target, most, start = 75, 16, 4
		window              = 15 * time.Second
		loading             = 20 * time.Second
		still               = loading + window + 5*time.Second // a change comes within it, if any does
	)
	gpu := begin(t, setting{name: "burst-gpu", fixture: "twenty-steps", replicas: start, node: ofWorkloads(), workload: slow, within: 6 * time.Minute})
	cpu := begin(t, setting{name: "burst-cpu", fixture: "twenty-steps", replicas: start, node: ofWorkloads(), workload: slow, within: 6 * time.Minute, joins: true})
	both := []*story{gpu, cpu}
	for _, s := range both {
		s.eventually("4 pods are ready", s.replicas(start))
		s.eventually("4 pods have GPUs", s.gpus(start))
		s.node.Kubelet.Loading(loading)
		s.on.Usage.Window(s.Namespace, window)
	}
	began := time.Now()
	changed, scaled := began, false
	var counts [2][]int // that were asked for, one after the other
	for ready := [2]int{}; time.Since(changed) < still || ready != [2]int{8, 8}; time.Sleep(100 * time.Millisecond) {
		require.NoError(t, gpu.on.Ended())
		require.Less(t, time.Since(began), 4*time.Minute, "it does not settle at 8 ready replicas; by GPU and by CPU %v, ready %v", counts, ready)
		if !scaled && time.Since(began) > window+2*time.Second { // all windows are full of the burst
			gpu.scale(holding+fmt.Sprintf("\nmaxReplicaCount: %d", most), "targetValue", fmt.Sprint(target), "window", window.String())
			cpu.scaleOnCPU(target, most, downscale)
			scaled, changed = true, time.Now()
		}
		for i, s := range both {
			s.giveLoading(s.ctx, evenly(8*target/100.0), 100)
			wanted, n, err := s.Replicas(s.ctx)
			s.must(err)
			ready[i] = n
			if last := len(counts[i]) - 1; last < 0 || counts[i][last] != wanted {
				counts[i] = append(counts[i], wanted)
				changed = time.Now()
				t.Logf("%s: %d replicas, %d of them ready, after %s", s.name, wanted, n, time.Since(began).Round(100*time.Millisecond))
			}
		}
	}
	for i, s := range both {
		require.True(t, slices.IsSorted(counts[i]), "%s goes down: %v", s.name, counts[i])
		require.Equal(t, 8, slices.Max(counts[i]), "%s: %v", s.name, counts[i])
	}
}
