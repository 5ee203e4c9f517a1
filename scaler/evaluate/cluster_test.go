package evaluate

import (
	"log/slog"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/scaler/attribution"
	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/replicas"
	"gpuscaler/shared/snapshot"
)

// nodes is a fleet without a node of its own.
type nodes struct {
	*fleet.Fleet
	t *testing.T
}

func front(t *testing.T) *nodes { return &nodes{fleet.New(nil), t} }

// add has a peer tell of a node: its GPUs, heard s seconds after the start, and
// the pods that hold them.
func (f *nodes) add(name string, s float64, gpus []snapshot.Device, pods ...podOn) {
	f.t.Helper()
	n := &node{fleet.NewLocal(name, staleAfter, slog.New(slog.DiscardHandler), epoch), f.t, map[string]*fleet.Source{}}
	for i := range gpus {
		gpus[i].ID = name + "-" + gpus[i].ID
	}
	n.say("nvmlsidecar", s, gpus...)
	allocation := &snapshot.Allocation{}
	var all []fleet.Pod
	for _, p := range pods {
		p.Node = name
		all = append(all, p.Pod)
		c := snapshot.Container{Namespace: p.Namespace, Pod: p.Name, Name: "engine", Plugin: []snapshot.PluginDevices{{Resource: "nvidia.com/gpu"}}}
		for _, id := range p.ids {
			c.Plugin[0].IDs = append(c.Plugin[0].IDs, name+"-"+id)
		}
		allocation.Containers = append(allocation.Containers, c)
	}
	n.apply(&snapshot.Sample{Writer: "podresources", Allocation: allocation}, s)
	n.SetPods(all, at(s))
	_, taken, err := f.Join(name).Apply(n.Node())
	require.NoError(f.t, err)
	require.True(f.t, taken)
}

// workload is what the API server tells of the pods, each with its node.
func (f *nodes) workload(pods map[string][]string) *Workload {
	_, w := scene{gpus: gpus(0)}.at(f.t)
	for node, names := range pods {
		for _, name := range names {
			p := llm(name).Pod
			p.Node = node
			w.Pods = append(w.Pods, &p)
		}
	}
	w.Spec, w.Status = len(w.Pods), len(w.Pods)
	return w
}

// One Deployment over three nodes scales as the mean of its pods says.
func TestWorkloadOnSeveralNodes(t *testing.T) {
	f := front(t)
	f.add("n1", 1, gpus(90, 100), llm("a", id(0)), llm("other", id(1)).of("other"))
	f.add("n2", 1, gpus(60), llm("b", id(0)))
	f.add("n3", 1, gpus(30), llm("c", id(0)).loading())
	where := map[string][]string{"n1": {"a"}, "n2": {"b"}, "n3": {"c"}}
	d, err := ForWorkload(parse(t, utilization(nil)), f, f.workload(where), at(2), limits)
	require.NoError(t, err)
	assert.Equal(t, []int{2, 1, 0}, []int{d.Replicas.Counting, d.Replicas.Starting, d.Replicas.Missing})
	assert.Equal(t, 3, d.Replicas.Desired, "(90 + 60 + 0) / 50")
	assert.InDelta(t, 75, d.Replicas.Mean, 1e-9)
}

// A node that falls silent never shrinks its workload; one of which nothing was
// ever heard neither.
func TestSilentNode(t *testing.T) {
	f := front(t)
	f.add("n1", 11, gpus(20), llm("a", id(0)))
	f.add("n2", 11, gpus(20), llm("b", id(0)))
	f.add("n3", 1, gpus(100), llm("c", id(0)))
	where := map[string][]string{"n1": {"a"}, "n2": {"b"}, "n3": {"c"}}
	d, err := ForWorkload(parse(t, utilization(nil)), f, f.workload(where), at(11), limits)
	require.NoError(t, err)
	assert.Equal(t, 3, d.Replicas.Desired, "100 counts as long as it is fresh")
	w := f.workload(where)
	w.Told = at(12)
	d, err = ForWorkload(parse(t, utilization(nil)), f, w, at(12), limits)
	require.NoError(t, err)
	assert.Equal(t, 1, d.Replicas.Missing)
	assert.Equal(t, 2, d.Replicas.Desired, "20 + 20 + the target")
	assert.Equal(t, replicas.ByAll, d.Replicas.Reason)

	where["n4"] = []string{"d", "e", "f"}
	_, err = ForWorkload(parse(t, utilization(nil)), f, f.workload(where), at(12), limits)
	var e *Error
	require.ErrorAs(t, err, &e)
	assert.Equal(t, Unavailable, e.Kind)
	assert.Contains(t, e.Reason, "nothing is known of 4 of its 6 pods: ")
	assert.Contains(t, e.Reason, "nothing is heard of its node n4")
	assert.Contains(t, e.Reason, "node n3: GPU 0 (NVIDIA H200): nothing heard for 11s, more than 10s")
}

// With no node in reach, that there are no pods is known all the same.
func TestNoNodes(t *testing.T) {
	f := front(t)
	d, err := ForWorkload(parse(t, utilization(nil)), f, f.workload(nil), at(2), limits)
	require.NoError(t, err)
	assert.Zero(t, d.Value)
	assert.False(t, d.Active)
	_, err = Evaluate(parse(t, metadata{"scope": "node"}), f.Own(), at(2), staleAfter)
	require.EqualError(t, err, "scope: node: this scaler has no node of its own; use scope: workload or scope: cluster")
}

func TestCluster(t *testing.T) {
	mixed := func(t *testing.T) *nodes {
		f := front(t)
		f.add("n1", 11, gpus(90, 70))
		t4 := gpus(10)
		t4[0].Model = "Tesla T4"
		f.add("n2", 11, t4)
		f.add("n3", 1, gpus(100)) // too old at 12
		return f
	}
	for name, c := range map[string]struct {
		fleet  func(t *testing.T) *nodes
		md     metadata
		value  float64
		silent int
		kind   Kind
		want   string
	}{
		"the largest, of those that speak": {fleet: mixed, value: 90, silent: 1},
		"the mean":                         {fleet: mixed, md: metadata{"aggregation": "avg"}, value: 170.0 / 3, silent: 1},
		"the first of each node":           {fleet: mixed, md: metadata{"gpuIndex": "0", "aggregation": "sum"}, value: 100, silent: 1},
		"the second, where there is one":   {fleet: mixed, md: metadata{"gpuIndex": "1"}, value: 70},
		"one model":                        {fleet: mixed, md: metadata{"gpuModel": "T4"}, value: 10},
		"gpuIndex beyond all": {fleet: func(t *testing.T) *nodes { f := front(t); f.add("n1", 11, gpus(1)); return f }, md: metadata{"gpuIndex": "3"},
			kind: Invalid, want: "gpuIndex: 3 is beyond the GPUs of node n1; it has 1 GPU (gpuIndex 0)"},
		"no such model": {fleet: mixed, md: metadata{"gpuModel": "A100"},
			kind: Impossible, want: `gpuModel: no GPU of 3 nodes has "A100" in its name; there are NVIDIA H200, Tesla T4`},
		"no such metric, as far as it is heard": {fleet: mixed, md: metadata{"metricType": "sm_activity"},
			kind: Unavailable, want: "scope: cluster: no GPU can be read: node n3: nothing heard for 11s, more than 10s"},
		"no such metric": {fleet: func(t *testing.T) *nodes { f := front(t); f.add("n1", 11, gpus(1)); f.add("n2", 11, gpus(2)); return f },
			md: metadata{"metricType": "sm_activity"}, kind: Impossible, want: "metricType: no GPU in scope on 2 nodes has sm_activity: NVIDIA H200; they have gpu_utilization, temperature, power_draw"},
		"most silent": {fleet: func(t *testing.T) *nodes { f := mixed(t); f.Join("10.0.0.4:6001"); f.Join("10.0.0.5:6001"); return f },
			kind: Unavailable, want: "scope: cluster: nothing is known of 3 of 5 nodes: nothing heard yet from peer 10.0.0.4:6001; " +
				"nothing heard yet from peer 10.0.0.5:6001; node n3: GPU 0 (NVIDIA H200): nothing heard for 11s, more than 10s"},
		"nobody": {fleet: front, kind: Unavailable, want: "scope: cluster: no node is heard of"},
	} {
		t.Run(name, func(t *testing.T) {
			md := utilization(metadata{"scope": "cluster"})
			for k, v := range c.md {
				md[k] = v
			}
			if c.fleet == nil {
				c.fleet = mixed
			}
			f := c.fleet(t)
			d, err := ForCluster(parse(t, md), f, at(12), staleAfter)
			if c.want != "" {
				var e *Error
				require.ErrorAs(t, err, &e)
				assert.Equal(t, Error{c.kind, c.want}, *e)
				return
			}
			require.NoError(t, err)
			assert.InDelta(t, c.value, d.Value, 1e-9)
			assert.Equal(t, c.silent, d.Silent)
			assert.Equal(t, 3, d.Nodes)
			assert.Equal(t, c.value > 0, d.Active)
		})
	}
}

// Peers tell of pods that hold devices. One that is not told of holds none, if its
// node has had the time to say so and does not say that it holds some unseen.
func TestPodThatPeersDoNotTellOf(t *testing.T) {
	for name, c := range map[string]struct {
		started   float64 // of the pod, in seconds
		strangers []string
		unheard   bool
		reason    string
	}{
		"it holds nothing":                      {-60, nil, false, "holds no GPU"},
		"it may just have been given one":       {0, nil, true, "node n1 has not told of it yet"},
		"the kubelet knows it, and nobody else": {-60, []string{"shop/b"}, true, "node n1 has not told of it yet"},
	} {
		n := newNode(t)
		n.say("nvmlsidecar", 1, gpus(90)...)
		holder := llm("a", id(0)).Pod
		holder.Node = "n1"
		holder.Shares = []attribution.Share{{Device: id(0), GPU: id(0), Holders: 1, GPUHolders: 1}}
		peers := front(t)
		_, _, err := peers.Join("n1").Apply(fleet.Node{
			Name: "n1", Heard: at(1), Allocated: at(1), PodsKnown: true, Devices: n.Node().Devices,
		}.With(fleet.NewPods([]*fleet.Pod{&holder}, nil, c.strangers)))
		require.NoError(t, err)
		w := peers.workload(map[string][]string{"n1": {"a", "b"}})
		for _, p := range w.Pods {
			p.Started = at(c.started)
		}
		d, err := ForWorkload(parse(t, utilization(nil)), peers, w, at(2), limits)
		require.NoError(t, err, name)
		require.Len(t, d.Pods, 2)
		for _, r := range d.Pods {
			if r.Pod.Name == "b" {
				assert.Equal(t, c.reason, r.Reason, name)
				assert.Equal(t, c.unheard, r.mayBeBusy, name)
			}
		}
	}
}
