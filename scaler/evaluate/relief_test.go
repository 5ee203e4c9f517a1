package evaluate

import (
	"fmt"
	"log/slog"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/labels"

	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/trigger"
	"gpuscaler/shared/snapshot"
)

// relief is a workload under a load that more replicas relieve, scaled by an HPA: the
// ready pods share the demand, and those that load read 100 %.
type relief struct {
	rng    *rand.Rand
	demand float64 // in percent of one GPU
	target float64
	window time.Duration
	loads  []int // for how many seconds each pod loads, in the order of their creation
	nodes  int
	front  bool // an aggregator decides; else the scaler of the only node
	// restarts are the seconds at which the scaler of some node restarts.
	restarts []int

	t      *trigger.Trigger
	fleet  *fleet.Fleet
	peers  []*fleet.Peer
	locals []*local
	pods   []*podOn
	busy   map[string][]float64 // utilization of each pod, by the second since it started
}

// local is the scaler of one node.
type local struct {
	*fleet.Local
	sidecar, kubelet *fleet.Source
}

func (r *relief) String() string {
	return fmt.Sprintf("demand %.0f, target %.0f, window %v, %d nodes, aggregator %v, restarts at %v, pods load %v", r.demand, r.target, r.window, r.nodes, r.front, r.restarts, r.loads)
}

func (r *relief) start(i, second int) {
	l := fleet.NewLocal(fmt.Sprint("n", i), staleAfter, slog.New(slog.DiscardHandler), at(float64(second)))
	r.locals[i] = &local{l, l.Connect(), l.Connect()}
}

// create makes replicas until there are so many.
func (r *relief) create(replicas, second int) {
	for len(r.pods) < replicas {
		n := len(r.pods)
		p := llm(fmt.Sprint("p", n), id(n))
		p.Node = fmt.Sprint("n", n%r.nodes)
		p.Created, p.Started, p.Changed = at(float64(second)), at(float64(second)), at(float64(second))
		p.Ready, p.WasReady = false, false
		if second < 0 {
			p.Ready, p.WasReady, p.FirstReady = true, true, p.Changed
		}
		r.pods = append(r.pods, &p)
	}
}

// pass lets one second pass: pods become ready, GPUs are read, and peers report.
func (r *relief) pass(second int) {
	ready := 0
	for i, p := range r.pods {
		if started := int(p.Started.Sub(epoch).Seconds()); !p.Ready && second >= started+r.loads[i] {
			p.Ready, p.WasReady, p.FirstReady, p.Changed = true, true, at(float64(second)), at(float64(second))
		}
		if p.Ready {
			ready++
		}
	}
	for i, l := range r.locals {
		var devices []snapshot.Device
		var pods []fleet.Pod
		allocation := &snapshot.Allocation{}
		for k, p := range r.pods {
			if k%r.nodes != i {
				continue
			}
			u := 100.0
			if p.Ready {
				u = min(100, r.demand/float64(ready))
			}
			r.busy[p.UID] = append(r.busy[p.UID], u)
			devices = append(devices, gpu(k, "NVIDIA H100", values{"gpu_utilization": u}))
			pods = append(pods, p.Pod)
			allocation.Containers = append(allocation.Containers, snapshot.Container{Namespace: "shop", Pod: p.Name, Name: "engine", Plugin: []snapshot.PluginDevices{{Resource: "nvidia.com/gpu", IDs: p.ids}}})
		}
		now := at(float64(second))
		must(l.sidecar.Apply(&snapshot.Sample{Writer: "nvmlsidecar", Devices: devices}, now))
		must(l.kubelet.Apply(&snapshot.Sample{Writer: "podresources", Allocation: allocation}, now))
		l.SetPods(pods, now)
		if r.front && (second+i)%2 == 0 {
			must2(r.peers[i].Apply(copied(l.Node())))
		}
	}
	if slices.Contains(r.restarts, second) {
		i := r.rng.IntN(r.nodes)
		before := r.locals[i].Node()
		r.start(i, second)
		if r.front {
			return
		}
		r.fleet = fleet.New(r.locals[i].Local)
		last := map[string]fleet.Readings{} // of what a peer received
		for _, d := range before.Devices {
			last[d.ID] = d.Readings()
		}
		r.locals[i].Recall(last)
	}
}

// copied is a node as another scaler receives it, with devices of its own.
func copied(n *fleet.Node) *fleet.Node {
	c := *n
	c.Devices = nil
	for _, d := range n.Devices {
		c.Devices = append(c.Devices, d.Describe(d.Readings(), d.Failed()))
	}
	young := map[string][]fleet.Readings{}
	for uid, of := range n.YoungPods() {
		young[uid] = slices.Clone(of)
	}
	return c.WithYoung(young)
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func must2[A, B any](_ A, _ B, err error) { must(err) }

// ours is what the HPA comes to by our number, cpu by a CPU metric of the same values.
func (r *relief) ours(second int) (int, error) {
	w := &Workload{Name: "ScaledObject shop/llm", Namespace: "shop", Selector: labels.SelectorFromSet(labels.Set{"app": "llm"}), TargetType: trigger.AverageValue, Told: at(float64(second))}
	for _, p := range r.pods {
		pod := p.Pod
		w.Pods = append(w.Pods, &pod)
	}
	w.Spec, w.Status = len(r.pods), len(r.pods)
	d, err := ForWorkload(r.t, r.fleet, w, w.Told, limits)
	if err != nil {
		return len(r.pods), err
	}
	return d.Replicas.Leads, nil
}

// cpu is GetResourceReplicas of the HPA: a pod counts from one window after its readiness.
func (r *relief) cpu(second int) (int, error) {
	span := max(1, int(r.window.Seconds()))
	sum, counting := 0.0, 0
	for _, p := range r.pods {
		if !p.Ready || second-int(p.Changed.Sub(epoch).Seconds()) < int(r.window.Seconds()) {
			continue
		}
		all := r.busy[p.UID]
		all = all[max(0, len(all)-span):]
		mean := 0.0
		for _, u := range all {
			mean += u / float64(len(all))
		}
		sum += mean
		counting++
	}
	n := len(r.pods)
	if counting == 0 {
		return n, nil
	}
	ratio := sum / float64(counting) / r.target
	if counting < n && ratio > 1 {
		if ratio = sum / float64(n) / r.target; ratio < 1 {
			return n, nil
		}
		counting = n
	}
	if 1-limits.Tolerance <= ratio && ratio <= 1+limits.Tolerance+1e-9 {
		return n, nil
	}
	return int(math.Ceil(ratio*float64(counting) - 1e-9)), nil
}

// run scales until the count no longer changes, and returns it, and what it passed
// through. An error says that a time came at which it should have been lower.
func (r *relief) run(decide func(second int) (int, error)) (counts []int, err error) {
	r.locals, r.pods, r.busy = make([]*local, r.nodes), nil, map[string][]float64{}
	r.rng = rand.New(rand.NewPCG(14, uint64(len(r.loads))))
	for i := range r.nodes {
		r.start(i, -60)
	}
	r.fleet, r.peers = fleet.New(r.locals[0].Local), nil
	if r.front {
		r.fleet = fleet.New(nil)
		for i := range r.nodes {
			r.peers = append(r.peers, r.fleet.Join(fmt.Sprint("n", i)))
		}
	}
	r.create(1, -3600)
	counts = []int{1}
	rested := 0 // seconds since which all have been ready and nothing changed
	for second := -59; second < 4000; second++ {
		r.pass(second)
		if slices.ContainsFunc(r.pods, func(p *podOn) bool { return !p.Ready }) || slices.Contains(r.restarts, second) {
			rested = second
		}
		if second < 0 || second%15 != 7 {
			continue
		}
		next, err := decide(second)
		if err != nil {
			continue // the HPA holds
		}
		n := len(r.pods)
		switch {
		case next > n:
			next = min(next, n+max(4, n)) // the HPA's default policy
			r.create(next, second)
			counts, rested = append(counts, next), second
		case second-rested < int(r.window.Seconds())+30:
			// fewer come only after the HPA's stabilization window
		case next < n:
			return counts, fmt.Errorf("at %d s, all having been ready for a while, %d become %d", second, n, next)
		default:
			return counts, nil
		}
	}
	return counts, fmt.Errorf("it does not settle: %v", counts)
}

// A load that more replicas relieve has the count that a CPU metric would have, and none
// too many on the way there: whatever the window, and however long pods load.
func TestRelievedLoadSettles(t *testing.T) {
	for _, window := range []string{"0s", "15s", "1m", "5m"} {
		for _, c := range []struct {
			nodes    int
			front    bool
			restarts bool
		}{{1, false, false}, {1, false, true}, {3, true, false}, {3, true, true}} {
			if window == "5m" && c.restarts {
				continue // what completes such a window is its mean of up to five minutes before
			}
			t.Run(fmt.Sprintf("%s, %d nodes, restarts %v", window, c.nodes, c.restarts), func(t *testing.T) {
				t.Parallel()
				for seed := range uint64(6) {
					rng := rand.New(rand.NewPCG(41, seed))
					r := &relief{demand: float64(50 + rng.IntN(550)), target: float64(40 + 5*rng.IntN(10)), nodes: c.nodes, front: c.front}
					for range 64 {
						r.loads = append(r.loads, rng.IntN(181))
					}
					if c.restarts {
						r.restarts = []int{20 + rng.IntN(100), 150 + rng.IntN(300), 500 + rng.IntN(400)}
					}
					md := metadata{"metricType": "gpu_utilization", "targetValue": fmt.Sprint(r.target), "window": window}
					r.t = parse(t, maps.Clone(md))
					r.window = r.t.Window
					counts, err := r.run(r.ours)
					require.NoError(t, err, "seed 41, %d: %v: %v", seed, r, counts)
					reference, err := r.run(r.cpu)
					require.NoError(t, err, "seed 41, %d: %v: CPU: %v", seed, r, reference)
					assert.True(t, slices.IsSorted(counts))
					end, of := counts[len(counts)-1], reference[len(reference)-1]
					if r.window <= settle {
						assert.Equal(t, of, end, "seed 41, %d: %v: %v, CPU: %v", seed, r, counts, reference)
						continue
					}
					// With CPU a replica counts after a whole window, here after 15 s of it: the way
					// there differs, and so may where within the tolerance of the target it ends.
					most := int(math.Ceil(r.demand / r.target))
					assert.LessOrEqual(t, end, max(of, most), "seed 41, %d: %v: %v, CPU: %v", seed, r, counts, reference)
					assert.GreaterOrEqual(t, end, min(of, int(math.Ceil(r.demand/r.target/(1+limits.Tolerance)))), "seed 41, %d: %v: %v, CPU: %v", seed, r, counts, reference)
				}
			})
		}
	}
}
