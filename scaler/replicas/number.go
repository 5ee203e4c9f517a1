package replicas

import "math"

// number is the one that makes the HPA ask for d replicas, and how many that really
// are: the natural one if it does, else the first of those that might, else the best
// of them (see better).
func number(w *Workload, c *counted, d int) (value float64, replicas int) {
	var best int64
	for i, n := range candidates(w, c, d) {
		got := leads(w, c, n)
		if got == d {
			return units(n), got
		}
		if i == 0 || better(w, d, got, replicas) {
			best, replicas = n, got
		}
	}
	return units(best), replicas
}

// better says whether a replicas are a better answer than b where d are right, and no
// number leads there: what comes nearer, and of two the one that leaves more. But a count
// that is to be kept or lowered does not grow. Under AverageValue the HPA keeps the pods
// there are, not those asked for, and in a rollout (maxSurge) there are more of them all
// the time: each decision would add to the surge of the one before. Fewer replicas come
// only after the HPA's stabilization window.
func better(w *Workload, d, a, b int) bool {
	if d <= w.Spec && (a > w.Spec) != (b > w.Spec) {
		return b > w.Spec
	}
	return distance(a, d) < distance(b, d) || (distance(a, d) == distance(b, d) && a > b)
}

// candidates are numbers that may make the HPA ask for d replicas, the one that
// people expect first.
func candidates(w *Workload, c *counted, d int) []int64 {
	r, t := int64(d), c.target
	if w.PerPod {
		// The HPA divides by the target and rounds up: all of ((d-1) t, d t] leads to
		// d, if it is not within the tolerance of the replicas there are. What is
		// farthest from them is best: the upper end for more, the lower for less.
		all := []int64{c.sum, mulDiv(r, t, 1)}
		if d > 0 {
			all = append(all, add(mulDiv(r-1, t, 1), 1))
		}
		return append(all, beside(mulDiv(t, int64(max(0, w.Status)), 1), w.Tolerance)...)
	}
	// The HPA multiplies by the pods that are ready and rounds up, with the errors
	// of floating point: the middle of ((d-1) t/ready, d t/ready] is safe from them.
	ready := int64(c.ready)
	if w.Spec == 0 {
		ready = 1 // from zero it does not multiply
	}
	all := []int64{t} // which changes nothing
	if c.counting > 0 {
		all = []int64{c.sum / int64(c.counting), t}
	}
	if ready > 0 { // else all but t comes to 0
		all = append(all, mulDiv(r, t, ready), mulDiv(max(0, 2*r-1), t, 2*ready), add(mulDiv(max(0, r-1), t, ready), 1))
	}
	all = append(all, beside(t, w.Tolerance)...)
	for i := range all {
		all[i] = max(0, all[i])
	}
	return all
}

// beside are the nearest numbers that are not within the tolerance of one.
func beside(n int64, t Tolerances) []int64 {
	return []int64{int64(min((1+t.Up)*float64(n)+1, largest)), max(0, int64(math.Ceil((1-t.Down)*float64(n)))-1)}
}

// leads is how many replicas the HPA asks for when a number is reported.
func leads(w *Workload, c *counted, n int64) int {
	if w.PerPod { // GetExternalPerPodMetricReplicas
		if w.Tolerance.within(float64(n) / (float64(c.target) * float64(w.Status))) {
			return w.Status
		}
		return ceil(float64(n) / float64(c.target))
	}
	// getUsageRatioReplicaCount
	ratio := float64(n) / float64(c.target)
	switch {
	case w.Spec == 0:
		return ceil(ratio)
	case w.Tolerance.within(ratio):
		return w.Spec
	}
	return ceil(ratio * float64(c.ready))
}

func distance(a, b int) int { return max(a-b, b-a) }
