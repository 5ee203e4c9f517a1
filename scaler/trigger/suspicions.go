package trigger

import (
	"fmt"
	"math"
)

// Suspicions says what is allowed in a trigger and hardly meant, one sentence
// each; none is the usual case. scaleUpTolerance is the HPA's, as a ratio: 0.1
// is 10 %.
func Suspicions(t *Trigger, scaleUpTolerance float64) []string {
	var all []string
	if s := unreachable(t, scaleUpTolerance); s != "" {
		all = append(all, s)
	}
	if t.Activation >= t.Target && !t.AlwaysActive {
		all = append(all, fmt.Sprintf("activationThreshold %v is not below the target %v: pods with %s of %v or less count as inactive, busy ones too, "+
			"and KEDA may scale them to zero. Set activationThreshold below the target.", t.Activation, t.Target, t.Metric.Name, t.Activation))
	}
	return all
}

// unreachable: the HPA only asks for more where value / target is above 1 + the
// tolerance, and a percentage ends at its maximum.
func unreachable(t *Trigger, tolerance float64) string {
	limit := t.Metric.Max / (1 + tolerance)
	if !t.Metric.Percentage() || t.Aggregation == Sum || t.Target < limit {
		return ""
	}
	advice := "Lower the tolerance: no target helps."
	if useful := (math.Ceil(limit*10) - 1) / 10; useful > 1 { // with one decimal, below the limit
		advice = fmt.Sprintf("The highest useful target is %v.", useful)
	}
	return fmt.Sprintf("The target %v of %s can never ask for more replicas: with the HPA's tolerance of %s %% that takes a value above %s, and the most is %v. %s",
		t.Target, t.Metric.Name, decimal(100*tolerance), decimal(t.Target*(1+tolerance)), t.Metric.Max, advice)
}

// decimal is v without the errors of floating point.
func decimal(v float64) string { return fmt.Sprint(math.Round(v*1000) / 1000) }
