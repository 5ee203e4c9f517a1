package replicas

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// pods are n pods that count, with one value.
func pods(n int, value float64) []Pod {
	all := make([]Pod, n)
	for i := range all {
		all[i] = Pod{State: Counting, Ready: true, Value: value}
	}
	return all
}

func starting(n int) []Pod { return of(n, Starting) }
func missing(n int) []Pod  { return of(n, Missing) }

func of(n int, s State) []Pod {
	all := make([]Pod, n)
	for i := range all {
		all[i] = Pod{State: s, Value: 1e6} // which must not be looked at
	}
	return all
}

func join(all ...[]Pod) (joined []Pod) {
	for _, p := range all {
		joined = append(joined, p...)
	}
	return joined
}

func TestDecide(t *testing.T) {
	failing := pods(1, 100)
	failing[0].Ready = false
	for _, c := range []struct {
		name   string
		pods   []Pod
		target float64
		value  bool // the target is a Value, not an AverageValue
		want   int
		number float64
		reason Reason
	}{
		{"above the target", pods(3, 90), 80, false, 4, 270, ByMean},
		{"above the target, Value", pods(3, 90), 80, true, 4, 90, ByMean},
		{"a percentage scales past 100 / target", pods(12, 100), 50, false, 24, 1200, ByMean},
		{"below the target", pods(4, 30), 80, false, 2, 120, ByMean},
		{"below the target, Value", pods(4, 30), 80, true, 2, 30, ByMean},
		{"idle", pods(4, 0), 80, false, 0, 0, ByMean},
		{"at the edge of the tolerance", pods(2, 88), 80, false, 2, 176, WithinTolerance},
		{"beyond the tolerance", pods(2, 88.8), 80, false, 3, 177.6, ByMean},
		{"a pod that fails its probe under load", join(pods(1, 60), failing), 50, false, 4, 160, ByMean},
		{"the same, Value: the HPA multiplies by ready pods", join(pods(1, 60), failing), 50, true, 4, 200, ByMean},

		{"no cascade while new pods load", join(pods(4, 100), starting(4)), 50, false, 8, 400, WithinTolerance},
		{"no cascade while new pods load, Value", join(pods(4, 100), starting(4)), 50, true, 8, 100, WithinTolerance},
		{"more than those that load will carry", join(pods(4, 100), starting(1)), 50, false, 8, 400, ByAll},
		{"new pods are enough", join(pods(1, 60), starting(3)), 50, false, 4, 200, WouldReverse},
		{"down although some load", join(pods(4, 20), starting(2)), 80, false, 1, 80, ByMean},
		{"only new pods", starting(2), 80, false, 2, 160, NoneCounts},
		{"only new pods, Value", starting(2), 80, true, 2, 80, NoneCounts},

		{"a silent node never shrinks a workload", join(pods(3, 60), missing(1)), 80, false, 4, 320, ByAll},
		{"what is missing counts as the target", join(pods(3, 40), missing(1)), 80, false, 3, 240, ByAll},
		{"what is missing does not ask for more", join(pods(3, 90), missing(1)), 80, false, 4, 270, WouldReverse},
		{"enough load without what is missing", join(pods(3, 160), missing(1)), 80, false, 6, 480, ByAll},
		{"at the target with some missing", join(pods(3, 80), missing(3)), 80, false, 6, 480, WithinTolerance},
		{"nothing known", missing(3), 80, false, 3, 240, NoneCounts},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := len(c.pods)
			d := Decide(&Workload{Pods: c.pods, Spec: n, Status: n, Target: c.target, PerPod: !c.value, Tolerance: Both(DefaultTolerance)})
			assert.Equal(t, c.want, d.Desired)
			assert.Equal(t, c.want, d.Leads)
			assert.InDelta(t, c.number, d.Number, 1e-9)
			assert.Equal(t, c.reason, d.Reason)
			assert.Equal(t, n, d.Counting+d.Starting+d.Missing)
		})
	}
}

// TestNumber compares with every number there is: if any leads to the desired
// replicas, the one that is chosen does, and the natural one goes first.
func TestNumber(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	unreachable := 0
	for range 200_000 {
		w := &Workload{
			Spec: random.IntN(9), Status: random.IntN(9), PerPod: random.IntN(2) == 0,
			Target: float64(1+random.IntN(40)) / 1000, Tolerance: Tolerances{[]float64{0, 0.02, 0.1, 0.3}[random.IntN(4)], []float64{0, 0.02, 0.1, 0.3}[random.IntN(4)]},
		}
		for range 1 + random.IntN(8) {
			w.Pods = append(w.Pods, Pod{State: State(random.IntN(3)), Ready: random.IntN(2) == 0, Value: float64(random.IntN(80)) / 1000})
		}
		d := Decide(w)
		c := count(w)
		require.Equal(t, d.Leads, leads(w, &c, thousandths(d.Number)), "%+v: %+v", w, d)
		require.False(t, d.Number < 0)
		if d.Leads == d.Desired {
			continue
		}
		unreachable++
		nearest := d.Leads
		for n := range int64(d.Desired+2) * (c.target + 1) * int64(max(1, c.ready)) {
			if got := leads(w, &c, n); distance(got, d.Desired) < distance(nearest, d.Desired) {
				nearest = got
			}
		}
		require.NotEqual(t, d.Desired, nearest, "%+v: %+v: there is a number that leads there", w, d)
	}
	assert.NotZero(t, unreachable)
	t.Logf("no number leads to the desired replicas in %d of 200000", unreachable)
}

// Under AverageValue the HPA keeps the pods there are within its tolerance, not those asked
// for. A rollout has more of them all the time, and adds to what is asked for.
func TestRolloutWithSurge(t *testing.T) {
	for name, c := range map[string]struct {
		spec, status, led int
		value             float64 // of each pod; the target is 80
	}{
		"20 held and one more for the rollout": {20, 21, 19, 80},
		"40 held and two more":                 {40, 42, 38, 80},
		"few: the number leads there":          {10, 11, 10, 80},
		"one is refused by a quota":            {20, 19, 19, 80},
		"one less is right":                    {21, 21, 21, 76}, // 19.95 of them, within the tolerance
		"more is right":                        {20, 21, 25, 100},
	} {
		w := &Workload{Pods: join(pods(c.spec, c.value), starting(max(0, c.status-c.spec))), Spec: c.spec, Status: c.status, Target: 80, PerPod: true, Tolerance: Both(DefaultTolerance)}
		d := Decide(w)
		assert.Equal(t, c.led, d.Leads, name)
	}
}

// What no workload has must not overflow.
func TestExtremes(t *testing.T) {
	d := Decide(&Workload{Pods: pods(10_000, 1e300), Spec: 10_000, Status: 10_000, Target: 1e-9, PerPod: true})
	assert.Equal(t, 1<<31-1, d.Desired)
	assert.Positive(t, d.Number)
	d = Decide(&Workload{Pods: pods(1, 50), Spec: 1, Status: 0, Target: 80, PerPod: true})
	assert.Equal(t, 1, d.Leads)
}

func BenchmarkDecide(b *testing.B) {
	w := &Workload{Pods: join(pods(40, 90), starting(20), missing(4)), Spec: 64, Status: 64, Target: 80, PerPod: true, Tolerance: Both(DefaultTolerance)}
	b.ReportAllocs()
	for b.Loop() {
		Decide(w)
	}
}
