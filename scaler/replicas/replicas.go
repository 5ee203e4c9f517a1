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

import (
	"math"
	"math/bits"
)

// DefaultTolerance is the HPA's: --horizontal-pod-autoscaler-tolerance.
const DefaultTolerance = 0.1

// State says how a pod counts.
type State int

// The states. Pods that are terminating, have failed or are finished are not
// given.
const (
	// Counting: the value counts. An overloaded pod that was ready and fails its
	// probe counts, too.
	Counting State = iota
	// Starting: the pod counts as not ready ("unready" in the HPA). Its value, if it
	// has one, is that of a process that loads.
	Starting
	// Missing: the pod has no value now.
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
	// Tolerance is how far from 1 the ratio of mean and target may be with the replica
	// count kept.
	Tolerance Tolerances
	// Composite says that KEDA feeds the number to a formula (scalingModifiers), so
	// that the HPA never compares it with Target: the natural number is the answer.
	Composite bool
}

// Tolerances are the HPA's, for each direction: 0 or above, as shares of 1. See
// DefaultTolerance.
type Tolerances struct{ Up, Down float64 }

// Both is one tolerance for both directions.
func Both(tolerance float64) Tolerances { return Tolerances{tolerance, tolerance} }

// within is Tolerances.isWithin of the HPA.
func (t Tolerances) within(ratio float64) bool { return 1-t.Down <= ratio && ratio <= 1+t.Up }

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
	// WouldReverse: the assumed values would reverse the scaling direction, so the
	// replica count is kept.
	WouldReverse Reason = "values assumed for pods that start or are missing would reverse the direction"
	// NoneCounts: no pod counts, so the replica count is kept.
	NoneCounts Reason = "no pod is ready and has a value"
	// ByTotal: the total, of what is none of the pods', over the target.
	ByTotal Reason = "total over the target"
	// ByFormula: the ScaledObject's formula decides, on the natural number.
	ByFormula Reason = "the ScaledObject's formula decides"
)

// Decision is how many replicas there should be, and why.
type Decision struct {
	// Desired is the number of replicas, before any minimum or maximum.
	Desired int
	// Mean is that of the pods that count; 0 if there is none.
	Mean float64
	// Number is the one to report to the HPA. It is the natural one (the sum under
	// AverageValue, the mean under Value) wherever that leads to Desired.
	Number float64
	// Leads is how many replicas Number leads to. It differs from Desired where no
	// number leads there, because the change is within the HPA's tolerance. With
	// ByFormula, Desired and Leads are the present replicas: the formula's result is
	// not known here.
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
	if w.Composite {
		d.Desired, d.Leads, d.Reason, d.Number = w.Spec, w.Spec, ByFormula, units(c.natural(w))
		return d
	}
	d.Desired, d.Reason = c.desired(w)
	d.Number, d.Leads = number(w, &c, d.Desired)
	return d
}

// DecideTotal decides by a total that is none of the pods', as the requests that wait in
// front of them: one replica for each target, whether the pods are ready or not. Of
// Pods only those that are ready count, as far as the HPA multiplies by them.
func DecideTotal(w *Workload, total float64) Decision {
	c := count(w)
	c.counting, c.sum = 0, thousandths(total)
	if w.Composite {
		return Decision{Desired: w.Spec, Leads: w.Spec, Reason: ByFormula, Number: units(c.sum)}
	}
	average := *w
	average.PerPod = true
	d := Decision{Reason: ByTotal}
	d.Desired = leads(&average, &c, c.sum)
	d.Number, d.Leads = number(w, &c, d.Desired)
	return d
}

// natural is the number for a formula: the mean, or the sum, in which a missing pod
// has the mean of the others. Any other assumption depends on a target, and the
// formula's is not the trigger's. A pod that starts adds nothing to a sum; one that is
// ready already is among those that the HPA multiplies a mean by.
func (c *counted) natural(w *Workload) int64 {
	switch {
	case c.counting == 0:
		return 0
	case w.PerPod && c.missing > 0:
		return mulDiv(c.sum, int64(c.counting+c.missing), int64(c.counting))
	case w.PerPod:
		return c.sum
	}
	return c.sum / int64(c.counting+c.newcomers)
}

// counted is a workload's pods, summed up. Sums are in thousandths.
type counted struct {
	counting, starting, missing, ready int
	newcomers                          int // of starting, those that are ready
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
			c.sum = add(c.sum, thousandths(p.Value))
		case Starting:
			c.starting++
			if p.Ready {
				c.newcomers++
			}
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
			sum = add(sum, mulDiv(int64(c.missing), c.target, 1))
		}
		if up || down {
			pods += c.missing
		}
	}
	if up {
		pods += c.starting
	}
	if pods == c.counting {
		if w.Tolerance.within(first) {
			return w.Spec, WithinTolerance
		}
		return ceil(first * float64(pods)), ByMean
	}
	second := ratio(sum, pods, c.target)
	switch {
	case w.Tolerance.within(second):
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

func ceil(replicas float64) int {
	return int(min(math.Ceil(replicas), math.MaxInt32))
}

// largest is the most that fits the HPA's whole thousandths with room for what
// float64 rounds away: 9e15 units. Larger sums and products stay there.
const largest = 9_000_000_000_000_000_000

func add(a, b int64) int64 {
	if a > largest-b {
		return largest
	}
	return a + b
}

// mulDiv is a x b / c without overflow on the way, at most largest. None is negative,
// and c is above 0.
func mulDiv(a, b, c int64) int64 {
	hi, lo := bits.Mul64(uint64(a), uint64(b)) //nolint:gosec // none is negative
	if hi >= uint64(c) {                       //nolint:gosec // above 0
		return largest
	}
	q, _ := bits.Div64(hi, lo, uint64(c)) //nolint:gosec // above 0
	return int64(min(q, largest))
}

func thousandths(v float64) int64 {
	return int64(min(max(math.Round(v*1000), 0), largest))
}

func units(thousandths int64) float64 { return float64(thousandths) / 1000 }
