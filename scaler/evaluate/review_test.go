package evaluate

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/trigger"
	"gpuscaler/shared/snapshot"
)

// A formula never gets a zero for pods that have no value yet: KEDA would take the
// workload for idle.
func TestFormulaWithoutAnyValue(t *testing.T) {
	pending := llm("a").loading()
	pending.Node, pending.Pending = "", true
	for name, c := range map[string]struct {
		pod podOn
	}{
		"young":   {llm("a", id(0)).since(0, 25)},
		"loading": {llm("a", id(0)).loading()},
		"pending": {pending},
	} {
		for _, kind := range []trigger.TargetType{trigger.Value, trigger.AverageValue} {
			s := tell(t, constant(100, 0))
			s.w.Composite = kind
			if c.pod.Node == "" {
				s.w.Pods = []*fleet.Pod{&c.pod.Pod}
			} else {
				s.place(c.pod)
			}
			s.until(30)
			d, err := s.decide(metadata{"metricType": "gpu_utilization"})
			var e *Error
			require.ErrorAs(t, err, &e, name)
			assert.Equal(t, Error{Unavailable, "ScaledObject shop/llm: no pod is ready and has a value for the formula of its scalingModifiers yet"}, *e, name)
			assert.True(t, d.Active, name)
		}
	}
}

// Whether a pod with flat memory that cannot be read may be busy is told by its
// utilization, and not by its memory.
func TestFlatMemoryThatCannotBeRead(t *testing.T) {
	for name, c := range map[string]struct {
		utilization, memory float64
		want                bool
	}{
		"little memory, and busy": {100, 2, true},
		"much memory, and idle":   {0, 90, false},
	} {
		s := tell(t, constant(c.utilization, c.memory), constant(0, c.memory), constant(0, c.memory))
		s.place(llm("a", id(0)), llm("b", id(1)), llm("c", id(2)))
		s.until(400)
		md := metadata{"profile": "ollama"} // active above 3
		assert.Equal(t, c.want, s.must(md).Active, "%s: read", name)
		all := []snapshot.Device{}
		for i := range 3 {
			d := gpu(i, "NVIDIA H100", values{"gpu_utilization": 0, "memory_used_percent": c.memory})
			if i == 0 {
				d = failing(0, "memory_used_percent", "UNKNOWN")
				d.Model, d.Values = "NVIDIA H100", values{"gpu_utilization": c.utilization}
			}
			all = append(all, d)
		}
		s.n.say("nvmlsidecar", 401, all...)
		s.second = 402
		d := s.must(md)
		assert.Equal(t, 1, d.Replicas.Missing, name)
		assert.Equal(t, c.want, d.Active, "%s: not read", name)
	}
}

// In scope: node memory counts as it is read, also when it cannot be read any more.
func TestMemoryOfANodeThatCannotBeRead(t *testing.T) {
	n := newNode(t)
	read := func(i int, memory float64) snapshot.Device {
		return gpu(i, "NVIDIA H100", values{"gpu_utilization": 0, "memory_used_percent": memory})
	}
	for memory, want := range map[float64]bool{90: true, 2: false} {
		n.say("nvmlsidecar", 1, read(0, 2), read(1, memory))
		n.say("nvmlsidecar", 2, read(0, 2), failing(1, "memory_used_percent", "UNKNOWN"))
		d, err := Evaluate(parse(t, metadata{"scope": "node", "profile": "ollama", "window": "0s"}), n.Node(), at(2), staleAfter)
		require.NoError(t, err)
		assert.Equal(t, want, d.Active, "%v", memory)
	}
}

// Any pod of a group that starts keeps it from zero, and not its leader alone.
func TestGroupWhoseWorkerStarts(t *testing.T) {
	leader := llm("set-0-0", id(0)).since(-100, -50)
	leader.Group, leader.Leader = "set/0", true
	for name, change := range map[string]func(p *podOn){
		"loading": func(*podOn) {},
		"pending": func(p *podOn) { p.Node, p.Pending, p.ids = "", true, nil },
	} {
		worker := llm("set-0-1", id(1)).loading()
		worker.Group, worker.Started = "set/0", at(3)
		change(&worker)
		s := tell(t, constant(0, 0), constant(0, 0))
		s.w.Sets, s.w.Spec = []string{"set"}, 1
		if s.place(leader); worker.Node == "" {
			s.w.Pods = []*fleet.Pod{&worker.Pod}
		} else {
			s.place(leader, worker)
		}
		s.until(40)
		d := s.must(metadata{"metricType": "gpu_utilization"})
		assert.True(t, d.Active, name)
	}
}

// A worker that was replaced in a ready group brings nothing of what its GPU did for
// another owner.
func TestReplacedWorker(t *testing.T) {
	s := tell(t, constant(10, 0), func(second int) values {
		if second <= 400 {
			return values{"gpu_utilization": 100}
		}
		return values{"gpu_utilization": 10}
	})
	leader := llm("set-0-0", id(0)).since(0, 2)
	leader.Group, leader.Leader = "set/0", true
	s.w.Sets = []string{"set"}
	s.place(leader, llm("other", id(1)).of("other"))
	s.until(400)
	worker := llm("set-0-1", id(1)).since(401, 402)
	worker.Group = "set/0"
	s.place(leader, worker)
	for _, second := range []int{405, 412, 420} {
		s.until(second)
		d := s.must(metadata{"metricType": "gpu_utilization", "window": "5m"})
		assert.Equal(t, 1, d.Replicas.Desired, "%d", second)
		assert.InDelta(t, 10, d.Pods[0].Value, 0, "%d", second)
	}
}

// Pending pods that ask for no GPU do not stop growth.
func TestPendingRouters(t *testing.T) {
	s := tell(t, constant(75, 0), constant(75, 0))
	s.place(llm("a", id(0)), llm("b", id(1)))
	for _, name := range []string{"router-0", "router-1"} {
		p := llm(name).loading().Pod
		p.Plain, p.Pending, p.Node = true, true, ""
		s.w.Pods = append(s.w.Pods, &p)
	}
	s.w.Spec = 2
	s.until(30)
	d := s.must(metadata{"metricType": "gpu_utilization", "targetValue": "50", "podSelector": "app=llm"})
	assert.Equal(t, []int{2, 0, 0}, []int{d.Replicas.Counting, d.Replicas.Starting, d.Replicas.Missing})
	assert.Equal(t, 3, d.Replicas.Desired)
}

// A node whose driver does not open may be busy.
func TestClusterWithADriverThatDoesNotOpen(t *testing.T) {
	f := front(t)
	f.add("n1", 11, gpus(0))
	f.add("n2", 11, gpus(0))
	_, _, err := f.Join("n3").Apply(fleet.Node{
		Name: "n3", Heard: at(11), Writers: []fleet.Writer{{Name: "nvmlsidecar", Error: "nvmlInit: LIB_RM_VERSION_MISMATCH", Heard: at(11)}},
	}.With(fleet.NewPods(nil, nil, nil)))
	require.NoError(t, err)
	d, err := ForCluster(parse(t, utilization(metadata{"scope": "cluster"})), f, at(12), staleAfter)
	require.NoError(t, err)
	assert.True(t, d.Active)
}
