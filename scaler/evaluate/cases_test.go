package evaluate

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/labels"

	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/trigger"
	"gpuscaler/shared/snapshot"
)

// What a process does while it loads is not its load, and what the previous owner of a
// GPU did is not the new one's.
func TestYoungPods(t *testing.T) {
	busyUntil := func(second int, then float64) func(int) values {
		return func(now int) values {
			if now < second {
				return values{"gpu_utilization": 100}
			}
			return values{"gpu_utilization": then}
		}
	}
	utilization := func(window string) metadata {
		return metadata{"metricType": "gpu_utilization", "targetValue": "50", "window": window}
	}
	s := tell(t, busyUntil(130, 20), busyUntil(0, 20))
	s.place(llm("new", id(0)).since(100, 130), llm("old", id(1)))
	s.until(140)
	d := s.must(utilization("15s"))
	assert.Equal(t, []int{1, 1}, []int{d.Replicas.Counting, d.Replicas.Starting}, "ready for 10 s: counts as not ready")
	assert.Equal(t, 1, d.Replicas.Desired)
	assert.True(t, d.Active)
	s.until(146)
	for _, window := range []string{"15s", "1m", "5m"} {
		d = s.must(utilization(window))
		assert.Equal(t, 2, d.Replicas.Counting, window)
		assert.InDelta(t, 20, d.Replicas.Mean, 0, "%s: its window does not reach back beyond its readiness", window)
	}
	s.until(500)
	d = s.must(utilization("5m"))
	assert.InDelta(t, 20, d.Replicas.Mean, 0)

	// A pod that never did anything on the GPU of one that worked until it ended.
	s = tell(t, busyUntil(300, 0))
	s.place(llm("before", id(0)))
	s.until(300)
	s.place(llm("after", id(0)).since(301, 303))
	s.until(320)
	d = s.must(utilization("5m"))
	assert.InDelta(t, 0, d.Replicas.Mean, 0)
	assert.False(t, d.Active)
}

// A scaler that has just started has a sample, and no window.
func TestUnfilledWindow(t *testing.T) {
	md := metadata{"metricType": "gpu_utilization", "targetValue": "50", "window": "5m"}
	old := llm("a", id(0)).since(-1000, -900)
	s := tell(t, func(int) values { return values{"gpu_utilization": 0} })
	s.place(old)
	s.until(5)
	_, err := s.decide(md)
	require.ErrorContains(t, err, "readings of 15s are needed, and its scaler has not had that many since it started")
	s.until(16)
	assert.InDelta(t, 0, s.must(md).Replicas.Mean, 0, "from then on the mean of what there is")
	assert.InDelta(t, 0, s.must(metadata{"window": "0s"}).Replicas.Mean, 0)

	// What another scaler received before completes it.
	s = tell(t, func(int) values { return values{"gpu_utilization": 0} })
	before := tell(t, func(int) values { return values{"gpu_utilization": 80} })
	before.until(400)
	s.n.Recall(map[string]fleet.Readings{id(0): before.n.Node().Device(id(0)).Readings()})
	s.place(old)
	s.until(30)
	assert.InDelta(t, 80*270.0/300, s.must(md).Replicas.Mean, 1)
	s.until(320)
	assert.InDelta(t, 0, s.must(md).Replicas.Mean, 0, "until its own readings fill it")
}

// The API server's list is right where a node's watch is dead, and the other way round.
func TestDeadWatch(t *testing.T) {
	md := metadata{"metricType": "gpu_utilization", "targetValue": "50", "window": "15s"}
	s := tell(t, constant(100, 0), constant(100, 0), constant(100, 0))
	s.place(llm("a", id(0)), llm("b", id(1)).loading(), llm("c", id(2)).loading())
	s.until(400)
	for _, name := range []string{"a", "b", "c"} {
		p := llm(name).Pod
		if name != "a" {
			p = llm(name).since(100, 300).Pod
		}
		s.w.Pods = append(s.w.Pods, &p)
	}
	s.w.Spec = 3
	d := s.must(md)
	assert.Equal(t, 3, d.Replicas.Counting, "two that became ready are not loading")
	assert.Equal(t, 6, d.Replicas.Desired)

	// The node has known it for a while, and a later list does not have it.
	for i := range s.pods {
		s.pods[i].Seen = at(1).Unix()
	}
	s.place(s.pods...)
	s.w.Pods, s.w.Spec = s.w.Pods[:1], 1
	assert.Len(t, s.must(md).Pods, 1)
	for i := range s.pods {
		s.pods[i].Seen = at(float64(s.second - 3)).Unix()
	}
	s.place(s.pods...)
	assert.Len(t, s.must(md).Pods, 3, "it may be newer than the list")
}

// A group of a LeaderWorkerSet is one replica.
func TestGroups(t *testing.T) {
	member := func(group, worker int, ids ...string) podOn {
		p := llm(fmt.Sprintf("set-%d-%d", group, worker), ids...)
		p.Group, p.Leader = fmt.Sprintf("set/%d", group), worker == 0
		return p
	}
	md := metadata{"metricType": "gpu_utilization", "targetValue": "50", "window": "15s", "podSelector": "app=llm"}
	groups := func(leaderGPU bool) *story {
		s := tell(t)
		var pods []podOn
		for group := range 2 {
			for worker := range 4 {
				s.reads = append(s.reads, constant(75, 0))
				var ids []string
				if worker > 0 || leaderGPU {
					ids = []string{id(group*4 + worker)}
				}
				pods = append(pods, member(group, worker, ids...))
			}
		}
		s.w.Sets = []string{"set"}
		s.place(pods...)
		s.until(30)
		return s
	}
	for _, leaderGPU := range []bool{true, false} {
		s := groups(leaderGPU)
		d := s.must(md)
		assert.Equal(t, 2, d.Replicas.Counting, "leader has a GPU: %v", leaderGPU)
		assert.Equal(t, 3, d.Replicas.Desired, "2 groups at 75 / 50")
		assert.Equal(t, 3, d.Replicas.Leads)
	}
	s := groups(true)
	s.pods[5] = s.pods[5].loading() // a worker
	s.pods[0] = s.pods[0].loading() // a leader
	s.place(s.pods...)
	d := s.must(md)
	assert.Equal(t, []int{1, 1}, []int{d.Replicas.Counting, d.Replicas.Starting}, "a group is ready when its leader is")
	s = groups(true)
	s.reads[6] = func(int) values { return nil }
	s.until(40)
	d = s.must(md)
	assert.Equal(t, []int{1, 1}, []int{d.Replicas.Counting, d.Replicas.Missing}, "it is missing if one of its GPU pods is")
	assert.Contains(t, d.Pods[1].Reason, "pod set-1-2: node node-1: GPU 6")
	s = groups(true)
	d = s.must(metadata{"metricType": "gpu_utilization", "targetValue": "50", "window": "15s", "aggregation": "sum"})
	assert.InDelta(t, 300, d.Pods[0].Value, 0, "the aggregation is over all of its GPUs")
}

// KEDA feeds numbers to a formula: the natural ones.
func TestComposite(t *testing.T) {
	md := metadata{"metricType": "gpu_utilization", "targetValue": "80", "window": "15s"}
	three := func(lose int) *story {
		s := tell(t)
		var pods []podOn
		for i := range 3 {
			s.reads = append(s.reads, constant(60, 0))
			if i < lose {
				s.reads[i] = func(int) values { return nil }
			}
			pods = append(pods, llm(fmt.Sprint("p", i), id(i)))
		}
		s.place(pods...)
		s.until(30)
		return s
	}
	s := three(0)
	for kind, want := range map[trigger.TargetType]float64{trigger.Value: 60, trigger.AverageValue: 180} {
		s.w.Composite = kind
		d := s.must(md)
		assert.InDelta(t, want, d.Value, 0)
		assert.Equal(t, 3, d.Replicas.Desired, "the formula's result is not known")
		assert.Equal(t, CompositeTrigger, d.Notices[0].Reason)
	}
	s.w.Composite = trigger.Value
	d := s.must(metadata{"profile": "training"})
	assert.Contains(t, d.Notices[0].Message, "Profile training never scales to zero by itself, but here KEDA decides")
	s = three(1)
	s.w.Composite = trigger.AverageValue
	assert.InDelta(t, 180, s.must(md).Value, 0, "one that is missing has the mean of the others")

	// New pods that are ready and not read yet: the HPA multiplies a mean by them.
	for kind, want := range map[trigger.TargetType]float64{trigger.Value: 180.0 / 5, trigger.AverageValue: 180} {
		s = three(0)
		s.place(append(s.pods, llm("new", "GPU-z").since(20, 25), llm("newer").since(25, 28))...)
		s.w.Composite = kind
		assert.InDelta(t, want, s.must(md).Value, 1e-3, kind)
	}
}

func TestTolerances(t *testing.T) {
	s := tell(t, constant(83, 0), constant(83, 0))
	s.place(llm("a", id(0)), llm("b", id(1)))
	s.until(30)
	md := metadata{"metricType": "gpu_utilization", "targetValue": "80", "window": "15s"}
	assert.Equal(t, 2, s.must(md).Replicas.Desired, "within 10 %")
	s.w.ScaleUpTolerance = new(0.02)
	d := s.must(md)
	assert.Equal(t, 3, d.Replicas.Desired, "83 is beyond 2 % of 80")
	assert.Equal(t, 3, d.Replicas.Leads)
	s.w.ScaleUpTolerance, s.w.ScaleDownTolerance = nil, new(0.5)
	s.reads[0], s.reads[1] = constant(39.8, 0), constant(39.8, 0)
	s.until(60)
	assert.Equal(t, 1, s.must(md).Replicas.Desired)
	s.w.ScaleDownTolerance = new(0.51)
	assert.Equal(t, 2, s.must(md).Replicas.Desired, "within 51 % below")
}

// Two owners of each GPU at 100 % need more of them.
func TestSaturatedSharedGPU(t *testing.T) {
	s := tell(t, constant(100, 0), constant(100, 0))
	s.place(llm("a", id(0)+"::0"), llm("b", id(0)+"::1"), llm("c", id(1)+"::0"), llm("d", id(1)+"::1"))
	s.until(30)
	md := metadata{"metricType": "gpu_utilization", "targetValue": "75", "window": "15s"}
	d := s.must(md)
	assert.Equal(t, 6, d.Replicas.Desired)
	assert.Empty(t, d.Notices)
	s.place(llm("a", id(0)+"::0"), llm("other", id(0)+"::1").of("other"))
	d = s.must(md)
	assert.Equal(t, 2, d.Replicas.Desired)
	require.Len(t, d.Notices, 1)
	assert.Equal(t, SharedDevice, d.Notices[0].Reason)
	assert.Contains(t, d.Notices[0].Message, "the GPU of pod a is allocated to 2 pods, 1 of them of other workloads")
}

// Routers beside the engines have no GPU, on whatever node they are.
func TestPodsWithoutGPUs(t *testing.T) {
	s := tell(t, constant(90, 0))
	router := llm("router")
	router.Plain = true
	s.place(llm("a", id(0)), router)
	away := llm("router-2").Pod
	away.Plain, away.Node = true, "cpu-node"
	away2 := away
	away2.Name, away2.UID = "router-3", "router-3"
	s.w.Pods, s.w.Spec = []*fleet.Pod{&away, &away2}, 1
	s.until(30)
	d := s.must(metadata{"metricType": "gpu_utilization", "targetValue": "50", "window": "15s", "podSelector": "app=llm"})
	assert.Equal(t, []int{1, 0, 0}, []int{d.Replicas.Counting, d.Replicas.Starting, d.Replicas.Missing})
	assert.Equal(t, 2, d.Replicas.Desired)
	assert.Zero(t, d.Unread)
}

// Nothing wakes a workload whose triggers all read its own pods.
func TestNothingWakesIt(t *testing.T) {
	s := tell(t, constant(0, 0))
	s.w.NothingWakes, s.w.Spec = true, 0
	s.until(1)
	d, err := ForWorkload(parse(t, metadata{}), s.f, &Workload{Selector: labels.Nothing(), NothingWakes: true, Told: at(1)}, at(1), limits)
	require.NoError(t, err)
	require.Len(t, d.Notices, 1)
	assert.Equal(t, NothingWakesIt, d.Notices[0].Reason)
	d, err = ForWorkload(parse(t, metadata{"profile": "training"}), s.f, &Workload{Selector: labels.Nothing(), NothingWakes: true, Told: at(1)}, at(1), limits)
	require.NoError(t, err)
	assert.Empty(t, d.Notices, "one that is always active keeps it above zero")
}

// Within five minutes of its start a pod counts as the HPA has it for CPU.
func TestInitialization(t *testing.T) {
	md := metadata{"metricType": "gpu_utilization", "targetValue": "50", "window": "0s"}
	for name, c := range map[string]struct {
		pod  podOn
		want []int // counting, starting
	}{
		"failing its probe, started an hour ago":  {llm("b", id(1)).since(-3600, -3500).failing(), []int{2, 0}},
		"failing its probe, started a minute ago": {llm("b", id(1)).since(-40, -30).failing(), []int{1, 1}},
		"ready for a minute":                      {llm("b", id(1)).since(-80, -30), []int{2, 0}},
		"never ready":                             {llm("b", id(1)).loading(), []int{1, 1}},
	} {
		s := tell(t, constant(60, 0), constant(60, 0))
		s.place(llm("a", id(0)), c.pod)
		s.until(30)
		d := s.must(md)
		assert.Equal(t, c.want, []int{d.Replicas.Counting, d.Replicas.Starting}, name)
	}
}

// What loads and is not read is missing, as the HPA has it: it counts as the target on
// the way down. What has no node yet is not.
func TestLoadingAndNotRead(t *testing.T) {
	s := tell(t, constant(20, 0), constant(20, 0), constant(20, 0))
	s.place(llm("a", id(0)), llm("b", id(1)), llm("c", id(2)))
	loading := llm("d").loading().Pod
	loading.Node, loading.Started = "node-2", at(-60)
	s.w.Pods = []*fleet.Pod{&loading}
	s.until(30)
	md := metadata{"metricType": "gpu_utilization", "targetValue": "50", "window": "15s"}
	d := s.must(md)
	assert.Equal(t, []int{3, 0, 1}, []int{d.Replicas.Counting, d.Replicas.Starting, d.Replicas.Missing})
	assert.Equal(t, 3, d.Replicas.Desired, "(3 x 20 + 50) / 50")
	loading.Pending = true
	d = s.must(md)
	assert.Equal(t, []int{3, 1, 0}, []int{d.Replicas.Counting, d.Replicas.Starting, d.Replicas.Missing})
	assert.Equal(t, 2, d.Replicas.Desired)

	// A workload whose first pod started a moment ago is no error, and active.
	fresh := llm("first").loading().Pod
	fresh.Node, fresh.Started = "node-2", at(28)
	s.place()
	s.w.Pods = []*fleet.Pod{&fresh}
	d = s.must(md)
	assert.Equal(t, 1, d.Replicas.Desired)
	assert.True(t, d.Active)
	fresh.Started = at(0)
	d, err := s.decide(md)
	require.Error(t, err, "over half of its pods are not read")
	assert.True(t, d.Active, "it starts, as the API server has it")
}

// Values of any size lead to the right count.
func TestLargeValues(t *testing.T) {
	s := tell(t, func(int) values { return values{"x_bytes": 8e9} })
	s.place(llm("a", id(0)))
	s.until(30)
	d := s.must(metadata{"metricType": "x_bytes", "targetValue": "8e8", "window": "15s"})
	assert.Equal(t, 10, d.Replicas.Leads)
	assert.InDelta(t, 8e9, d.Value, 0)
}

func TestContainer(t *testing.T) {
	md := metadata{"metricType": "gpu_utilization", "targetValue": "50", "window": "0s"}
	s := tell(t, constant(20, 0), constant(100, 0))
	s.place(llm("a", id(0), id(1)))
	s.until(1)
	s.n.apply(&snapshot.Sample{Writer: "podresources", Allocation: &snapshot.Allocation{Containers: []snapshot.Container{
		{Namespace: "shop", Pod: "a", Name: "engine", Plugin: []snapshot.PluginDevices{{Resource: "nvidia.com/gpu", IDs: []string{id(0)}}}},
		{Namespace: "shop", Pod: "a", Name: "embedder", Plugin: []snapshot.PluginDevices{{Resource: "nvidia.com/gpu", IDs: []string{id(1)}}}},
	}}}, 2)
	decide := func(container string) (Decision, error) {
		parsed := parse(t, md)
		parsed.Container = container
		w := s.w
		w.Spec, w.Status, w.Told = 1, 1, at(2)
		return ForWorkload(parsed, s.f, &w, at(2), limits)
	}
	for container, want := range map[string]float64{"engine": 20, "embedder": 100, "": 100} {
		d, err := decide(container)
		require.NoError(t, err)
		assert.InDelta(t, want, d.Value, 0, container)
	}
	_, err := decide("other")
	require.EqualError(t, err, `container: "other": pod a: its container "other" has no GPU; those that have are embedder, engine`)
}

// Another vendor's devices of the pod do not count.
func TestVendorsOfOnePod(t *testing.T) {
	n := newNode(t)
	f := fleet.New(n.Local)
	flash := snapshot.Device{ID: "flash", Vendor: "acme", Model: "Flash", Values: values{"temperature": 90}}
	n.say("acme", 1, flash)
	n.say("nvmlsidecar", 1, gpus(20)...)
	n.apply(&snapshot.Sample{Writer: "podresources", Allocation: &snapshot.Allocation{Containers: []snapshot.Container{{
		Namespace: "shop", Pod: "a", Name: "engine", Plugin: []snapshot.PluginDevices{{Resource: "acme.com/flash", IDs: []string{"flash"}}, {Resource: "nvidia.com/gpu", IDs: []string{id(0)}}},
	}}}}, 1)
	n.SetPods([]fleet.Pod{llm("a").Pod}, at(1))
	w := Workload{Namespace: "shop", Selector: labels.SelectorFromSet(labels.Set{"app": "llm"}), Spec: 1, Status: 1, Told: at(1)}
	for _, md := range []metadata{{}, {"gpuIndex": "0"}} {
		md["metricType"], md["window"] = "temperature", "0s"
		d, err := ForWorkload(parse(t, md), f, &w, at(2), limits)
		require.NoError(t, err)
		assert.InDelta(t, 30, d.Value, 0)
	}
	_, err := ForWorkload(parse(t, metadata{"metricType": "temperature", "window": "0s", "gpuIndex": "1"}), f, &w, at(2), limits)
	require.ErrorContains(t, err, "it has 1 GPU")
}
