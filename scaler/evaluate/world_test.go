package evaluate

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"time"

	"k8s.io/apimachinery/pkg/labels"

	"gpuscaler/scaler/attribution"
	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/trigger"
	"gpuscaler/scaler/window"
)

// world is a small cluster: nodes with devices, the pods of one workload, and pods of
// others that share their devices. What its devices read is a function of time, so that
// any moment can be looked at without the ones before.
type world struct {
	rng   *rand.Rand
	t     *trigger.Trigger
	w     Workload
	nodes []*machine
	own   *machine // this scaler's own node, or nil: an aggregator
	pods  []*replicaPod
	named int // pods made so far
	size  int // pods of a group; 0: no groups
	// metrics are those that its devices have.
	metrics []string

	// as fleet.Fleet has them at a moment
	now   time.Time
	views map[string]*fleet.Node
}

// machine is one node.
type machine struct {
	name    string
	gpus    []*gpuTruth
	free    []*gpuTruth // a place on a device each
	others  []*fleet.Pod
	unheard bool    // never received
	staleAt float64 // nothing is received from then on
	began   float64 // of its scaler, seconds
	dead    bool    // its watch of pods: not known
	mute    bool    // its reader of the kubelet ended before all this
}

// view is the node as it is received at now, or nil.
func (w *world) view(m *machine, s float64) *fleet.Node {
	if m.unheard {
		return nil
	}
	now := s
	if m.staleAt > 0 && now > m.staleAt {
		now = m.staleAt
	}
	n := fleet.Node{Name: m.name, Heard: at(now), Allocated: at(now), PodsKnown: !m.dead, Boot: 1}
	if m.mute {
		n.Allocated = time.Time{}
	}
	for _, g := range m.gpus {
		d := fleet.Device{ID: g.id, Vendor: "nvidia", Model: "NVIDIA H100", Index: g.index, Parent: g.parent, Instance: g.instance, MemoryTotalMiB: totalMiB, Heard: at(now)}
		if g.parent != "" {
			d.Profile = "1g.10gb"
		}
		failed := map[string]string{}
		switch {
		case g.lost:
			d.Error = "GPU_IS_LOST"
			for _, metric := range w.metrics {
				if _, ok := g.reading(metric, now, now); ok {
					failed[metric] = d.Error
				}
			}
			n.Devices = append(n.Devices, d.Describe(fleet.Readings{}, failed))
			continue
		case g.failing != "":
			if _, ok := g.reading(g.failing, now, now); ok {
				failed[g.failing] = "UNKNOWN"
			}
		}
		d.Motion = g.motion(now, m.began)
		n.Devices = append(n.Devices, d.Describe(g.means(w.metrics, now, m.began), failed))
	}
	var list []*fleet.Pod
	young := map[string][]fleet.Readings{}
	for _, p := range w.pods {
		if p.on != m || s < p.started || p.gone(s) {
			continue
		}
		pod := p.at(s)
		for _, g := range p.gpus {
			pod.Shares = append(pod.Shares, attribution.Share{Device: g.id, GPU: cmp.Or(g.parent, g.id), Holders: g.owners, GPUHolders: g.gpuOwners()})
		}
		list = append(list, pod)
		if begin := pod.Begin(); !begin.IsZero() && at(now).Sub(begin) <= window.Longest+staleAfter {
			of := make([]fleet.Readings, len(p.gpus))
			for i, g := range p.gpus {
				if since := max(m.began, begin.Sub(epoch).Seconds()); !g.lost && since < now {
					of[i] = g.means(w.metrics, now, since)
				}
			}
			young[pod.UID] = of
		}
	}
	return n.With(fleet.NewPods(append(list, m.others...), nil, nil)).WithYoung(young)
}

// look makes the fleet as it is at a second, and the workload with it.
func (w *world) look(s float64) {
	w.now, w.views = at(s), map[string]*fleet.Node{}
	w.allocate(s)
	for _, m := range w.nodes {
		if n := w.view(m, s); n != nil {
			w.views[m.name] = n
		}
	}
	w.w.Told, w.w.Pods, w.w.Status = w.now, nil, 0
	for _, p := range w.pods {
		if s >= p.created && !p.gone(s) {
			w.w.Pods = append(w.w.Pods, p.at(s))
			if p.leader && s < p.ends {
				w.w.Status++
			}
		}
	}
}

func (w *world) Own() *fleet.Node {
	if w.own == nil {
		return nil
	}
	return w.views[w.own.name]
}
func (w *world) Node(name string) *fleet.Node { return w.views[name] }
func (w *world) Unheard() (names []string)    { return nil }
func (w *world) Nodes() (all []*fleet.Node) {
	for _, m := range w.nodes {
		if n := w.views[m.name]; n != nil {
			all = append(all, n)
		}
	}
	return all
}

// build makes a cluster with a workload of so many replicas at second 0.
func build(rng *rand.Rand, t *trigger.Trigger, spec int) *world {
	w := &world{rng: rng, t: t, metrics: metricsFor(t.Metric.Name), w: Workload{Name: "ScaledObject shop/llm", Namespace: "shop", Selector: labels.SelectorFromSet(labels.Set{"app": "llm"}), Spec: spec}}
	if rng.IntN(5) == 0 {
		w.size = 2 + rng.IntN(3)
		w.w.Sets = []string{"set"}
	}
	w.w.TargetType = []trigger.TargetType{trigger.AverageValue, trigger.AverageValue, trigger.Value}[rng.IntN(3)]
	for _, tolerance := range []**float64{&w.w.ScaleUpTolerance, &w.w.ScaleDownTolerance} {
		if rng.IntN(3) == 0 {
			*tolerance = new([]float64{0, 0.02, 0.3}[rng.IntN(3)])
		}
	}
	for i := range 1 + rng.IntN(4) {
		w.nodes = append(w.nodes, w.machine(fmt.Sprint("n", i)))
	}
	if rng.IntN(2) == 0 {
		w.own = w.nodes[0]
		w.own.unheard, w.own.staleAt = false, 0
	}
	return w
}

func (w *world) machine(name string) *machine {
	m := &machine{name: name, began: -1000}
	switch w.rng.IntN(20) {
	case 0:
		m.unheard = true
	case 1:
		m.staleAt = float64(1 + w.rng.IntN(400))
	case 2:
		m.mute = true
	case 3:
		m.dead = true
	case 4, 5:
		m.began = float64(-w.rng.IntN(400)) // restarted a short time ago
	}
	return m
}

// device makes a device on a node: a whole GPU, or an instance of one.
func (w *world) device(m *machine) *gpuTruth {
	g := &gpuTruth{
		id: fmt.Sprint(m.name, "-GPU-", len(m.gpus)), index: len(m.gpus), slots: 1,
		memory: []float64{0, 3, 30, 60, 79, 90, 98, 100}[w.rng.IntN(8)], idle: []float64{0, 0, 0, 0.4}[w.rng.IntN(4)],
	}
	switch w.rng.IntN(16) {
	case 0:
		g.lost = true
	case 1:
		g.failing = w.t.Metric.Name
	case 2:
		g.failing = "gpu_utilization"
	case 3:
		g.without = []string{"gpu_utilization", "memory_utilization"}
	}
	g.gpuOwners = func() int { return g.owners }
	m.gpus = append(m.gpus, g)
	switch w.rng.IntN(6) {
	case 0:
		g.slots = 2 + w.rng.IntN(4) // time-slicing
	case 1: // MIG
		instances := 1 + w.rng.IntN(3)
		gpu := g
		gpu.without = append(gpu.without, "gpu_utilization", "memory_utilization")
		var parts []*gpuTruth
		for i := range instances {
			part := &gpuTruth{id: fmt.Sprint(g.id, "-MIG-", i), parent: g.id, index: g.index, instance: i, slots: 1, memory: g.memory, idle: g.idle,
				lost: g.lost, failing: g.failing, without: []string{"power_draw", "nvlink_tx_mbps"}}
			part.gpuOwners = func() (n int) {
				for _, p := range parts {
					n += p.owners
				}
				return n
			}
			parts = append(parts, part)
			m.gpus = append(m.gpus, part)
		}
		g.slots = 0
		m.free = append(m.free, parts[1:]...)
		return parts[0]
	default:
		return g
	}
	for range g.slots - 1 {
		m.free = append(m.free, g)
	}
	return g
}

// allocate counts what each device is allocated to at a second.
func (w *world) allocate(s float64) {
	for _, m := range w.nodes {
		for _, g := range m.gpus {
			g.owners = g.others
		}
	}
	for _, p := range w.pods {
		for _, g := range p.gpus {
			if s >= p.started && !p.gone(s) {
				g.owners++
			}
		}
	}
}

// take allocates a device to a pod on a node, of those that are shared already where there
// is one.
func (w *world) take(m *machine) *gpuTruth {
	var g *gpuTruth
	if len(m.free) > 0 && w.rng.IntN(3) > 0 {
		g = m.free[0]
		m.free = m.free[1:]
	} else {
		g = w.device(m)
	}
	return g
}
