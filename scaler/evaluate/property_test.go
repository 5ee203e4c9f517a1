package evaluate

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/assert"

	"gpuscaler/scaler/trigger"
)

// idleTriggers are on signals that an idle pod keeps below the target.
func idleTriggers(t *testing.T) (all []*trigger.Trigger) {
	for _, md := range []metadata{
		{"profile": "vllm-inference"}, {"profile": "vllm-inference"}, {"profile": "triton-inference"}, {"profile": "training"}, {"profile": "batch"},
		{"profile": "ollama"}, {"profile": "tgi-inference"}, {"profile": "distributed-training"}, {"profile": "llm-saturation", "metricType": "sm_activity"},
		{"metricType": "gpu_utilization"}, {"metricType": "memory_used_mib", "targetValue": "40000"}, {"metricType": "memory_utilization", "targetValue": "50"},
		{"metricType": "power_draw", "targetValue": "1500", "activationThreshold": "800"}, {"metricType": "nvlink_tx_mbps", "targetValue": "50000"},
	} {
		for _, window := range []string{"0s", "15s", "1m", "5m"} {
			for _, aggregation := range []string{"max", "avg", "sum", "p95"} {
				if aggregation == "sum" && md["metricType"] == "" {
					continue
				}
				more := metadata{"window": window, "aggregation": aggregation}
				if md["profile"] == "" {
					more["activationThreshold"] = "5"
				}
				for k, v := range md {
					more[k] = v
				}
				all = append(all, parse(t, more))
			}
		}
	}
	return all
}

// However many idle pods there are, on whatever devices, and whatever is not known of
// them: the replica count never grows, and comes to the least that is right.
func TestIdleWorkloadsNeverGrow(t *testing.T) {
	const workloads, shards = 10_000, 4
	triggers := idleTriggers(t)
	for shard := range uint64(shards) {
		t.Run(fmt.Sprint("shard ", shard), func(t *testing.T) {
			t.Parallel()
			var sum outcome
			for i := range workloads / shards {
				seed := shard*workloads + uint64(i)
				rng := rand.New(rand.NewPCG(14, seed))
				w := build(rng, triggers[rng.IntN(len(triggers))], 1+rng.IntN(1+rng.IntN(30)))
				w.populate()
				if err := w.settle(&sum); err != nil {
					t.Fatalf("seed 14, %d: %v\n%s", seed, err, w)
				}
			}
			t.Logf("seeds 14, %d and up: %+v", shard*workloads, sum)
			assert.Greater(t, sum.zero, workloads/shards/4)
			assert.NotZero(t, sum.held)
			assert.NotZero(t, sum.unavailable)
		})
	}
}

// outcome counts how workloads end.
type outcome struct{ decisions, zero, one, held, unavailable, refused int }

// settle lets a workload be scaled on what is decided until it no longer changes.
func (w *world) settle(sum *outcome) error {
	spec, stale := w.w.Spec, 0
	var last Decision
	var lastErr error
	for s := 0.0; s < 1600 && w.w.Spec > 0; s += 15 {
		if s > 60 && s < 330 || s > 600 {
			s += 75
		}
		w.churn(s)
		w.look(s)
		d, err := ForWorkload(w.t, w, &w.w, w.now, limits)
		sum.decisions++
		var e *Error
		switch {
		case err != nil && !errors.As(err, &e):
			return fmt.Errorf("at %v s: an error of no kind: %w", s, err)
		case err != nil && e.Kind == Invalid:
			return fmt.Errorf("at %v s: %w", s, err)
		}
		last, lastErr = d, err
		next := w.w.Spec
		switch {
		case err != nil: // KEDA reports no number, and the HPA holds
			if !d.Active && w.t.AlwaysActive && e.Kind == Unavailable && len(d.Pods) > 0 {
				return fmt.Errorf("at %v s: a profile that never scales to zero is inactive: %w", s, err)
			}
		case !d.Active:
			next = 0 // KEDA
		default:
			next = max(1, d.Replicas.Leads)
		}
		if next > w.w.Spec {
			return fmt.Errorf("at %v s: %d replicas became %d, of %d at first: %+v", s, w.w.Spec, next, spec, d.Replicas)
		}
		if next < w.w.Spec {
			stale = 0
		}
		if stale++; stale > 3 && s > 1000 {
			break
		}
		w.scale(next, s)
	}
	return w.judge(sum, &last, lastErr)
}

// judge compares the end with what is known of the pods.
func (w *world) judge(sum *outcome, d *Decision, err error) error {
	if w.w.Spec == 0 {
		sum.zero++
		return nil
	}
	unknown, all := w.unknown()
	if err != nil {
		var e *Error
		errors.As(err, &e)
		switch {
		case e.Kind == Impossible && 2*unknown > all:
			sum.refused++
			return nil
		case 2*unknown > all:
			sum.unavailable++
			return nil
		}
		return fmt.Errorf("of %d replicas, %d are known: %w", all, all-unknown, err)
	}
	// Each that is not known may count as the target, and the HPA keeps what is within
	// its tolerance.
	down := w.w.tolerances(limits).Down
	least := math.Ceil(float64(unknown) + w.idle()*float64(all-unknown) - 1e-9)
	if float64(w.w.Spec)*(1-down) > max(1, least)+1e-6 {
		return fmt.Errorf("%d of %d replicas are not known, and %d are left: %+v", unknown, all, w.w.Spec, d.Replicas)
	}
	if unknown == 0 && !w.t.AlwaysActive {
		return fmt.Errorf("all of %d replicas are known to be idle, and the workload is active: %+v", all, d.Replicas)
	}
	if w.w.Spec == 1 {
		sum.one++
	} else {
		sum.held++
	}
	return nil
}

// idle is the largest value that an idle replica has, as a share of the target.
func (w *world) idle() float64 {
	if w.t.Metric.Name == "power_draw" {
		return 70.0 / 1500 * 2 * max(1, float64(w.size))
	}
	return 0.02 * max(1, float64(w.size))
}

// populate makes the workload's pods, old and young, and those of others.
func (w *world) populate() {
	for range w.w.Spec {
		w.add(-3600)
	}
	var leader *replicaPod
	for _, p := range w.pods {
		switch n := w.rng.IntN(8); {
		case !p.leader: // a group is created as one, and loads until its leader is ready
			p.started, p.ready = leader.started, leader.ready-float64(w.rng.IntN(2))*(leader.ready-leader.started-1)
		case n == 0: // young
			p.ready = float64(-w.rng.IntN(300))
			p.started = p.ready - float64(5+w.rng.IntN(120))
		case n == 1: // loads
			p.started = float64(-w.rng.IntN(60))
			p.ready = p.started + float64(60+w.rng.IntN(120))
		case n == 2: // waits for a node
			p.started = float64(w.rng.IntN(60))
			p.ready = p.started + float64(10+w.rng.IntN(120))
		}
		if p.leader {
			leader = p
		}
		p.created = min(p.created, p.started)
		p.load(leader.ready)
	}
	for _, m := range w.nodes { // pods of others on what is free, each with one slot
		for len(m.free) > 0 && w.rng.IntN(2) == 0 {
			m.free[0].others++
			m.free = m.free[1:]
		}
	}
}

// add makes one replica's pods, created at a second and ready as if they had always been.
func (w *world) add(s float64) {
	group := ""
	if w.size > 0 {
		group = fmt.Sprint("set/", w.named)
	}
	for i := range max(1, w.size) {
		p := &replicaPod{name: fmt.Sprintf("p-%d-%d", w.named, i), created: s, started: s + 1, ready: s + 60, group: group, leader: i == 0, ends: forever}
		p.on = w.nodes[w.rng.IntN(len(w.nodes))]
		if w.size > 0 && i == 0 && w.rng.IntN(3) == 0 {
			p.plain = true // a leader without a GPU
		} else {
			for range 1 + w.rng.IntN(2) {
				if g := w.take(p.on); len(p.gpus) == 0 || p.gpus[0] != g {
					p.gpus = append(p.gpus, g)
				}
			}
		}
		w.pods = append(w.pods, p)
	}
	w.named++
}

// load has the pod's process work while it loads, on devices of its own: on a shared one
// its neighbour would be busy, and is meant to be idle.
func (p *replicaPod) load(until float64) {
	for _, g := range p.gpus {
		if until > -300 && g.slots == 1 {
			g.loads = append(g.loads, [2]float64{p.started, until})
		}
	}
}

// churn replaces a pod now and then, as a rollout or an eviction does.
func (w *world) churn(s float64) {
	if s > 600 || w.rng.IntN(6) > 0 || w.size > 0 {
		return
	}
	p := w.pods[w.rng.IntN(len(w.pods))]
	if p.ends != forever || p.created > s {
		return
	}
	w.add(s)
	next := w.pods[len(w.pods)-1]
	next.started = s + float64(w.rng.IntN(20))
	next.ready = next.started + float64(5+w.rng.IntN(100))
	next.load(next.ready)
	if p.ends = s; w.rng.IntN(2) == 0 {
		p.ends = next.ready // maxSurge
	}
}

// scale ends surplus replicas, any of them.
func (w *world) scale(spec int, s float64) {
	for ; w.w.Spec > spec; w.w.Spec-- {
		var live []*replicaPod
		for _, p := range w.pods {
			if p.leader && p.ends == forever {
				live = append(live, p)
			}
		}
		if len(live) == 0 {
			continue
		}
		one := live[w.rng.IntN(len(live))]
		for _, p := range w.pods {
			if p == one || (p.group != "" && p.group == one.group) {
				p.ends = s
			}
		}
	}
}

// unknown is of how many of the replicas that are left it is not known what they do.
func (w *world) unknown() (unknown, all int) {
	groups := map[string]bool{}
	for _, p := range w.pods {
		if p.ends != forever {
			continue
		}
		key := cmp.Or(p.group, p.name)
		groups[key] = groups[key] || w.obscure(p)
	}
	for _, u := range groups {
		if u {
			unknown++
		}
	}
	return unknown, len(groups)
}

// obscure says whether a pod's value is not known, or what it says of its load.
func (w *world) obscure(p *replicaPod) bool {
	if p.plain {
		return false
	}
	if m := p.on; m.unheard || m.staleAt > 0 || m.mute || m.dead {
		return true
	}
	for _, g := range p.gpus {
		_, has := g.reading(w.t.Metric.Name, 0, 0)
		_, work := g.reading("gpu_utilization", 0, 0)
		if g.lost || g.failing == w.t.Metric.Name || !has || (isMemory(w.t) && (!work || g.failing == "gpu_utilization")) {
			return true
		}
	}
	return false
}

// String is the workload for a failure's message.
func (w *world) String() string {
	text := fmt.Sprintf("%s %s of %v over %v, %s, spec %d, groups of %d\n", w.t.Profile, w.t.Metric.Name, w.t.Target, w.t.Window, w.w.TargetType, w.w.Spec, w.size)
	for _, m := range w.nodes {
		text += fmt.Sprintf("%s: %+v\n", m.name, struct {
			unheard, dead, mute bool
			staleAt, began      float64
		}{m.unheard, m.dead, m.mute, m.staleAt, m.began})
		for _, g := range m.gpus {
			text += fmt.Sprintf("  %s memory %v idle %v lost %v failing %q without %v owners %d loads %v\n", g.id, g.memory, g.idle, g.lost, g.failing, g.without, g.owners, g.loads)
		}
	}
	for _, p := range w.pods {
		text += fmt.Sprintf("%s on %s created %v started %v ready %v ends %v gpus", p.name, p.on.name, p.created, p.started, p.ready, p.ends)
		for _, g := range p.gpus {
			text += " " + g.id
		}
		text += "\n"
	}
	return text
}
