package evaluate

import (
	"fmt"
	"maps"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/trigger"
)

// reported are pods with a GPU each, of a workload that has what the field reports: a
// target of 80, active above 5, over 15 s, ready for an hour.
func reported(utilization ...float64) func(t *testing.T) *story {
	return func(t *testing.T) *story {
		s := tell(t)
		var pods []podOn
		for i, u := range utilization {
			s.reads = append(s.reads, constant(u, 0))
			pods = append(pods, llm(fmt.Sprint("p", i), id(i)).since(-3600, -3500))
		}
		s.place(pods...)
		s.until(30)
		return s
	}
}

// alter changes a story before it is decided for.
func alter(with func(t *testing.T) *story, how func(s *story)) func(t *testing.T) *story {
	return func(t *testing.T) *story {
		s := with(t)
		how(s)
		return s
	}
}

// What people who do this job report, in small. See cases_test.go for the rest.
func TestReported(t *testing.T) {
	nics := func(s *story) {
		for i := range s.pods {
			s.pods[i].ids = append(s.pods[i].ids, fmt.Sprintf("0000:3b:00.%d", i+2))
		}
		s.place(s.pods...)
	}
	silent := func(s *story) {
		s.w.Pods = elsewhere("silent")
	}
	shared := func(s *story) {
		for i := range 3 {
			s.pods = append(s.pods, llm(fmt.Sprint("q", i), fmt.Sprint(id(0), "::", i+1)).since(-3600, -3500))
		}
		s.place(s.pods...)
	}
	sets := func(s *story) {
		s.w.Sets = []string{"set"}
		for i := range s.pods {
			s.pods[i].Group, s.pods[i].Leader = fmt.Sprint("set/", i/4), i%4 == 0
		}
		s.place(s.pods...)
	}
	losing := func(s *story) {
		s.reads[9] = func(int) values { return nil }
		s.until(60)
	}
	for name, c := range map[string]struct {
		given  func(t *testing.T) *story
		md     metadata
		want   int
		active bool
		notice string
	}{
		"two idle pods with a NIC each":                       {alter(reported(0, 0), nics), nil, 0, false, ""},
		"the same with gpuIndex":                              {alter(reported(0, 0), nics), metadata{"gpuIndex": "0"}, 0, false, ""},
		"two groups of four at 100 %":                         {alter(reported(100, 100, 100, 100, 100, 100, 100, 100), sets), metadata{"podSelector": "app=llm"}, 3, true, ""},
		"activation above the target: inactive, as asked":     {reported(85, 85), metadata{"activationThreshold": "90"}, 2, false, SuspiciousTarget},
		"target 95, both at 100 %: it can never ask for more": {reported(100, 100), metadata{"targetValue": "95"}, 2, true, SuspiciousTarget},
		"four on one time-sliced GPU at 100 %":                {alter(reported(100), shared), nil, 5, true, ""},
		"one node silent, the others idle":                    {alter(reported(0, 0), silent), nil, 1, true, ""},
		"one node silent, the others at 30 %":                 {alter(reported(30, 30), silent), nil, 2, true, ""},
		"ten pods, nine idle, one on a GPU that is lost":      {alter(reported(0, 0, 0, 0, 0, 0, 0, 0, 0, 0), losing), nil, 1, false, ""},
		"nine at 30 %, one on a GPU that is lost":             {alter(reported(30, 30, 30, 30, 30, 30, 30, 30, 30, 30), losing), nil, 5, true, ""},
	} {
		for _, kind := range []trigger.TargetType{trigger.AverageValue, trigger.Value} {
			t.Run(fmt.Sprint(name, ", ", kind), func(t *testing.T) {
				s := c.given(t)
				s.w.TargetType = kind
				md := metadata{"metricType": "gpu_utilization", "targetValue": "80", "activationThreshold": "5", "window": "15s"}
				maps.Copy(md, c.md)
				d, err := s.decide(md)
				require.NoError(t, err, "GetMetrics, and so IsActive")
				assert.Equal(t, c.want, d.Replicas.Leads)
				assert.Equal(t, c.active, d.Active)
				var reasons []string
				for _, n := range d.Notices {
					reasons = append(reasons, n.Reason)
				}
				if c.notice == "" {
					assert.Empty(t, reasons)
				} else {
					assert.Equal(t, []string{c.notice}, reasons)
				}
			})
		}
	}
}

// Each profile on memory holds idle pods with a loaded model until five minutes are known,
// and lets them go then.
func TestFlatProfiles(t *testing.T) {
	for _, profile := range []string{"vllm-inference", "ollama", "tgi-inference", "batch"} {
		for _, memory := range []float64{20, 72, 90, 100} {
			s := tell(t, constant(0, memory), constant(0, memory), constant(0, memory))
			s.place(llm("a", id(0)), llm("b", id(1)), llm("c", id(2)))
			s.until(60)
			d := s.must(metadata{"profile": profile})
			assert.Equal(t, 3, d.Replicas.Leads, "%s at %v %%", profile, memory)
			s.until(330)
			d = s.must(metadata{"profile": profile})
			assert.Zero(t, d.Replicas.Leads, "%s at %v %%", profile, memory)
			assert.False(t, d.Active)
		}
	}
}

// A replica that became ready a short time ago is no reason to grow on what the others did
// before, whatever the window.
func TestRecentReadiness(t *testing.T) {
	halves := func(at int) func(int) values { // the load of one, of two from a second on
		return func(second int) values {
			if second < at {
				return values{"gpu_utilization": 100}
			}
			return values{"gpu_utilization": 50}
		}
	}
	for _, window := range []string{"0s", "15s", "1m", "5m"} {
		s := tell(t, halves(400), halves(400))
		s.place(llm("a", id(0)).since(-3600, -3500), llm("b", id(1)).since(300, 400))
		md := metadata{"metricType": "gpu_utilization", "targetValue": "50", "window": window}
		for second := 400; second < 720; second += 7 {
			s.until(second)
			d := s.must(md)
			assert.Equal(t, 2, d.Replicas.Leads, "%s at %d s: %+v", window, second, d.Replicas)
		}
	}
	// What the load since then asks for, too, is no less.
	s := tell(t, halves(1000), halves(1000))
	s.place(llm("a", id(0)).since(-3600, -3500), llm("b", id(1)).since(300, 400))
	s.until(420)
	assert.Equal(t, 4, s.must(metadata{"metricType": "gpu_utilization", "targetValue": "50", "window": "1m"}).Replicas.Leads)
}

// A pod that loads for longer than the HPA's five minutes is not ready until there are 15 s
// of readings either; it is not missing, for nothing lacks.
func TestLoadsForLong(t *testing.T) {
	s := tell(t, constant(20, 0), constant(20, 0))
	s.place(llm("a", id(0)).since(-3600, -3500), llm("b", id(1)).since(-1000, 50))
	md := metadata{"metricType": "gpu_utilization", "targetValue": "50", "window": "1m"}
	s.until(60)
	d := s.must(md)
	assert.Equal(t, []int{1, 1, 0}, []int{d.Replicas.Counting, d.Replicas.Starting, d.Replicas.Missing})
	s.until(66)
	d = s.must(md)
	assert.Equal(t, []int{2, 0, 0}, []int{d.Replicas.Counting, d.Replicas.Starting, d.Replicas.Missing})
}

// The window of a pod that became ready before its node's scaler restarted has nothing of
// its loading either.
func TestYoungPodAfterRestart(t *testing.T) {
	before := tell(t, func(second int) values { return values{"gpu_utilization": 100 * float64(1-min(1, second/100))} })
	before.until(120) // loaded until 100 s
	s := tell(t, constant(0, 0))
	s.n.Recall(map[string]fleet.Readings{id(0): before.n.Node().Device(id(0)).Readings()})
	s.place(llm("a", id(0)).since(-100, -25))
	s.until(38)
	d := s.must(metadata{"metricType": "gpu_utilization", "targetValue": "50", "window": "1m"})
	assert.InDelta(t, 0, d.Replicas.Mean, 0, "it is ready for 63 s, and its scaler runs for 38 s")
	assert.False(t, d.Active)
}

// A group over two nodes, of which one is silent, may be busy although the other's memory
// is flat and its GPUs idle.
func TestGroupOnASilentNode(t *testing.T) {
	s := tell(t, constant(0, 90))
	leader, worker := llm("set-0-0", id(0)), llm("set-0-1").Pod
	leader.Group, leader.Leader, worker.Group, worker.Node = "set/0", true, "set/0", "node-2"
	s.place(leader)
	s.w.Sets, s.w.Spec, s.w.Pods = []string{"set"}, 1, []*fleet.Pod{&worker}
	second, third := leader, leader // two more groups, which are read
	second.Group, second.Name, second.UID = "set/1", "set-1-0", "set-1-0"
	third.Group, third.Name, third.UID = "set/2", "set-2-0", "set-2-0"
	s.reads = append(s.reads, constant(0, 90), constant(0, 90))
	second.ids, third.ids = []string{id(1)}, []string{id(2)}
	s.place(leader, second, third)
	s.w.Spec = 3
	s.until(330)
	d := s.must(vllm)
	assert.Equal(t, []int{2, 0, 1}, []int{d.Replicas.Counting, d.Replicas.Starting, d.Replicas.Missing})
	assert.Equal(t, 1, d.Replicas.Leads)
	assert.True(t, d.Active)
	assert.Equal(t, "pod set-0-1: nothing is heard of its node node-2", d.Pods[0].Reason)
}

// A group whose only GPU pod is replaced has a GPU, and is missing until it is back.
func TestGroupWhoseWorkerEnds(t *testing.T) {
	s := tell(t, constant(0, 90))
	leader, worker := llm("set-0-0"), llm("set-0-1", id(0))
	leader.Plain, leader.Group, leader.Leader = true, "set/0", true
	worker.Group, worker.Terminating = "set/0", true
	s.w.Sets = []string{"set"}
	s.place(leader, worker)
	s.until(30)
	d := s.must(metadata{"metricType": "gpu_utilization"})
	assert.Equal(t, 1, d.Replicas.Missing)
	assert.Equal(t, 1, d.Replicas.Leads, "it may come back: hold")
	assert.Equal(t, "pod set-0-1: is terminating", d.Pods[0].Reason)
}
