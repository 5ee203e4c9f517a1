package terms

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Aggregation says how the readings of several devices become one. The zero
// value is Max, the default. It is comparable.
type Aggregation uint8

// The aggregations that are not percentiles. The values 50 to 99 are the
// percentiles; see Percentile.
const (
	Max Aggregation = iota
	Min
	Avg
	Sum
)

// The percentiles there are, both inclusive.
const (
	minPercentile = 50
	maxPercentile = 99
)

var aggregationNames = [...]string{Max: "max", Min: "min", Avg: "avg", Sum: "sum"}

// Percentile is the aggregation "p50" to "p99". ok is false for any other p.
func Percentile(p int) (a Aggregation, ok bool) {
	if p < minPercentile || p > maxPercentile {
		return 0, false
	}
	return Aggregation(p), true
}

// ParseAggregation reads max, min, avg, sum or p50 to p99, in lower case. The
// error says what is wrong with the name, which it quotes, and what is allowed.
func ParseAggregation(name string) (Aggregation, error) {
	if i := slices.Index(aggregationNames[:], name); i >= 0 {
		return Aggregation(i), nil //nolint:gosec // few names
	}
	if len(name) == 3 && name[0] == 'p' && isDigit(name[1]) && isDigit(name[2]) {
		if a, ok := Percentile(int(name[1]-'0')*10 + int(name[2]-'0')); ok {
			return a, nil
		}
	}
	allowed := fmt.Sprintf("allowed are %s, p%d to p%d", strings.Join(aggregationNames[:], ", "), minPercentile, maxPercentile)
	if name == "" {
		return 0, fmt.Errorf(`"" is empty; %s`, allowed)
	}
	return 0, fmt.Errorf("%s is unknown; %s", Quote(name), allowed)
}

// String is the name that ParseAggregation reads.
func (a Aggregation) String() string {
	switch {
	case int(a) < len(aggregationNames):
		return aggregationNames[a]
	case a >= minPercentile && a <= maxPercentile:
		return "p" + strconv.Itoa(int(a))
	}
	return fmt.Sprintf("Aggregation(%d)", uint8(a))
}

// Apply combines values, which may be in any order and are not modified. A
// percentile is by nearest rank: the ceil(p/100*n)th smallest, so always one of
// the values. No values give NaN: the caller must not mistake nothing for 0.
// The values must not be NaN.
func (a Aggregation) Apply(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	switch a {
	case Max:
		return slices.Max(values)
	case Min:
		return slices.Min(values)
	case Sum:
		return sum(values)
	case Avg:
		return sum(values) / float64(len(values))
	}
	return nearestRank(values, int(a))
}

func sum(values []float64) (total float64) {
	for _, v := range values {
		total += v
	}
	return total
}

// nearestRank does not allocate for the devices of a usual node.
func nearestRank(values []float64, p int) float64 {
	if !slices.IsSorted(values) {
		var buffer [64]float64
		values = append(buffer[:0], values...)
		slices.Sort(values)
	}
	n := len(values)
	rank := (p*n + 99) / 100 // in integers: 0.95*20 in floats is above 19
	return values[rank-1]
}

func isDigit(c byte) bool { return c >= '0' && c <= '9' }
