package terms

import (
	"fmt"
	"math"
	"strconv"

	"gpuscaler/shared/snapshot"
)

// Bounds of a target, both inclusive. Three decimals of a target survive on
// its way to the HPA, so a smaller one would arrive as 0 and be divided by;
// a larger one than any metric can have would never be met.
const (
	MinTarget = 0.001
	MaxTarget = 1e15
)

// ratioTarget is the largest percentage target that is refused. Ratio metrics
// (DCGM's, Prometheus') end at 1, so 0.8 there is 80 % here.
const ratioTarget = 1

// ParseTarget reads a target in the metric's unit: a plain decimal number from
// MinTarget to MaxTarget, rounded to the three decimals that the HPA gets. The
// error quotes the text and says what is allowed. CheckTarget has the rest of
// the rules, those that depend on the metric.
func ParseTarget(text string) (float64, error) {
	const allowed = "allowed is a finite number above 0"
	v, err := parseNumber(text, allowed)
	switch {
	case err != nil:
		return 0, err
	case v <= 0:
		return 0, fmt.Errorf("%s is not above 0; %s", Quote(text), allowed)
	case v < MinTarget:
		return 0, fmt.Errorf("%s is below %v, the smallest target that reaches the HPA; %s", Quote(text), MinTarget, allowed)
	case v > MaxTarget:
		return 0, fmt.Errorf("%s is above %v, more than any metric can have; %s", Quote(text), MaxTarget, allowed)
	}
	return asKEDARounds(v), nil
}

// asKEDARounds is v as KEDA writes it into the HPA, by "%.3f". That rounds the
// exact value of the float, so math.Round(v*1000)/1000 is not the same: 2.0625
// becomes 2.062.
func asKEDARounds(v float64) float64 {
	var buffer [32]byte // 16 digits before the point and 3 after it
	rounded, err := strconv.ParseFloat(string(strconv.AppendFloat(buffer[:0], v, 'f', 3, 64)), 64)
	if err != nil {
		return v // not reached: AppendFloat writes what ParseFloat reads
	}
	return rounded
}

// TargetFits says whether a target can be meant for a metric that is combined
// by a. Targets of metrics that are no percentage always fit. One of a
// percentage is above 1, and not above the metric's maximum unless a is Sum.
func TargetFits(target float64, m snapshot.Metric, a Aggregation) bool {
	return !m.Percentage() || target > ratioTarget && (target <= m.Max || a == Sum)
}

// CheckTarget says why a target does not fit, or nil: see TargetFits. The error
// quotes text, the target as it was written, and says what was probably meant
// and what is allowed.
func CheckTarget(text string, target float64, m snapshot.Metric, a Aggregation) error {
	if TargetFits(target, m, a) {
		return nil
	}
	reason := fmt.Sprintf("above %v %%, the most that %s can be", m.Max, m.Name)
	if target <= ratioTarget {
		reason = fmt.Sprintf("%v %% or less, and %s is in percent", ratioTarget, m.Name)
	}
	return fmt.Errorf("%s is %s; %s%s", Quote(text), reason, probably(target, m), AllowedTarget(m))
}

// AllowedTarget says which targets a percentage can have.
func AllowedTarget(m snapshot.Metric) string {
	return fmt.Sprintf("allowed is above %v and at most %v, or more with aggregation sum", ratioTarget, m.Max)
}

// probably proposes what was meant by a target that does not fit a percentage:
// 80 for the ratio 0.8, and for 800 or 8000, which have zeros too many. It is
// "" where nothing is likely: 150 is rather a sum than 15.
func probably(target float64, m snapshot.Metric) string {
	meant := target * 100
	if target > ratioTarget {
		const least = 20 // a lower target is rare
		for meant = target; meant > m.Max; meant /= 10 {
		}
		if meant < least || meant != math.Trunc(meant) {
			return ""
		}
	}
	if !TargetFits(meant, m, Max) {
		return ""
	}
	return "did you mean " + Quote(strconv.FormatFloat(asKEDARounds(meant), 'f', -1, 64)) + "? "
}
