// Package replicas is the HPA's arithmetic: how many replicas a workload's pods
// ask for by the rules that the HPA has for CPU, and which number makes its
// arithmetic for external metrics come to the same. It is pure: it must not know
// what a pod or a GPU is, where values come from, or what time it is.
//
// The rules are those of k8s.io/kubernetes/pkg/controller/podautoscaler as of
// 1.36, replica_calculator.go: calcPlainMetricReplicas for CPU,
// GetExternalPerPodMetricReplicas and GetExternalMetricReplicas for the number.
// Like the HPA it counts in thousandths, as whole numbers.
package replicas

import "math"

// DefaultTolerance is the HPA's: --horizontal-pod-autoscaler-tolerance.
const DefaultTolerance = 0.1

// State says how a pod counts.
type State int

// The states. Pods that are terminating, have failed or are finished are not
// given.
const (
	// Counting: the pod has been ready, and its value is known. An overloaded pod
	// that fails its probe counts, too.
	Counting State = iota
	// Starting: the pod has never been ready. Its value, if it has one, is that
	// of a process that loads.
	Starting
	// Missing: nothing is known of the pod now.
	Missing
)

// Pod is one pod of a workload.
type Pod struct {
	State State
	// Ready: it is ready now, as the HPA counts ready pods under Value.
	Ready bool
	// Value is the metric of the pod, of any unit, 0 or above. It is read only of
	// pods that are Counting.
	Value float64
}

// Workload is what the HPA scales, at one moment.
type Workload struct {
	Pods []Pod
	// Terminating is how many pods are about to end and still ready: they count in
	// no way but one, that the HPA multiplies a Value by them as well.
	Terminating int
	// Spec is how many replicas are asked for, Status how many there are, both
	// from the scale subresource.
	Spec, Status int
	// Target is the target per replica, in the unit of the pods' values: 0.001 or
	// above.
	Target float64
	// PerPod says that the HPA's target is an AverageValue; else it is a Value.
	PerPod bool
	// Tolerance is how far from 1 the ratio of mean and target may be with nothing
	// done: see DefaultTolerance.
	Tolerance float64
}

// Reason says which of the rules decided.
type Reason string

// The reasons.
const (
	// ByMean: the mean of the pods that count, times how many they are.
	ByMean Reason = "mean of the pods that count"
	// ByAll: as ByMean, with a value assumed for the others: 0 for those that
	// start or are missing when the mean asks for more, the target for those that
	// are missing when it asks for less.
	ByAll Reason = "mean with values assumed for pods that start or are missing"
	// WithinTolerance: the mean is so near the target that nothing changes.
	WithinTolerance Reason = "within the tolerance"
	// WouldReverse: the assumed values turn the direction round, so nothing changes.
	WouldReverse Reason = "values assumed for pods that start or are missing reverse the direction"
	// NoneCounts: no pod counts, so nothing changes.
	NoneCounts Reason = "no pod has been ready and has a value"
)

// Decision is how many replicas there should be, and why.
type Decision struct {
	// Desired is the number of replicas, before any minimum or maximum.
	Desired int
	// Mean is that of the pods that count; 0 if there is none.
	Mean float64
	// Number is what the HPA has to be told. It is the natural one (the sum under
	// AverageValue, the mean under Value) wherever that leads to Desired.
	Number float64
	// Leads is how many replicas Number leads to. It differs from Desired where no
	// number leads there, because the change is within the HPA's tolerance.
	Leads int
	// Reason is the rule that decided.
	Reason Reason
	// Counting, Starting and Missing are how many pods are so.
	Counting, Starting, Missing int
}

// Decide decides for a workload with at least one pod.
func Decide(w *Workload) Decision {
	c := count(w)
	d := Decision{Counting: c.counting, Starting: c.starting, Missing: c.missing}
	if c.counting > 0 {
		d.Mean = units(c.sum / int64(c.counting))
	}
	d.Desired, d.Reason = c.desired(w)
	d.Number, d.Leads = number(w, &c, d.Desired)
	return d
}

// counted is a workload's pods, summed up. Sums are in thousandths.
type counted struct {
	counting, starting, missing, ready int
	sum, target                        int64
}

func count(w *Workload) (c counted) {
	c.target = max(1, thousandths(w.Target))
	c.ready = w.Terminating // getReadyPodsCount
	for i := range w.Pods {
		p := &w.Pods[i]
		if p.Ready {
			c.ready++
		}
		switch p.State {
		case Counting:
			c.counting++
			c.sum += thousandths(p.Value)
		case Starting:
			c.starting++
		case Missing:
			c.missing++
		}
	}
	return c
}

// desired is calcPlainMetricReplicas.
func (c *counted) desired(w *Workload) (int, Reason) {
	if c.counting == 0 {
		return w.Spec, NoneCounts
	}
	first := ratio(c.sum, c.counting, c.target)
	up, down := first > 1, first < 1
	sum, pods := c.sum, c.counting
	if c.missing > 0 {
		if down {
			sum += int64(c.missing) * c.target
		}
		if up || down {
			pods += c.missing
		}
	}
	if up {
		pods += c.starting
	}
	if pods == c.counting {
		if within(first, w.Tolerance) {
			return w.Spec, WithinTolerance
		}
		return ceil(first * float64(pods)), ByMean
	}
	second := ratio(sum, pods, c.target)
	switch {
	case within(second, w.Tolerance):
		return w.Spec, WithinTolerance
	case up && second < 1, down && second > 1:
		return w.Spec, WouldReverse
	}
	n := ceil(second * float64(pods))
	if (second < 1 && n > w.Spec) || (second > 1 && n < w.Spec) {
		return w.Spec, WouldReverse
	}
	return n, ByAll
}

// ratio is GetMetricUsageRatio: the mean is a whole number of thousandths.
func ratio(sum int64, pods int, target int64) float64 {
	return float64(sum/int64(pods)) / float64(target)
}

func within(ratio, tolerance float64) bool {
	return 1-tolerance <= ratio && ratio <= 1+tolerance
}

func ceil(replicas float64) int {
	return int(min(math.Ceil(replicas), math.MaxInt32))
}

// largest keeps sums over any number of pods away from overflow.
const largest = math.MaxInt64 >> 24

func thousandths(v float64) int64 {
	return int64(min(max(math.Round(v*1000), 0), largest))
}

func units(thousandths int64) float64 { return float64(thousandths) / 1000 }
