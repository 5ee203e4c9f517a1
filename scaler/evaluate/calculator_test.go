package evaluate

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/scaler/replicas"
)

// The smallest situations in which a decision once differed from that of Kubernetes' own
// calculator for CPU, found by deploy/e2e/oracle.

// What was read before a pod became ready is not its load, however short the window is.
func TestReadBeforeReady(t *testing.T) {
	for _, c := range []struct {
		window      string
		ready, read int // seconds
		want        replicas.State
		mean        float64
	}{
		{"0s", 301, 300, replicas.Starting, 0},
		{"0s", 300, 300, replicas.Counting, 20},
		{"15s", 287, 300, replicas.Starting, 0}, // 13 s of readings, 16 s ago
		{"15s", 285, 300, replicas.Counting, 20},
		{"1m", 242, 300, replicas.Counting, 20}, // 58 s of readings, 61 s ago
	} {
		name := fmt.Sprintf("window %s, ready at %d, read at %d", c.window, c.ready, c.read)
		s := tell(t, func(second int) values {
			if second < c.ready {
				return values{"gpu_utilization": 100} // it loads
			}
			return values{"gpu_utilization": 20}
		})
		s.place(llm("a", id(0)).since(-600, float64(c.ready)))
		s.until(c.read)
		w := s.w
		w.Spec, w.Status, w.Told = 1, 1, at(float64(c.read+3))
		d, err := ForWorkload(parse(t, metadata{"metricType": "gpu_utilization", "targetValue": "50", "window": c.window}), s.f, &w, w.Told, limits)
		require.NoError(t, err, name)
		assert.Equal(t, c.want, d.Pods[0].State, name)
		assert.InDelta(t, c.mean, d.Replicas.Mean, 1e-9, name)
		assert.Equal(t, 1, d.Replicas.Desired, name)
	}
}

// A pod that was ready for a moment within 30 s of its start, and is not since then,
// counts as never ready, whether the scaler has seen that moment or not.
func TestInitialReadiness(t *testing.T) {
	for after, want := range map[float64]replicas.State{6: replicas.Starting, 29: replicas.Starting, 30: replicas.Counting, 600: replicas.Counting} {
		s := tell(t, constant(80, 0))
		p := llm("a", id(0)).since(-3600, -3598).failing()
		p.Changed = p.Started.Add(at(after).Sub(at(0)))
		s.place(p)
		s.until(20)
		d := s.must(metadata{"metricType": "gpu_utilization", "targetValue": "50", "window": "15s"})
		assert.Equal(t, want, d.Pods[0].State, "not ready since %v s after its start", after)
	}
}

// A group whose GPU pods wait for a node, or are replaced, is missing, and not one
// without GPUs. That there is nothing to read of it yet is no fault.
func TestGroupsThatWait(t *testing.T) {
	md := metadata{"metricType": "gpu_utilization", "targetValue": "50", "window": "0s"}
	member := func(group, worker int, ids ...string) podOn {
		p := llm(fmt.Sprintf("set-%d-%d", group, worker), ids...)
		p.Group, p.Leader = fmt.Sprintf("set/%d", group), worker == 0
		return p
	}
	pending := func(p podOn) podOn {
		p = p.loading()
		p.Node, p.Pending = "", true
		return p
	}
	replaced := func(p podOn) podOn { p.Terminating = true; return p }
	for name, c := range map[string]struct {
		utilization float64
		groups      int // of a leader without a GPU and a worker
		waits       func(podOn) podOn
		waiting     int
		want        int
	}{
		"one of two waits for a node, way down":   {30, 2, pending, 1, 2},
		"one of two is replaced, way down":        {30, 2, replaced, 1, 2},
		"one of two waits for a node, way up":     {90, 2, pending, 1, 2},
		"three of four wait for a node, way down": {10, 4, pending, 3, 4},
		"all wait for a node":                     {10, 2, pending, 2, 2},
	} {
		s := tell(t)
		s.w.Sets, s.w.Spec, s.w.Status = []string{"set"}, c.groups, c.groups
		var pods []podOn
		for group := range c.groups {
			s.reads = append(s.reads, constant(c.utilization, 0))
			pods = append(pods, member(group, 0))
			worker := member(group, 1, id(group))
			if group < c.waiting {
				worker = c.waits(worker)
			}
			if worker.Node == "" {
				s.w.Pods = append(s.w.Pods, &worker.Pod)
				continue
			}
			pods = append(pods, worker)
		}
		s.place(pods...)
		s.until(1)
		d := s.must(md)
		assert.Equal(t, []int{c.groups - c.waiting, 0, c.waiting}, []int{d.Replicas.Counting, d.Replicas.Starting, d.Replicas.Missing}, name)
		assert.Equal(t, c.want, d.Replicas.Desired, name)
	}
}
