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
// each wave. Beside it, on the same load, runs what people had before: the
// largest of all GPUs as a Value.
func TestSine(t *testing.T) {
	runs := map[string]*sine{}
	for name, c := range map[string]struct {
		kind     string
		metadata []string
	}{
		"workload": {"external", nil},
		"max":      {"external\n    metricType: Value", []string{"scope", "node", "aggregation", "max"}},
	} {
		runs[name] = &sine{}
		t.Run(name, func(t *testing.T) {
			s := begin(t, setting{name: "sine-" + name, fixture: "twenty-steps", replicas: 1, node: ofWorkloads(), workload: slow})
			s.eventually("1 pod is ready", s.replicas(1))
			s.node.Kubelet.Loading(loading)
			s.loads(nil)
			s.scaleOn(c.kind, "pollingInterval: 1\nminReplicaCount: 1\nmaxReplicaCount: 20", "",
				append([]string{"targetValue", "60", "window", "0s"}, c.metadata...)...)
			s.eventually("Ready", s.condition("Ready", "True"))
			runs[name].run(s)
			t.Logf("replicas: %v", runs[name].replicas)
			if name == "workload" {
				assert.LessOrEqual(t, runs[name].reversals(), 2*waves, "it turns more often than the load does")
				assert.LessOrEqual(t, slices.Max(runs[name].replicas), 9, "4 GPUs' worth at 60 % are 7, and the mean lags")
			}
		})
	}
	t.Cleanup(func() { // when both have ended
		ours, theirs := runs["workload"], runs["max"]
		if len(ours.replicas) == 0 || len(theirs.replicas) == 0 {
			return // one failed before, or was not asked for
		}
		t.Logf("reversals: %d and %d; at most %d and %d replicas", ours.reversals(), theirs.reversals(), slices.Max(ours.replicas), slices.Max(theirs.replicas))
		assert.True(t, theirs.reversals() > ours.reversals() || slices.Max(theirs.replicas) > slices.Max(ours.replicas)+1, "the naive way is as good")
		if path := os.Getenv("GPUSCALER_E2E_PLOT"); path != "" {
			require.NoError(t, os.WriteFile(path, []byte(plot(ours, theirs)), 0o644))
		}
	})
}

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
