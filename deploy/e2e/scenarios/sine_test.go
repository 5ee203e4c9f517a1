package scenarios

import (
	"context"
	"math"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A quarter of an hour, fifteen times as fast: the HPA looks each second instead
// of every 15 s, and so is everything else.
const (
	wave    = 20 * time.Second // five minutes
	waves   = 3
	loading = 2 * time.Second // half a minute
)

// demand is how many GPUs' worth of work there is, 1 to 4.
func demand(t time.Duration) float64 {
	return 2.5 - 1.5*math.Cos(2*math.Pi*t.Seconds()/wave.Seconds())
}

// TestSine: the load goes up and down in waves, and is not even over the pods,
// which take their time to load. Our replicas follow it: up once and down once in
// each wave. Beside it, on the same load, run what it has to be like, an HPA on
// CPU, and what people had before, the largest of all GPUs as a Value.
func TestSine(t *testing.T) {
	t.Parallel() // with what follows, too
	metadata := []string{"targetValue", "60", "window", "0s"}
	runs := map[string]*sine{}
	for name, scale := range map[string]func(s *story){
		"workload": func(s *story) { s.scaleOn("external", everySecond, "", metadata...) },
		"max": func(s *story) {
			s.scaleOn("external\n    metricType: Value", everySecond, "", append(metadata, "scope", "node", "aggregation", "max")...)
		},
		"cpu": func(s *story) { s.scaleOnCPU(60, 20, downscale) },
	} {
		runs[name] = &sine{}
		t.Run(name, func(t *testing.T) {
			s := begin(t, setting{name: "sine-" + name, fixture: "twenty-steps", replicas: 1, node: ofWorkloads(), workload: slow})
			s.eventually("1 pod is ready", s.replicas(1))
			s.node.Kubelet.Loading(loading)
			s.loads(nil)
			scale(s)
			runs[name].run(s)
			t.Logf("replicas: %v", runs[name].replicas)
			if name == "workload" {
				assert.LessOrEqual(t, runs[name].reversals(), 2*waves, "it turns more often than the load does")
				assert.LessOrEqual(t, slices.Max(runs[name].replicas), 9, "4 GPUs' worth at 60 % are 7, and the mean lags")
			}
		})
	}
	t.Cleanup(func() { // when all have ended
		ours, naive, cpu := runs["workload"], runs["max"], runs["cpu"]
		if len(ours.replicas) == 0 || len(naive.replicas) == 0 || len(cpu.replicas) == 0 {
			return // one failed before, or was not asked for
		}
		t.Logf("reversals: %d, naive %d, CPU %d; at most %d, %d, %d replicas; ours are %.2f from CPU's at the mean",
			ours.reversals(), naive.reversals(), cpu.reversals(), slices.Max(ours.replicas), slices.Max(naive.replicas), slices.Max(cpu.replicas), ours.distance(cpu))
		assert.True(t, naive.reversals() > ours.reversals() || slices.Max(naive.replicas) > slices.Max(ours.replicas)+1, "the naive way is as good")
		assert.Less(t, ours.distance(cpu), 1.0, "the driver's second and KEDA's are later than CPU's; more is another decision")
		if path := os.Getenv("GPUSCALER_E2E_PLOT"); path != "" {
			require.NoError(t, os.WriteFile(path, []byte(sinePlot(ours, naive, cpu)), 0o644))
		}
	})
}

// sinePlot draws them over the minutes that they stand for.
func sinePlot(ours, naive, cpu *sine) string {
	needed := make([]float64, len(ours.demand))
	for i, d := range ours.demand {
		needed[i] = d / 0.6
	}
	return plot(axis{"0 min", "5 min", "10 min", "15 min"},
		curve{needed, false, "#999", `stroke-dasharray="4 3"`, "demand / target"},
		curve{floats(naive.replicas), true, "#c33", `stroke-width="1.5"`, "by the largest of all GPUs"},
		curve{floats(cpu.replicas), true, "#36c", `stroke-width="1.5"`, "by CPU, the same load"},
		curve{floats(ours.replicas), true, "#176", `stroke-width="2.5"`, "by their own GPUs (scope: workload)"})
}

const everySecond = "pollingInterval: 1\nminReplicaCount: 1\nmaxReplicaCount: 20"

// sine is one run.
type sine struct {
	demand   []float64
	replicas []int
}

const step = 250 * time.Millisecond

// run has the load go up and down, and notes the replicas.
func (r *sine) run(s *story) {
	s.Helper()
	ctx, cancel := context.WithCancel(s.ctx)
	var both sync.WaitGroup
	defer both.Wait()
	defer cancel()
	started := time.Now()
	both.Go(func() {
		for ctx.Err() == nil {
			s.give(ctx, spread(demand(time.Since(started))))
			time.Sleep(step / 2)
		}
	})
	for tick := 0; tick < int(waves*wave/step); tick++ {
		time.Sleep(time.Until(started.Add(time.Duration(tick) * step)))
		wanted, _, err := s.Replicas(s.ctx)
		require.NoError(s, err)
		r.replicas = append(r.replicas, wanted)
		r.demand = append(r.demand, demand(time.Since(started)))
	}
}

// reversals is how often the direction changes.
func (r *sine) reversals() (n int) {
	direction := 0
	for i := 1; i < len(r.replicas); i++ {
		change := r.replicas[i] - r.replicas[i-1]
		if change != 0 && (change > 0) != (direction > 0) && direction != 0 {
			n++
		}
		if change != 0 {
			direction = change
		}
	}
	return n
}

// distance is how many replicas the two are apart, at the mean.
func (r *sine) distance(from *sine) float64 {
	n, sum := min(len(r.replicas), len(from.replicas)), 0.0
	for i := range n {
		sum += math.Abs(float64(r.replicas[i] - from.replicas[i]))
	}
	return sum / float64(n)
}
