// Package oracle compares what gpuscaler makes the HPA do with what the HPA does
// for CPU, by Kubernetes' own calculator. It is a module of its own, because
// k8s.io/kubernetes is no library: whoever imports it has to replace all of its
// parts.
package oracle

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
)

// The outcomes of a comparison, but for one that fails the test.
const (
	equal    = "equal: our number makes the HPA want what it wants for CPU"
	none     = "no pod counts: the HPA has no answer for CPU and keeps the replicas, and so does our number"
	noNumber = "no external metric value leads to it: a change within the tolerance; ours comes nearest"
	refused  = "refused: over half of the pods are not read, and the HPA goes on with the rest"
	young    = "young pods: ready for less than 15 s, and started over 5 min ago, count as not ready"
)

var outcomes = []string{equal, none, noNumber, refused, young}

// run is a comparison of generated situations of one window, with counts by outcome and
// by what is in them.
type run struct {
	window             time.Duration
	situations         int
	outcomes, features map[string]int
}

// TestAsForCPU: the HPA does with our number what it would do with the same values of
// CPU. The exceptions are in the table that it prints. Utilization is never flat, and
// with window: 0s the rule of young pods is off; with window: 15s it differs from CPU
// only after the HPA's initialization period.
func TestAsForCPU(t *testing.T) {
	runs := []*run{{window: 0, situations: 10_000}, {window: 15 * time.Second, situations: 5_000}}
	t.Run("windows", func(t *testing.T) {
		for _, r := range runs {
			t.Run(r.window.String(), func(t *testing.T) {
				t.Parallel()
				// The HPA's calculator reads the clock, so the clock stands.
				synctest.Test(t, r.compare)
			})
		}
	})
	t.Log(table(runs))
}

func (r *run) compare(t *testing.T) {
	random := rand.New(rand.NewPCG(3, uint64(r.window)))
	r.outcomes, r.features = map[string]int{}, map[string]int{}
	for range r.situations {
		s := generate(random, r.window)
		outcome, difference := s.outcome(t)
		if difference != "" {
			small, difference := s.smallest(t)
			require.Fail(t, "a difference", "%s\n%v", difference, small)
		}
		r.outcomes[outcome]++
		for _, f := range features {
			if f.has(s) {
				r.features[f.name]++
			}
		}
	}
	for _, outcome := range outcomes {
		if outcome == young && r.window == 0 {
			require.Zero(t, r.outcomes[outcome], "%s: the rule is off", outcome)
			continue
		}
		require.Positive(t, r.outcomes[outcome], "%s: never comes up, so it is no exception", outcome)
	}
	require.Greater(t, r.outcomes[equal], r.situations*8/10)
	for _, f := range features {
		require.Greater(t, r.features[f.name], r.situations/100, f.name)
	}
}

// table has a column for each run.
func table(runs []*run) string {
	var b strings.Builder
	line := func(name string, of func(*run) any) {
		for _, r := range runs {
			fmt.Fprintf(&b, "%8v", of(r))
		}
		b.WriteString("  " + name + "\n")
	}
	b.WriteString("\n")
	line("window", func(r *run) any { return r.window })
	line("situations compared, of which", func(r *run) any { return r.situations })
	for _, outcome := range outcomes {
		line("- "+outcome, func(r *run) any { return r.outcomes[outcome] })
	}
	line("situations with", func(*run) any { return "" })
	for _, f := range features {
		line("- "+f.name, func(r *run) any { return r.features[f.name] })
	}
	return b.String()
}

// outcome compares one situation. A difference that none of the outcomes explains is
// returned in words.
func (s *situation) outcome(t *testing.T) (outcome, difference string) {
	t.Helper()
	d, err := s.gpuscaler(t)
	if s.refused() != (err != nil) {
		return "", fmt.Sprintf("over half not read: %v; error: %v", s.refused(), err)
	}
	if err != nil {
		return refused, ""
	}
	cpu := newReference(t, s, false)
	plain, _ := cpu.forCPU(t)
	want, known := newReference(t, s, true).forCPU(t)
	if d.Replicas.Desired != want {
		return "", fmt.Sprintf("CPU leads to %d replicas, our decision is %+v", want, d.Replicas)
	}
	got := cpu.forNumber(t, thousandths(d.Value))
	if d.Replicas.Leads != got {
		return "", fmt.Sprintf("our number leads to %d replicas, our decision is %+v", got, d.Replicas)
	}
	switch {
	case got != want:
		return noNumber, cpu.nearer(t, want, got)
	case want != plain && !s.any(func(p *instance) bool { return s.young(p) && p.age >= int(initialization.Seconds()) }):
		return "", fmt.Sprintf("CPU leads to %d replicas, our decision is %+v, and no pod is young", plain, d.Replicas)
	case want != plain:
		return young, ""
	case !known:
		return none, ""
	}
	return equal, ""
}

// smallest leaves out replicas for as long as there is a difference.
func (s *situation) smallest(t *testing.T) (*situation, string) {
	t.Helper()
	_, difference := s.outcome(t)
	for i := 0; i < len(s.replicas); i++ {
		less := s.without(i)
		if less.status == 0 {
			continue
		}
		if _, still := less.outcome(t); still != "" {
			s, difference, i = less, still, -1
		}
	}
	return s, difference
}

// features are what situations have to have, so that the comparison covers it.
var features = []struct {
	name string
	has  func(*situation) bool
}{
	{"groups of pods", func(s *situation) bool { return s.groups }},
	{"leaders without a GPU", func(s *situation) bool {
		return s.any(func(p *instance) bool { return p.replica >= 0 && p.device < 0 })
	}},
	{"a device that several pods own", (*situation).shared},
	{"a device that pods of another workload own", func(s *situation) bool { return s.any(func(p *instance) bool { return p.replica < 0 }) }},
	{"tolerances that differ by direction", func(s *situation) bool { return s.tolerance(s.up) != s.tolerance(s.down) }},
	{"pods within the initialization period", func(s *situation) bool { return s.any(func(p *instance) bool { return p.age < 300 }) }},
	{"pods ready within 30 s of their start", func(s *situation) bool {
		return s.any(func(p *instance) bool { return p.ready() && p.age-p.changes[0] < 30 })
	}},
	{"pods not ready any more within 30 s of their start", func(s *situation) bool {
		return s.any(func(p *instance) bool { return !p.ready() && len(p.changes) > 0 && p.age-p.changed() < 30 })
	}},
	{"pods that failed their probe and are ready again", func(s *situation) bool { return s.any(func(p *instance) bool { return len(p.changes) > 2 }) }},
	{"pods that load and are not read", func(s *situation) bool {
		return s.any(func(p *instance) bool {
			return p.phase == corev1.PodRunning && len(p.changes) == 0 && p.device >= 0 && (p.node == away || s.devices[p.device].silent)
		})
	}},
	{"pending pods without a node", func(s *situation) bool { return s.any(func(p *instance) bool { return p.node == "" }) }},
	{"pending pods with a node", func(s *situation) bool {
		return s.any(func(p *instance) bool { return p.phase == corev1.PodPending && p.node != "" })
	}},
	{"terminating pods", func(s *situation) bool { return s.any(func(p *instance) bool { return p.terminating }) }},
	{"evicted pods", func(s *situation) bool { return s.any((*instance).ended) }},
}

func (s *situation) any(is func(*instance) bool) bool {
	return slices.ContainsFunc(s.pods, func(p instance) bool { return is(&p) })
}

func (s *situation) shared() bool {
	owned := map[int]bool{}
	return s.any(func(p *instance) bool {
		again := p.device >= 0 && owned[p.device]
		owned[p.device] = true
		return again
	})
}
