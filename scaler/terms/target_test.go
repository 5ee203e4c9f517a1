package terms

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/shared/snapshot"
)

func metric(t *testing.T, name string) snapshot.Metric {
	m, ok := snapshot.Lookup(name)
	require.True(t, ok, name)
	return m
}

// KEDA writes a target into the HPA with "%.3f"; ours is the same number.
func TestTargetIsTheHPAs(t *testing.T) {
	for text, want := range map[string]float64{
		"80": 80, "80.1234": 80.123, "80.1236": 80.124, "2.0625": 2.062, "2.0635": 2.063, "0.001": 0.001, "0.0014": 0.001, "0.9999": 1,
		"1e15": 1e15, "123456789012.3456": 123456789012.346,
	} {
		got, err := ParseTarget(text)
		require.NoError(t, err, text)
		assert.Equal(t, want, got, text)
	}
	r := rand.New(rand.NewPCG(5, 6))
	for range 10_000 {
		v := MinTarget + r.Float64()*100
		got, err := ParseTarget(strconv.FormatFloat(v, 'g', -1, 64))
		require.NoError(t, err)
		inHPA, err := strconv.ParseFloat(fmt.Sprintf("%.3f", v), 64)
		require.NoError(t, err)
		require.Equal(t, inHPA, got, v)
	}
}

func TestCheckTarget(t *testing.T) {
	const (
		allowed = "allowed is above 1 and at most 100, or more with aggregation sum"
		ratio   = " is 1 % or less, and gpu_utilization is in percent; "
		above   = " is above 100 %, the most that gpu_utilization can be; "
	)
	p99, ok := Percentile(99)
	require.True(t, ok)
	for _, c := range []struct {
		metric, text string
		a            Aggregation
		want         string
	}{
		{"gpu_utilization", "0.8", Max, `"0.8"` + ratio + `did you mean "80"? ` + allowed},
		{"gpu_utilization", "0.8", Sum, `"0.8"` + ratio + `did you mean "80"? ` + allowed},
		{"gpu_utilization", "0.07", Avg, `"0.07"` + ratio + `did you mean "7"? ` + allowed},
		{"gpu_utilization", "0.005", Max, `"0.005"` + ratio + allowed}, // 0.5 would not do either
		{"gpu_utilization", "1", Max, `"1"` + ratio + `did you mean "100"? ` + allowed},
		{"gpu_utilization", "1.0004", Max, `"1.0004"` + ratio + `did you mean "100"? ` + allowed}, // 1 in the HPA
		{"gpu_utilization", "1.001", Max, ""},
		{"gpu_utilization", "1.1", Max, ""},
		{"gpu_utilization", "95", Max, ""},
		{"gpu_utilization", "100", Max, ""},
		{"gpu_utilization", "100.0004", Max, ""},
		{"gpu_utilization", "100.001", Max, `"100.001"` + above + allowed},
		{"gpu_utilization", "150", Min, `"150"` + above + allowed},
		{"gpu_utilization", "800", Max, `"800"` + above + `did you mean "80"? ` + allowed},
		{"gpu_utilization", "800", p99, `"800"` + above + `did you mean "80"? ` + allowed},
		{"gpu_utilization", "8000", Avg, `"8000"` + above + `did you mean "80"? ` + allowed},
		{"gpu_utilization", "8e2", Max, `"8e2"` + above + `did you mean "80"? ` + allowed},
		{"gpu_utilization", "655", Max, `"655"` + above + allowed},
		{"gpu_utilization", "800", Sum, ""},
		{"tensor_activity", "0.4", Max, `"0.4" is 1 % or less, and tensor_activity is in percent; did you mean "40"? ` + allowed},
		{"memory_used_mib", "0.8", Max, ""},
		{"temperature", "1", Max, ""},
		{"nvlink_tx_mbps", "50000", Max, ""},
		{"x_ratio", "0.8", Max, ""},
	} {
		target, err := ParseTarget(c.text)
		require.NoError(t, err)
		err = CheckTarget(c.text, target, metric(t, c.metric), c.a)
		assert.Equal(t, c.want == "", TargetFits(target, metric(t, c.metric), c.a), "%+v", c)
		if c.want == "" {
			assert.NoError(t, err, "%+v", c)
		} else {
			assert.EqualError(t, err, c.want)
		}
	}
}

func TestIsLabel(t *testing.T) {
	for name, want := range map[string]bool{"a": true, "engine-0": true, "0": true, "": false, "-a": false, "a-": false, "A": false, "a.b": false, "a_b": false, "ä": false} {
		assert.Equal(t, want, IsLabel(name), name)
	}
}
