package oracle

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
)

const (
	namespace = "shop"
	// here is the node that the scaler runs on, away one that it never received
	// anything of.
	here, away = "node-1", "node-2"
	set        = "llm"
)

// instance is one pod of a situation. Times are in seconds before now.
type instance struct {
	name string
	// replica is the replica that it belongs to, and worker its place in the group; 0
	// is the leader. The replica of a pod of another workload is -1.
	replica, worker int
	phase           corev1.PodPhase
	terminating     bool
	node            string // "" for none
	age             int    // since its start
	// changes of its readiness, oldest first: ready, not ready, ready...
	changes []int
	device  int // -1 for none
}

func (p *instance) ready() bool { return p.phase == corev1.PodRunning && len(p.changes)%2 == 1 }

func (p *instance) ended() bool { return p.phase == corev1.PodFailed }

// changed is when its readiness changed last.
func (p *instance) changed() int {
	if len(p.changes) == 0 {
		return p.age
	}
	return p.changes[len(p.changes)-1]
}

type device struct {
	percent float64 // GPU utilization
	silent  bool    // its last reading failed
}

// situation is a workload at one moment.
type situation struct {
	window time.Duration
	// sampled is when the devices were read last, in seconds before now.
	sampled int
	// target is AverageValue, or Value. The calculator gets it as CPU in thousandths of
	// a core, as if one core had a hundred percent.
	target float64
	value  bool
	// up and down are the tolerances of the ScaledObject's behavior; nil: not given.
	up, down *float64
	// spec is how many replicas are asked for, status how many there are.
	spec, status int
	// groups: a replica is a group of pods, and aggregation makes their values one.
	groups      bool
	aggregation string
	// watched: the scaler's watch has followed the pods since they started. Else it
	// has what the API has: the last change of readiness.
	watched bool

	pods     []instance
	devices  []device
	replicas [][]int // of own pods, the leader first
}

// String is the situation as a person needs it who looks for the cause of a difference.
func (s *situation) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "target %v (Value: %v), tolerance %v %v, window %v, sampled %d s ago, spec %d, status %d, %s, watched: %v",
		s.target, s.value, s.tolerance(s.up), s.tolerance(s.down), s.window, s.sampled, s.spec, s.status, s.aggregation, s.watched)
	for i := range s.pods {
		p := &s.pods[i]
		fmt.Fprintf(&b, "\n  %s %s", p.name, p.phase)
		if p.terminating {
			b.WriteString(" terminating")
		}
		fmt.Fprintf(&b, " on %q, started %d s ago, readiness changed %v s ago", p.node, p.age, p.changes)
		if p.device >= 0 {
			fmt.Fprintf(&b, ", GPU %d: %+v", p.device, s.devices[p.device])
		}
	}
	return b.String()
}

// generate makes a situation of 1 to 64 replicas, or 1 to 12 groups: mostly ready ones,
// near the target in a third of the cases.
func generate(r *rand.Rand, window time.Duration) *situation {
	for {
		s := &situation{
			window: window, sampled: pick(r, 0, 0, 1, 3), target: float64(11+r.IntN(990)) / 10, value: r.IntN(2) == 0,
			up: tolerance(r), down: tolerance(r), aggregation: "max", watched: r.IntN(2) == 0,
		}
		s.populate(r)
		if s.status == 0 {
			continue // no replicas, no question
		}
		s.spec = s.status
		if r.IntN(4) == 0 { // a change is under way
			s.spec = max(1, s.status+r.IntN(9)-4)
		}
		return s
	}
}

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

func tolerance(r *rand.Rand) *float64 {
	if r.IntN(2) == 0 {
		return nil
	}
	return new(pick(r, 0, 0.02, 0.05, 0.2, 0.5))
}

// populate makes the pods and their devices.
func (s *situation) populate(r *rand.Rand) {
	centre, spread := r.Float64()*100, r.Float64()*40
	if r.IntN(3) == 0 {
		centre, spread = s.target, s.target/5
	}
	percent := func() float64 { // the mean of 1, 2, 3 or 4 has three decimals again
		return math.Round(min(100, max(0, centre+spread*(2*r.Float64()-1)))*1000/12) * 12 / 1000
	}
	odd := r.IntN(4)                  // quarters of the pods that are out of the ordinary
	aged := r.IntN(4) == 0            // all started long ago
	owners := 1 + r.IntN(2)*r.IntN(4) // of each device
	replicas, size, plain := 1+r.IntN(64), 1, false
	if s.groups = r.IntN(4) == 0; s.groups {
		replicas, size, plain = 1+r.IntN(12), 2+r.IntN(3), r.IntN(2) == 0
		s.aggregation = pick(r, "max", "avg", "min")
	}
	for replica := range replicas {
		var members []int
		age := ageOf(r, aged)
		for worker := range size {
			p := instance{name: fmt.Sprintf("pod-%d-%d", replica, worker), replica: replica, worker: worker, device: -1}
			s.live(&p, r, age, r.IntN(4) < odd && r.IntN(worker+1) == 0)
			if worker > 0 || !plain {
				p.device = s.allocate(r, owners, percent)
				s.devices[p.device].silent = s.devices[p.device].silent || (r.IntN(40) < odd && worker == 0)
			}
			members = append(members, len(s.pods))
			s.pods = append(s.pods, p)
		}
		s.replicas = append(s.replicas, members)
		if leader := &s.pods[members[0]]; !leader.terminating && !leader.ended() {
			s.status++
		}
	}
	if owners > 1 {
		for i := range r.IntN(8) {
			p := instance{name: fmt.Sprint("other-", i), replica: -1}
			s.live(&p, r, ageOf(r, aged), false)
			p.device = s.allocate(r, owners, percent)
			s.pods = append(s.pods, p)
		}
	}
}

// allocate gives a pod a device of its own, or a part of one.
func (s *situation) allocate(r *rand.Rand, owners int, percent func() float64) int {
	if len(s.devices) > 0 && r.IntN(owners) > 0 {
		return r.IntN(len(s.devices))
	}
	s.devices = append(s.devices, device{percent: percent()})
	return len(s.devices) - 1
}

// without is the situation without a replica.
func (s *situation) without(replica int) *situation {
	less := *s
	less.pods, less.replicas = nil, make([][]int, 0, len(s.replicas)-1)
	leader := s.pods[s.replicas[replica][0]]
	if !leader.terminating && !leader.ended() {
		less.status--
		less.spec = max(1, less.spec-1)
	}
	for _, p := range s.pods {
		switch {
		case p.replica == replica:
			continue
		case p.replica > replica:
			p.replica--
		}
		if p.replica >= len(less.replicas) {
			less.replicas = append(less.replicas, nil)
		}
		if p.replica >= 0 {
			less.replicas[p.replica] = append(less.replicas[p.replica], len(less.pods))
		}
		less.pods = append(less.pods, p)
	}
	return &less
}

// ageOf is how long ago a pod started: most often up to ten minutes, and often just at
// one of the HPA's limits.
func ageOf(r *rand.Rand, aged bool) int {
	if aged {
		return 3600
	}
	return pick(r, 3600, r.IntN(601), r.IntN(601), 301+r.IntN(300), pick(r, 0, 14, 15, 29, 30, 31, 299, 300, 301, 315))
}

// live makes what a pod has gone through. With window: 0s the rule of young pods is off:
// a pod beyond its initialization period was read since its readiness changed last.
func (s *situation) live(p *instance, r *rand.Rand, age int, odd bool) {
	p.phase, p.node, p.age = corev1.PodRunning, here, age
	latest, late := 0, 2
	if age >= int(initialization.Seconds()) {
		late = 40
		if s.window == 0 {
			latest = s.sampled
		}
	}
	change := func(from int) { // some time after from, often at once
		after := pick(r, r.IntN(from+1), min(from, r.IntN(61)), min(from, 29+r.IntN(3)))
		if r.IntN(late) == 0 {
			after = max(0, from-r.IntN(20))
		}
		p.changes = append(p.changes, max(from-after, latest))
	}
	changes := 1
	if odd {
		switch r.IntN(9) {
		case 0:
			p.phase, p.node = corev1.PodPending, pick(r, "", here)
			changes = 0
		case 1:
			p.terminating = true
		case 2:
			if !s.groups { // a group with an evicted pod is made anew
				p.phase = corev1.PodFailed
			}
		case 3:
			p.node = away
			changes = r.IntN(2)
		case 4, 5:
			changes = 0 // loads
		case 6, 7:
			changes = 2 // fails its probe
		default:
			changes = 3 // has failed it
		}
	}
	for range changes {
		change(p.changed())
	}
}

func (s *situation) tolerance(of *float64) float64 {
	if of == nil {
		return defaultTolerance
	}
	return *of
}

// reading is the value of a replica, of any phase; false if it is missing.
func (s *situation) reading(replica []int) (float64, bool) {
	var values []float64
	for _, i := range replica {
		p := &s.pods[i]
		switch {
		case p.terminating:
			return 0, false
		case p.device < 0:
			continue // a leader without a GPU
		case p.node != here || s.devices[p.device].silent:
			return 0, false
		}
		values = append(values, s.devices[p.device].percent)
	}
	switch {
	case len(values) == 0:
		return 0, false
	case s.aggregation == "min":
		return slices.Min(values), true
	case s.aggregation == "avg":
		sum := 0.0
		for _, v := range values {
			sum += v
		}
		return sum / float64(len(values)), true
	}
	return slices.Max(values), true
}

// firstReady is when the scaler takes a pod to have become ready first; false if it has
// never, or that is not known.
func (s *situation) firstReady(p *instance) (seconds int, known bool) {
	switch {
	case p.phase != corev1.PodRunning || len(p.changes) == 0:
		return 0, false
	case s.watched:
		return p.changes[0], true
	}
	return p.changed(), p.ready()
}

// young says whether a pod was ready for less than the window when it was read.
func (s *situation) young(p *instance) bool {
	first, known := s.firstReady(p)
	return known && first-s.sampled < int(s.window.Seconds())
}

// refused says whether over half of the replicas cannot be read, other than those that
// started a moment ago, or that wait for a pod.
func (s *situation) refused() bool {
	missing := 0
	for _, replica := range s.replicas {
		leader := &s.pods[replica[0]]
		if _, read := s.reading(replica); read || leader.phase != corev1.PodRunning || leader.terminating {
			continue
		}
		if !slices.ContainsFunc(replica, func(i int) bool {
			p := &s.pods[i]
			return s.fresh(p) || p.node == "" || p.terminating
		}) {
			missing++
		}
	}
	return 2*missing > s.status
}

// fresh says whether a pod started less than 15 s ago and has never been ready.
func (s *situation) fresh(p *instance) bool {
	was := p.ready() || (len(p.changes) > 0 && (s.watched && p.node == here || p.age-p.changed() >= 30))
	return p.age < 15 && !was && !p.terminating
}

// labels are the pod's, of the replicas' workload or another one.
func (s *situation) labels(p *instance) labels.Set {
	switch {
	case p.replica < 0:
		return labels.Set{"app": "other"}
	case s.groups:
		return labels.Set{
			"leaderworkerset.sigs.k8s.io/name":         set,
			"leaderworkerset.sigs.k8s.io/group-index":  fmt.Sprint(p.replica),
			"leaderworkerset.sigs.k8s.io/worker-index": fmt.Sprint(p.worker),
		}
	}
	return labels.Set{"app": "llm"}
}

// selector is that of the scale subresource: of a LeaderWorkerSet it selects the leaders.
func (s *situation) selector() labels.Selector {
	if s.groups {
		return labels.SelectorFromSet(labels.Set{"leaderworkerset.sigs.k8s.io/name": set, "leaderworkerset.sigs.k8s.io/worker-index": "0"})
	}
	return labels.SelectorFromSet(labels.Set{"app": "llm"})
}
