package replicas

import "math"

// number is what makes the HPA ask for d replicas, and how many that really
// are: the natural one if it does, else the first of those that might, else the
// one that comes nearest, and of two the one that leaves more.
func number(w *Workload, c *counted, d int) (value float64, leads int) {
	var best int64
	for i, n := range candidates(w, c, d) {
		got := told(w, c, n)
		if got == d {
			return units(n), got
		}
		if i == 0 || distance(got, d) < distance(leads, d) || (distance(got, d) == distance(leads, d) && got > leads) {
			best, leads = n, got
		}
	}
	return units(best), leads
}

// candidates are numbers that may make the HPA ask for d replicas, the one that
// people expect first.
func candidates(w *Workload, c *counted, d int) []int64 {
	r, t := int64(d), c.target
	if w.PerPod {
		// The HPA divides by the target and rounds up: all of ((d-1) t, d t] leads to
		// d, if it is not within the tolerance of the replicas there are. What is
		// farthest from them is best: the upper end for more, the lower for less.
		all := []int64{c.sum, r * t}
		if d > 0 {
			all = append(all, (r-1)*t+1)
		}
		return append(all, beside(t*int64(w.Status), w.Tolerance)...)
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
		all = append(all, r*t/ready, (2*r-1)*t/(2*ready), (r-1)*t/ready+1)
	}
	all = append(all, beside(t, w.Tolerance)...)
	for i := range all {
		all[i] = max(0, all[i])
	}
	return all
}

// beside are the nearest numbers that are not within the tolerance of one.
func beside(n int64, tolerance float64) []int64 {
	return []int64{int64((1+tolerance)*float64(n)) + 1, max(0, int64(math.Ceil((1-tolerance)*float64(n)))-1)}
}

// told is how many replicas the HPA asks for when it is told a number.
func told(w *Workload, c *counted, n int64) int {
	if w.PerPod { // GetExternalPerPodMetricReplicas
		if within(float64(n)/(float64(c.target)*float64(w.Status)), w.Tolerance) {
			return w.Status
		}
		return ceil(float64(n) / float64(c.target))
	}
	// getUsageRatioReplicaCount
	ratio := float64(n) / float64(c.target)
	switch {
	case w.Spec == 0:
		return ceil(ratio)
	case within(ratio, w.Tolerance):
		return w.Spec
	}
	return ceil(ratio * float64(c.ready))
}

func distance(a, b int) int { return max(a-b, b-a) }
