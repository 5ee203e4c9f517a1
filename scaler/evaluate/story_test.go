package evaluate

import (
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/labels"

	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/trigger"
	"gpuscaler/shared/snapshot"
)

// story is a node over time: one reading of each GPU a second, and pods that come and go.
type story struct {
	t *testing.T
	n *node
	f *fleet.Fleet
	// second is the present one; reads are the GPUs' values at it, by index.
	second int
	reads  []func(second int) values
	pods   []podOn
	w      Workload
}

func tell(t *testing.T, reads ...func(second int) values) *story {
	s := &story{t: t, n: newNode(t), reads: reads}
	s.f = fleet.New(s.n.Local)
	s.w = Workload{Name: "ScaledObject shop/llm", Namespace: "shop", Selector: labels.SelectorFromSet(labels.Set{"app": "llm"}), TargetType: trigger.AverageValue}
	return s
}

// constant are readings that do not change.
func constant(utilization, memory float64) func(int) values {
	return func(int) values {
		return values{"gpu_utilization": utilization, "memory_used_percent": memory}
	}
}

// until lets time pass to a second, and everything be read at it.
func (s *story) until(second int) {
	for ; s.second <= second; s.second++ {
		var devices []snapshot.Device
		for i, read := range s.reads {
			if v := read(s.second); v != nil {
				devices = append(devices, gpu(i, "NVIDIA H100", v))
			} else {
				devices = append(devices, lost(i, "GPU_IS_LOST"))
			}
		}
		s.n.say("nvmlsidecar", float64(s.second), devices...)
	}
	s.second = second
	s.place(s.pods...)
	s.second++
}

// place are the pods from now on.
func (s *story) place(pods ...podOn) {
	s.pods = pods
	now := float64(s.second)
	allocation := &snapshot.Allocation{}
	var all []fleet.Pod
	for _, p := range pods {
		all = append(all, p.Pod)
		if len(p.ids) > 0 {
			allocation.Containers = append(allocation.Containers, snapshot.Container{
				Namespace: p.Namespace, Pod: p.Name, Name: "engine", Plugin: []snapshot.PluginDevices{{Resource: "nvidia.com/gpu", IDs: p.ids}},
			})
		}
	}
	s.n.apply(&snapshot.Sample{Writer: "podresources", Allocation: allocation}, now)
	s.n.SetPods(all, at(now))
}

// decide decides for the pods there are, as the last reading was taken.
func (s *story) decide(md metadata) (Decision, error) {
	s.t.Helper()
	w := s.w
	w.Told = at(float64(s.second - 1))
	if w.Spec == 0 {
		for _, p := range s.pods {
			if p.Labels["app"] == "llm" && (p.Group == "" || p.Leader) {
				w.Spec++
			}
		}
		w.Spec += len(w.Pods)
	}
	if w.Status == 0 {
		w.Status = w.Spec
	}
	return ForWorkload(parse(s.t, md), s.f, &w, w.Told, limits)
}

func (s *story) must(md metadata) Decision {
	s.t.Helper()
	d, err := s.decide(md)
	require.NoError(s.t, err)
	return d
}

// since are pods that started and became ready at these seconds.
func (p podOn) since(started, ready float64) podOn {
	p.Created, p.Started, p.FirstReady, p.Changed = at(started), at(started), at(ready), at(ready)
	return p
}
