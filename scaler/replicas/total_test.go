package replicas

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

// TestDecideTotal: a total leads to one replica for each target, under both kinds of
// target, whatever the pods do, and to nothing within the tolerance.
func TestDecideTotal(t *testing.T) {
	for name, c := range map[string]struct {
		replicas, ready int
		total, target   float64
		want            int
	}{
		"nothing":              {3, 3, 0, 5, 0},
		"from zero":            {0, 0, 3, 5, 1},
		"up":                   {1, 1, 23, 5, 5},
		"down":                 {8, 8, 23, 5, 5},
		"within the tolerance": {4, 4, 21, 5, 4},
		"just beyond it":       {4, 4, 22.1, 5, 5},
		"some pods start":      {4, 2, 40, 5, 8},
		"less than one":        {2, 2, 0.5, 5, 1},
	} {
		for _, perPod := range []bool{true, false} {
			w := Workload{Spec: c.replicas, Status: c.replicas, Target: c.target, PerPod: perPod, Tolerance: Both(DefaultTolerance)}
			for i := range c.replicas {
				w.Pods = append(w.Pods, Pod{State: Starting, Ready: i < c.ready})
			}
			d := DecideTotal(&w, c.total)
			assert.Equal(t, c.want, d.Desired, "%s, per pod %v", name, perPod)
			assert.Equal(t, c.want, d.Leads, "%s, per pod %v: %v", name, perPod, d.Number)
			if perPod {
				assert.InDelta(t, c.total, d.Number, 0, name)
			}
		}
	}
	d := DecideTotal(&Workload{Spec: 2, Status: 2, Target: 1, Composite: true}, 7)
	assert.InDelta(t, 7, d.Number, 0, "a formula gets the total")
}
