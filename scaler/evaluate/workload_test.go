package evaluate

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/labels"

	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/replicas"
	"gpuscaler/scaler/trigger"
	"gpuscaler/shared/snapshot"
)

var limits = Limits{StaleAfter: staleAfter, AttributionStaleAfter: 2 * time.Minute, Tolerance: replicas.DefaultTolerance}

// scene is a node with GPUs of a utilization each, and pods of the workload
// "llm" that hold some of them.
type scene struct {
	gpus []snapshot.Device
	pods []podOn
	w    Workload
}

// podOn is one pod and the ids that it holds.
type podOn struct {
	fleet.Pod
	ids []string
}

func llm(name string, ids ...string) podOn {
	return podOn{fleet.Pod{Namespace: "shop", Name: name, UID: "uid of " + name, Node: "node-1", Labels: map[string]string{"app": "llm"}, Ready: true, WasReady: true, Created: epoch}, ids}
}

func (p podOn) loading() podOn { p.Ready, p.WasReady = false, false; return p }
func (p podOn) failing() podOn { p.Ready = false; return p }
func (p podOn) of(app string) podOn {
	p.Labels = map[string]string{"app": app}
	return p
}

// elsewhere are ready pods on a node that is not heard.
func elsewhere(names ...string) (all []*fleet.Pod) {
	for _, name := range names {
		p := llm(name).Pod
		p.Node = "node-2"
		all = append(all, &p)
	}
	return all
}

func gpus(utilization ...float64) (all []snapshot.Device) {
	for i, u := range utilization {
		all = append(all, gpu(i, "NVIDIA H200", values{"gpu_utilization": u, "temperature": 30 + float64(i), "power_draw": 100 * float64(i+1)}))
	}
	return all
}

// id is that of the GPU with an index.
func id(index int) string { return gpu(index, "", nil).ID }

// at is the node and the workload one second after the start, when all is heard.
func (s scene) at(t *testing.T) (*fleet.Fleet, *Workload) {
	t.Helper()
	n := newNode(t)
	f := fleet.New(n.Local)
	n.say("nvmlsidecar", 1, s.gpus...)
	allocation := &snapshot.Allocation{}
	var all []fleet.Pod
	for _, p := range s.pods {
		all = append(all, p.Pod)
		if len(p.ids) > 0 {
			allocation.Containers = append(allocation.Containers, snapshot.Container{
				Namespace: p.Namespace, Pod: p.Name, Name: "engine", Plugin: []snapshot.PluginDevices{{Resource: "nvidia.com/gpu", IDs: p.ids}},
			})
		}
	}
	n.apply(&snapshot.Sample{Writer: "podresources", Allocation: allocation}, 1)
	n.SetPods(all, at(1))
	w := s.w
	w.Name, w.Namespace, w.Told = "ScaledObject shop/llm", "shop", at(1)
	w.Selector = labels.SelectorFromSet(labels.Set{"app": "llm"})
	if w.Status == 0 {
		for _, p := range s.pods {
			if p.Namespace == "shop" && p.Labels["app"] == "llm" {
				w.Status++
			}
		}
		w.Status += len(w.Pods)
	}
	if w.Spec == 0 {
		w.Spec = w.Status
	}
	return f, &w
}

// activity is whether the workload is active.
func activity(t *trigger.Trigger, f Fleet, w *Workload, now time.Time, limits Limits) (bool, error) {
	d, err := ForWorkload(t, f, w, now, limits)
	if d.Active {
		return true, nil
	}
	return false, err
}

// utilization is a trigger on it, with a target of 50, over the last sample.
func utilization(more metadata) metadata {
	md := metadata{"metricType": "gpu_utilization", "targetValue": "50", "window": "0s"}
	maps.Copy(md, more)
	return md
}

func TestWorkload(t *testing.T) {
	pending := new(llm("pending").loading().Pod)
	pending.Node = ""
	for name, c := range map[string]struct {
		scene  scene
		md     metadata
		value  float64
		active bool
	}{
		"the mean of its pods, summed up for the HPA": {
			scene{gpus: gpus(90, 60, 100), pods: []podOn{llm("a", id(0)), llm("b", id(1)), llm("other", id(2)).of("other")}}, nil, 150, true},
		"under Value the mean": {
			scene{gpus: gpus(90, 60), pods: []podOn{llm("a", id(0)), llm("b", id(1))}, w: Workload{TargetType: trigger.Value}}, nil, 75, true},
		"Value from the metadata, where the ScaledObject is not known": {
			scene{gpus: gpus(90, 60), pods: []podOn{llm("a", id(0)), llm("b", id(1))}}, metadata{"targetType": "Value"}, 75, true},
		"the ScaledObject before the metadata": {
			scene{gpus: gpus(90, 60), pods: []podOn{llm("a", id(0)), llm("b", id(1))}, w: Workload{TargetType: trigger.AverageValue}},
			metadata{"targetType": "Value"}, 150, true},
		"the GPUs of a pod: the busiest": {
			scene{gpus: gpus(20, 80), pods: []podOn{llm("a", id(0), id(1))}}, nil, 80, true},
		"the GPUs of a pod: the mean": {
			scene{gpus: gpus(20, 80), pods: []podOn{llm("a", id(0), id(1))}}, metadata{"aggregation": "avg"}, 50, true},
		"the GPUs of a pod: one of them": {
			scene{gpus: gpus(20, 80, 30), pods: []podOn{llm("a", id(1), id(2))}}, metadata{"gpuIndex": "1"}, 30, true},
		"another namespace's pods of the same labels": {
			scene{gpus: gpus(20, 80), pods: []podOn{llm("a", id(0)), func() podOn { p := llm("b", id(1)); p.Namespace = "other"; return p }()}}, nil, 20, true},
		"a percentage of a shared GPU counts whole for each": {
			scene{gpus: gpus(80), pods: []podOn{llm("a", id(0)+"::0"), llm("other", id(0)+"::1").of("other")}}, nil, 80, true},
		"a quantity of it is divided": {
			scene{gpus: gpus(80), pods: []podOn{llm("a", id(0)+"::0"), llm("other", id(0)+"::1").of("other")}},
			metadata{"metricType": "power_draw"}, 50, true},
		"so does its temperature": {
			scene{gpus: gpus(80), pods: []podOn{llm("a", id(0)+"::0"), llm("other", id(0)+"::1").of("other")}},
			metadata{"metricType": "temperature"}, 30, true},
		"idle": {
			scene{gpus: gpus(0), pods: []podOn{llm("a", id(0))}}, nil, 0, false},
		"not above the activation": {
			scene{gpus: gpus(5), pods: []podOn{llm("a", id(0))}}, metadata{"activationThreshold": "5"}, 5, false},
		"one pod above the activation": {
			scene{gpus: gpus(0, 6), pods: []podOn{llm("a", id(0)), llm("b", id(1))}}, metadata{"activationThreshold": "5"}, 6, true},
		"no pods, and none asked for": {
			scene{gpus: gpus(90), pods: []podOn{llm("other", id(0)).of("other")}, w: Workload{}}, nil, 0, false},
		"no pods of a profile that never goes to zero": {
			scene{gpus: gpus(90)}, metadata{"profile": "training"}, 0, true},

		// Section 5: 1 x 100 asks for 2; with the new pod at 0 the mean is 50.
		"a pod that loads is no reason for more": {
			scene{gpus: gpus(100, 0), pods: []podOn{llm("a", id(0)), llm("b", id(1)).loading()}}, nil, 100, true},
		"neither is one without a node": {
			scene{gpus: gpus(100), pods: []podOn{llm("a", id(0))}, w: Workload{Pods: []*fleet.Pod{pending}}}, nil, 100, true},
		"one that has come to the node since counts once": {
			scene{gpus: gpus(100, 100), pods: []podOn{llm("a", id(0)), llm("pending", id(1))}, w: Workload{Status: 2, Pods: []*fleet.Pod{pending}}}, nil, 200, true},
		"all load: hold": {
			scene{gpus: gpus(0, 0), pods: []podOn{llm("a", id(0)).loading(), llm("b", id(1)).loading()}}, nil, 100, true},
		"overloaded and failing its probe": {
			scene{gpus: gpus(100, 60), pods: []podOn{llm("a", id(0)).failing(), llm("b", id(1))}}, nil, 160, true},
		"a pod elsewhere counts as the target when the mean asks for less": {
			scene{gpus: gpus(10, 10, 10), pods: []podOn{llm("a", id(0)), llm("b", id(1)), llm("c", id(2))}, w: Workload{Pods: elsewhere("d")}}, nil, 100, true},
		// (10 + 50) / 2 is 30; two of them are asked for.
		"one that this node has not told of yet": {
			scene{gpus: gpus(10), pods: []podOn{llm("a", id(0))}, w: Workload{Status: 2, Pods: []*fleet.Pod{new(llm("b").Pod)}}}, nil, 100, true},
	} {
		t.Run(name, func(t *testing.T) {
			f, w := c.scene.at(t)
			d, err := ForWorkload(parse(t, utilization(c.md)), f, w, at(2), limits)
			require.NoError(t, err)
			assert.InDelta(t, c.value, d.Value, 0)
			assert.Equal(t, c.active, d.Active)
		})
	}
}

func TestWorkloadErrors(t *testing.T) {
	one := scene{gpus: gpus(90), pods: []podOn{llm("a", id(0))}}
	for name, c := range map[string]struct {
		scene scene
		md    metadata
		spoil func(n *fleet.Node, w *Workload)
		now   float64
		kind  Kind
		want  string
	}{
		"gpuIndex beyond the pod's GPUs": {one, metadata{"gpuIndex": "1"}, nil, 2, Invalid,
			"gpuIndex: 1 is beyond the GPUs of pod a; it has 1 GPU (gpuIndex 0)"},
		"gpuIndex with a GPU that nobody reports": {scene{gpus: gpus(90), pods: []podOn{llm("a", "GPU-z", id(0))}}, metadata{"gpuIndex": "1"}, nil, 2, Unavailable,
			"pod a: holds GPU-z, which nobody reports"},
		"no GPU, and the kubelet silent for a while": {scene{gpus: gpus(90), pods: []podOn{llm("a")}}, nil,
			func(n *fleet.Node, _ *Workload) { n.Allocated = at(-20) }, 2, Unavailable, "pod a: holds no GPU"},
		"no GPU, and the kubelet not heard since": {scene{gpus: gpus(90), pods: []podOn{func() podOn { p := llm("a"); p.Started = at(2); return p }()}}, nil,
			nil, 2, Unavailable, "pod a: holds no GPU"},
		"no GPU": {scene{gpus: gpus(90), pods: []podOn{llm("a")}}, nil, nil, 2, Impossible,
			"ScaledObject shop/llm: none of its 1 pods holds a GPU"},
		"no GPU of the model": {one, metadata{"gpuModel": "T4"}, nil, 2, Impossible,
			`ScaledObject shop/llm: none of its 1 pods holds a GPU with "T4" in its name`},
		"no such metric": {one, metadata{"metricType": "sm_activity"}, nil, 2, Impossible,
			"metricType: no GPU of the 1 pods of ScaledObject shop/llm has sm_activity: NVIDIA H200; they have gpu_utilization, temperature, power_draw"},
		"stale": {one, nil, nil, 12, Unavailable,
			"ScaledObject shop/llm: nothing is known of 1 of its 1 pods: pod a: node node-1: GPU 0 (NVIDIA H200): nothing heard for 11s, more than 10s"},
		"lost": {scene{gpus: []snapshot.Device{lost(0, "GPU_IS_LOST")}, pods: []podOn{llm("a", id(0))}}, nil, nil, 2, Unavailable,
			"ScaledObject shop/llm: nothing is known of 1 of its 1 pods: pod a: node node-1: GPU 0 (NVIDIA H200): GPU_IS_LOST"},
		"a device that nobody reports": {scene{gpus: gpus(1), pods: []podOn{llm("a", "GPU-z")}}, nil, nil, 2, Unavailable,
			"ScaledObject shop/llm: nothing is known of 1 of its 1 pods: pod a: holds GPU-z, which nobody reports"},
		"most elsewhere": {scene{gpus: gpus(90), pods: []podOn{llm("a", id(0))}, w: Workload{Pods: elsewhere("b", "c")}}, nil, nil, 2, Unavailable,
			"ScaledObject shop/llm: nothing is known of 2 of its 3 pods: pod b: nothing is heard of its node node-2; pod c: nothing is heard of its node node-2"},
		"many elsewhere": {scene{gpus: gpus(90), w: Workload{Pods: elsewhere("b", "c", "d", "e", "f", "g")}}, nil, nil, 2, Unavailable,
			"nothing is heard of its node node-2; and 2 more"},
		"kubelet silent": {one, nil, func(n *fleet.Node, _ *Workload) { n.Allocated = at(-200) }, 2, Unavailable,
			"node node-1: nothing heard from the kubelet for 3m22s, more than 2m0s"},
		"kubelet never heard": {one, nil, func(n *fleet.Node, _ *Workload) { n.Allocated = time.Time{} }, 2, Unavailable,
			"node node-1: nothing heard yet from the reader of the kubelet (scaler podresources), which knows the GPUs of each pod; without it only scope: node is possible"},
		"pods not known": {one, nil, func(n *fleet.Node, _ *Workload) { n.PodsKnown = false }, 2, Unavailable,
			"node node-1: its pods are not known yet from the API server"},
		"API server silent": {one, nil, func(_ *fleet.Node, w *Workload) { w.Told = at(-200) }, 2, Unavailable,
			"ScaledObject shop/llm: nothing heard from the API server for 3m22s, more than 2m0s"},
	} {
		t.Run(name, func(t *testing.T) {
			f, w := c.scene.at(t)
			if c.spoil != nil {
				c.spoil(f.Own(), w)
			}
			_, err := ForWorkload(parse(t, utilization(c.md)), f, w, at(c.now), limits)
			var e *Error
			require.ErrorAs(t, err, &e)
			assert.True(t, strings.HasSuffix(e.Reason, c.want), "%s", e.Reason)
			assert.Equal(t, c.kind, e.Kind)
			active, err := activity(parse(t, utilization(c.md)), f, w, at(c.now), limits)
			if name == "most elsewhere" {
				assert.True(t, active, "one that is known is active")
				return
			}
			require.EqualError(t, err, e.Reason, "whether it is active is not known either")
		})
	}
}

// One that this node had and has no more is gone, whatever the API server told
// before; another of its name, as of a StatefulSet, is not.
func TestGonePod(t *testing.T) {
	n := newNode(t)
	f := fleet.New(n.Local)
	n.say("nvmlsidecar", 1, gpus(10, 0)...)
	n.apply(&snapshot.Sample{Writer: "podresources", Allocation: &snapshot.Allocation{Containers: []snapshot.Container{{
		Namespace: "shop", Pod: "a", Plugin: []snapshot.PluginDevices{{Resource: "nvidia.com/gpu", IDs: []string{id(0)}}},
	}}}}, 1)
	a, b := llm("a").Pod, llm("b").Pod
	w := Workload{Name: "ScaledObject shop/llm", Namespace: "shop", Selector: labels.SelectorFromSet(labels.Set{"app": "llm"}), Spec: 1, Status: 1, Told: at(1), Pods: []*fleet.Pod{&a, &b}}
	n.SetPods([]fleet.Pod{a, b}, at(1))
	n.SetPods([]fleet.Pod{a}, at(2))
	d, err := ForWorkload(parse(t, utilization(nil)), f, &w, at(2), limits)
	require.NoError(t, err)
	assert.Len(t, d.Pods, 1)
	again := b
	again.UID = "another"
	w.Pods = []*fleet.Pod{&a, &again}
	d, err = ForWorkload(parse(t, utilization(nil)), f, &w, at(2), limits)
	require.NoError(t, err)
	require.Len(t, d.Pods, 2)
	assert.Equal(t, "node node-1 has not told of it yet", d.Pods[1].Reason)
}

// What an instance has not its GPU has, for all who hold a piece of it together.
func TestWorkloadOnMIG(t *testing.T) {
	g := gpu(0, "NVIDIA H200", values{"power_draw": 300, "temperature": 60})
	instance := func(i int, u float64) snapshot.Device {
		return snapshot.Device{ID: fmt.Sprint("MIG-", i), Vendor: "nvidia", Model: g.Model, Parent: g.ID, Instance: i, Profile: "1g.18gb", Values: values{"gpu_utilization": u}}
	}
	all := []snapshot.Device{g, instance(1, 80), instance(2, 20), instance(3, 100)}
	for metric, want := range map[string]float64{
		"gpu_utilization": 80 + 20, // b shares its instance with another: a percentage counts whole
		"power_draw":      2 * 300 / 4.0,
		"temperature":     2 * 60,
	} {
		f, w := scene{gpus: all, pods: []podOn{
			llm("a", "MIG-1"), llm("b", "MIG-2::0"), llm("other", "MIG-2::1").of("other"), llm("other-2", "MIG-3").of("other"),
		}}.at(t)
		d, err := ForWorkload(parse(t, metadata{"metricType": metric, "targetValue": "50", "window": "0s"}), f, w, at(2), limits)
		require.NoError(t, err)
		sum := 0.0
		for _, p := range d.Pods {
			sum += p.Value
		}
		assert.InDelta(t, want, sum, 1e-9, metric)
	}
	// Two instances of one GPU have its power once.
	f, w := scene{gpus: all, pods: []podOn{llm("a", "MIG-1", "MIG-2")}}.at(t)
	d, err := ForWorkload(parse(t, metadata{"metricType": "power_draw", "targetValue": "50", "window": "0s", "aggregation": "sum"}), f, w, at(2), limits)
	require.NoError(t, err)
	assert.InDelta(t, 300, d.Pods[0].Value, 1e-9)
}

// A decision tells of every pod how it counted.
func TestWorkloadReasons(t *testing.T) {
	f, w := scene{
		gpus: []snapshot.Device{gpus(90)[0], gpus(0, 70)[1], lost(2, "GPU_IS_LOST")},
		pods: []podOn{llm("a", id(0)), llm("b", id(1)).loading(), llm("c", id(2)), llm("d", id(0)), llm("e", id(0))},
		w:    Workload{Pods: elsewhere("f")},
	}.at(t)
	d, err := ForWorkload(parse(t, utilization(nil)), f, w, at(2), limits)
	require.NoError(t, err)
	var told []string
	for _, p := range d.Pods {
		told = append(told, fmt.Sprint(p.Pod.Name, " ", p.State, " ", p.Value, " ", p.Reason))
	}
	slices.Sort(told)
	assert.Equal(t, []string{"a 0 90 ", "b 1 70 ", "c 2 0 node node-1: GPU 2 (NVIDIA H200): GPU_IS_LOST", "d 0 90 ", "e 0 90 ",
		"f 2 0 nothing is heard of its node node-2"}, told)
	assert.Equal(t, 3, d.Replicas.Counting)
	assert.Equal(t, 2, d.Replicas.Missing)
	assert.Equal(t, replicas.WithinTolerance, d.Replicas.Reason, "270 / 6 is within 10 % of 50")
}
