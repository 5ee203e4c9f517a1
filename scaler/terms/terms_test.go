package terms

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestAggregationNames(t *testing.T) {
	names := []string{"max", "min", "avg", "sum"}
	for p := 50; p <= 99; p++ {
		names = append(names, fmt.Sprint("p", p))
	}
	for _, name := range names {
		a, err := ParseAggregation(name)
		require.NoError(t, err)
		assert.Equal(t, name, a.String())
	}
	for _, name := range []string{"", "p", "p5", "p050", "p49", "p100", "P95", " max", "p5x", "p-1"} {
		_, err := ParseAggregation(name)
		assert.ErrorContains(t, err, "allowed are max, min, avg, sum, p50 to p99", name)
	}
	assert.Equal(t, "Aggregation(200)", Aggregation(200).String())
	assert.Equal(t, Max, Aggregation(0))
}

func TestApply(t *testing.T) {
	twenty := make([]float64, 20)
	for i := range twenty {
		twenty[i] = float64(i + 1)
	}
	rand.New(rand.NewPCG(1, 2)).Shuffle(20, func(i, j int) { twenty[i], twenty[j] = twenty[j], twenty[i] })
	for _, c := range []struct {
		name   string
		values []float64
		want   float64
	}{
		{"max", []float64{60, 80}, 80}, {"min", []float64{60, 80}, 60}, {"avg", []float64{60, 80}, 70}, {"sum", []float64{60, 80}, 140},
		{"max", []float64{-5, -7}, -5}, {"p50", []float64{80, 60}, 60}, {"p51", []float64{80, 60}, 80}, {"p99", []float64{7}, 7},
		{"p50", twenty, 10}, {"p95", twenty, 19}, {"p96", twenty, 20}, {"p99", twenty, 20}, {"p90", twenty, 18}, {"p55", twenty, 11},
	} {
		a, err := ParseAggregation(c.name)
		require.NoError(t, err)
		before := slices.Clone(c.values)
		assert.Equal(t, c.want, a.Apply(c.values), "%s of %v", c.name, c.values)
		assert.Equal(t, before, c.values)
	}
	for _, a := range []Aggregation{Max, Min, Avg, Sum, 95} {
		assert.True(t, math.IsNaN(a.Apply(nil)), a)
	}
}

// Nearest rank, by its definition: the smallest value that at least p percent
// of all values do not exceed.
func TestPercentileByDefinition(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for n := 1; n <= 200; n++ {
		values := make([]float64, n)
		for i := range values {
			values[i] = r.Float64() * 100
		}
		sorted := slices.Sorted(slices.Values(values))
		for p := minPercentile; p <= maxPercentile; p++ {
			i := slices.IndexFunc(sorted, func(v float64) bool {
				at := slices.Index(sorted, v) + 1
				return at*100 >= p*n
			})
			a, ok := Percentile(p)
			require.True(t, ok)
			require.Equal(t, sorted[i], a.Apply(values), "p%d of %d", p, n)
		}
	}
}

func TestApplyDoesNotAllocate(t *testing.T) {
	values := []float64{8, 7, 6, 5, 4, 3, 2, 1}
	assert.Zero(t, testing.AllocsPerRun(100, func() { Aggregation(95).Apply(values) }))
}

func TestDuration(t *testing.T) {
	for want, d := range map[string]time.Duration{"0s": 0, "15s": 15 * time.Second, "1m": time.Minute, "24h": 24 * time.Hour,
		"1m30s": 90 * time.Second, "1h30m": 90 * time.Minute, "10m": 10 * time.Minute} {
		assert.Equal(t, want, Duration(d))
	}
}

func TestNearest(t *testing.T) {
	words := []string{"gpu_utilization", "max", "batch", "vllm-inference"}
	for word, want := range map[string]string{"": "", "gpu": "gpu_utilization", "gpu_utilisation": "gpu_utilization", "mix": "max", "ma": "max",
		"mean": "", "VLLM": "vllm-inference", "batch-jobs": "batch", "gp": "", "something else": "", strings.Repeat("gpu_utilization", 9): ""} {
		assert.Equal(t, want, Nearest(word, words), word)
	}
}

func TestList(t *testing.T) {
	assert.Equal(t, "a, b", List([]string{"a", "b"}))
	assert.True(t, strings.HasSuffix(List(make([]string, 1008)), " and 968 more"))
}
