package snapshot

import (
	"math"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestMetricsTableIsSound(t *testing.T) {
	seen := map[string]bool{}
	for _, m := range Metrics {
		assert.False(t, seen[m.Name], "%s is there twice", m.Name)
		seen[m.Name] = true
		assert.NotEmpty(t, m.Unit, m.Name)
		assert.NotEmpty(t, m.Source, m.Name)
		assert.Less(t, m.Min, m.Max, m.Name)
		assert.False(t, strings.HasPrefix(m.Name, customPrefix), "%s takes a name that belongs to other writers", m.Name)
		if m.Unit == "%" || m.Unit == "°C" {
			assert.False(t, m.Sums, "%s: sums of %s mean nothing", m.Name, m.Unit)
		}
		if m.Counter != nil {
			assert.Positive(t, m.Counter.PerUnitSecond, m.Name)
		}
	}
	assert.LessOrEqual(t, len(Metrics), MaxMetrics)
	assert.Len(t, MetricNames(), len(Metrics))
	assert.Equal(t, "gpu_utilization", MetricNames()[0])
}

func TestLookup(t *testing.T) {
	for _, name := range MetricNames() {
		m, ok := Lookup(name)
		require.True(t, ok, name)
		assert.Equal(t, name, m.Name)
	}
	power, _ := Lookup("power_draw")
	assert.Equal(t, "energy_joules", power.Counter.Name)
	assert.False(t, power.Counter.Complete, "a board whose energy counter rests still draws power")
	nvlink, _ := Lookup("nvlink_rx_mbps")
	assert.Equal(t, "nvlink_rx_bytes", nvlink.Counter.Name)
	assert.True(t, nvlink.Counter.Complete)
}

func TestLookupCustomNames(t *testing.T) {
	tests := map[string]bool{
		"x_wear_percent":               true,
		"x_a":                          true,
		"x_9":                          true,
		"x__":                          true,
		"x_" + strings.Repeat("a", 60): true,
		"x_" + strings.Repeat("a", 61): false,
		"x_":                           false,
		"x":                            false,
		"":                             false,
		"X_wear":                       false,
		"x_Wear":                       false,
		"x_wear-percent":               false,
		"x_wear percent":               false,
		"x_ü":                          false,
		"x_wear\n":                     false,
		" x_wear":                      false,
		"gpu_utilisation":              false,
		"GPU_UTILIZATION":              false,
	}
	for name, want := range tests {
		m, ok := Lookup(name)
		assert.Equal(t, want, ok, "%q", name)
		if !ok {
			assert.Zero(t, m, "%q", name)
			continue
		}
		assert.Equal(t, Metric{Name: name, Min: -1e15, Max: 1e15, Source: "defined by its writer"}, m)
	}
}

func TestCheck(t *testing.T) {
	percent, _ := Lookup("gpu_utilization")
	celsius, _ := Lookup("temperature")
	custom, _ := Lookup("x_wear_percent")
	tests := []struct {
		metric Metric
		value  float64
		want   string
	}{
		{percent, 0, ""},
		{percent, 100, ""},
		{percent, math.Copysign(0, -1), ""},
		{percent, math.Nextafter(100, 101), "gpu_utilization: 100.00000000000001 is outside 0 to 100 %"},
		{percent, -1, "gpu_utilization: -1 is outside 0 to 100 %"},
		{percent, math.NaN(), "gpu_utilization: NaN is outside 0 to 100 %"},
		{percent, math.Inf(1), "gpu_utilization: +Inf is outside 0 to 100 %"},
		{percent, math.Inf(-1), "gpu_utilization: -Inf is outside 0 to 100 %"},
		{celsius, -100, ""},
		{celsius, 300, ""},
		{celsius, 301, "temperature: 301 is outside -100 to 300 °C"},
		{custom, -1e15, ""},
		{custom, 1e15, ""},
		{custom, 1.1e15, "x_wear_percent: 1.1e+15 is outside -1e+15 to 1e+15 "},
		{custom, math.NaN(), "x_wear_percent: NaN is outside -1e+15 to 1e+15 "},
	}
	for _, tt := range tests {
		err := tt.metric.Check(tt.value)
		if tt.want == "" {
			assert.NoError(t, err)
		} else {
			assert.EqualError(t, err, tt.want)
		}
	}
}

func TestPercentage(t *testing.T) {
	for name, want := range map[string]bool{"gpu_utilization": true, "memory_used_percent": true, "sm_occupancy": true,
		"memory_used_mib": false, "temperature": false, "nvlink_tx_mbps": false, "x_percent": false} {
		m, ok := Lookup(name)
		require.True(t, ok, name)
		assert.Equal(t, want, m.Percentage(), name)
	}
}

func TestUsedPercent(t *testing.T) {
	percent, ok := UsedPercent(6144, 8192)
	assert.True(t, ok)
	assert.InDelta(t, 75, percent, 0)
	for _, total := range []float64{0, -1, math.NaN()} {
		_, ok = UsedPercent(1, total)
		assert.False(t, ok, "%v", total)
	}
}
