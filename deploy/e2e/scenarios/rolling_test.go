package scenarios

import (
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	pb "github.com/kedacore/keda/v2/pkg/scalers/externalscaler"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// half is how long the load of wave is there, and how long it is not: a mean over 5 min
// is from 46.7 % to 53.3 %, whenever it is taken.
const half = 20 * time.Second

// wave has all GPUs of the fleet work and rest in turn, until the story ends.
func (f *fleet) wave() {
	ctx, stop := context.WithCancel(f.ctx)
	var playing sync.WaitGroup
	f.Cleanup(func() { stop(); playing.Wait() })
	playing.Go(func() {
		tick := time.NewTicker(half)
		defer tick.Stop()
		for percent := 100; ; percent = 100 - percent {
			for _, n := range f.fleet {
				if err := n.Driver(fmt.Sprintf("set * gpu_utilization %d", percent)); err != nil {
					f.Errorf("node %s: %v", n.Name, err)
				}
			}
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
}

// watchCounts records the replica counts that are asked for, one after the other; stop
// returns them.
func (f *fleet) watchCounts() (stop func() []int) {
	ctx, cancel := context.WithCancel(f.ctx)
	var watching sync.WaitGroup
	var counts []int
	watching.Go(func() {
		for ; ctx.Err() == nil; time.Sleep(100 * time.Millisecond) {
			wanted, _, err := f.Replicas(ctx)
			if err == nil && (len(counts) == 0 || counts[len(counts)-1] != wanted) {
				counts = append(counts, wanted)
			}
		}
	})
	f.Cleanup(func() { cancel(); watching.Wait() })
	return func() []int {
		cancel()
		watching.Wait()
		return counts
	}
}

// TestRollingUpdate: all scalers are replaced, one after the other, while a load comes
// and goes that is at the target over the window. No new process takes what it has read
// itself for the whole window, which would be 0 % or 100 %: the replica count never
// changes, whether KEDA asks an aggregator or the scalers of nodes.
func TestRollingUpdate(t *testing.T) {
	t.Parallel() // with what follows, too
	for name, c := range map[string]struct {
		nodes  int
		direct bool
	}{
		"aggregator": {3, false},
		"nodes":      {2, true},
	} {
		t.Run(name, func(t *testing.T) {
			const target = 50
			f := beginFleetOf(t, &fleetSetting{name: "rolling-" + name, nodes: c.nodes, there: c.nodes, replicas: c.nodes, direct: c.direct, within: 9 * time.Minute})
			f.eventually("all pods have GPUs", f.gpus(c.nodes))
			f.wave()
			ref := &pb.ScaledObjectRef{Namespace: f.name, Name: f.name, ScalerMetadata: map[string]string{"targetValue": fmt.Sprint(target), "window": "5m"}}
			// Whole periods: the mean is 50 % before the window is full, too.
			select {
			case <-time.After(14 * half):
			case <-f.ctx.Done():
			}
			f.scale(holding+"\nmaxReplicaCount: 12", "targetValue", fmt.Sprint(target), "window", "5m")
			f.eventually("Ready", f.condition("Ready", "True"))
			right := float64(target * c.nodes)
			f.eventually("all replicas answer with the target", func() error {
				all, err := f.answers(ref.GetScalerMetadata())
				if err == nil && (slices.Min(all) < 0.9*right || slices.Max(all) > 1.1*right) {
					err = fmt.Errorf("they answer %v", all)
				}
				return err
			})
			counts := f.watchCounts()
			ctx, stop := context.WithCancel(f.ctx)
			defer stop()
			var caller sync.WaitGroup
			var all answers
			addresses := f.addresses()
			if !c.direct {
				addresses = addresses[:len(f.fronts)]
			}
			caller.Go(func() { all = askAllTheTime(ctx, ref, addresses...) })
			for i, front := range f.fronts {
				f.must(front.Scaler.Stop())
				f.must(front.Start())
				f.always(fmt.Sprintf("the same replicas after aggregator %d is replaced", i), 8*time.Second, f.replicas(c.nodes))
			}
			for i, n := range f.fleet {
				f.must(n.Scaler.Stop())
				time.Sleep(2 * time.Second) // until the next pod runs
				f.must(n.StartScaler())
				f.must(n.WaitReady(f.ctx))
				f.always(fmt.Sprintf("the same replicas after the scaler of node %d is replaced", i), 16*time.Second, f.replicas(c.nodes))
			}
			f.always("the same replicas over a period of the load", 2*half, f.replicas(c.nodes))
			stop()
			caller.Wait()
			values := slices.Sorted(maps.Keys(all.values))
			require.NotEmpty(t, values)
			t.Logf("%d values from %v to %v, at the target %v; no answer: %v", len(values), values[0], values[len(values)-1], right, all.unknown)
			assert.Empty(t, all.failed)
			for _, v := range values {
				kept := math.Abs(v/right-1) <= 0.1 || int(math.Ceil(v/target)) == c.nodes
				assert.True(t, kept, "%v leads to another replica count", v)
			}
			assert.Equal(t, []int{c.nodes}, counts(), "replica counts that were asked for")
		})
	}
}
