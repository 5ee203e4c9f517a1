package profiles

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/scaler/terms"
	"gpuscaler/shared/snapshot"
)

func TestBuiltin(t *testing.T) {
	type numbers struct {
		metric             string
		target, activation float64
		toZero             bool
	}
	want := map[string]numbers{
		"vllm-inference":       {"memory_used_percent", 80, 5, true},
		"triton-inference":     {"gpu_utilization", 75, 10, true},
		"training":             {"gpu_utilization", 90, 0, false},
		"batch":                {"memory_used_percent", 70, 1, true},
		"ollama":               {"memory_used_percent", 70, 3, true},
		"tgi-inference":        {"memory_used_percent", 75, 5, true},
		"distributed-training": {"nvlink_tx_mbps", 50000, 5000, false},
		"llm-saturation":       {"tensor_activity", 40, 1, true},
		"llm":                  {"engine_saturation", 80, 0, true},
		"llm-latency":          {"engine_ttft_ms", 1000, 0, true},
		"llm-prefill":          {"engine_waiting", 2, 0, false},
		"llm-decode":           {"engine_kv_cache_percent", 70, 0, true},
		"vllm-queue-depth":     {"engine_waiting", 5, 1, true},
		"triton-queue-wait":    {"engine_queue_wait_ms", 50, 5, true},
		"triton-request-rate":  {"engine_request_rate", 50, 1, true},
	}
	got := map[string]numbers{}
	for _, name := range Builtin().Names() {
		p, ok := Builtin().Get(name)
		require.True(t, ok)
		got[name] = numbers{p.Metric.Name, p.Target, p.Activation, p.ScaleToZero}
		assert.Equal(t, name, p.Name)
		assert.Equal(t, terms.Max, p.Aggregation)
		span := 15 * time.Second
		if name == "llm-latency" {
			span = time.Minute
		}
		assert.Equal(t, span, p.Window)
		assert.NotEmpty(t, p.Description)
		assert.Greater(t, len(p.Reason), 50)
		assert.NotContains(t, p.Reason, "\n")
	}
	assert.Equal(t, want, got)
	vllm, _ := Builtin().Get("vllm-inference")
	assert.Contains(t, vllm.Reason, "reserves most of the VRAM")
	assert.Contains(t, vllm.Reason, "llm-saturation")
}

func TestSet(t *testing.T) {
	var none *Set
	_, ok := none.Get("batch")
	assert.False(t, ok)
	assert.Empty(t, none.Names())
	names := Builtin().Names()
	names[0] = "changed"
	assert.NotContains(t, Builtin().Names(), "changed")
	assert.IsIncreasing(t, Builtin().Names())
}

// text is a good profile with lines replaced or, with a value "-", removed.
func text(name string, change map[string]string) []byte {
	var b strings.Builder
	lines := [][2]string{{"name", name}, {"description", "ours"}, {"reason", "because"}, {"metricType", "gpu_utilization"},
		{"targetValue", "50"}, {"activationThreshold", "2"}, {"scaleToZero", "true"}}
	for _, l := range lines {
		if v, ok := change[l[0]]; ok {
			l[1] = v
		}
		if l[1] != "-" {
			fmt.Fprintf(&b, "%s: %s\n", l[0], l[1])
		}
	}
	b.WriteString(change["+"])
	return []byte(b.String())
}

func TestParse(t *testing.T) {
	p, err := parse("ours.yml", text("ours", map[string]string{"metricType": "x_wear", "targetValue": "123456.789", "+": "aggregation: p90\nwindow: 300s\n"}))
	require.NoError(t, err)
	wear, _ := snapshot.Lookup("x_wear")
	assert.Equal(t, Profile{Name: "ours", Description: "ours", Reason: "because", MetricName: "keda_gpu_ours", Metric: wear, Target: 123456.789, Activation: 2, ScaleToZero: true,
		Aggregation: 90, Window: 5 * time.Minute}, p)

	p, err = parse("ours.yaml", text("ours", map[string]string{"activationThreshold": "-", "targetValue": `"80"`, "scaleToZero": "false", "+": "...\n"}))
	require.NoError(t, err)
	assert.Zero(t, p.Activation)
	assert.Equal(t, 80.0, p.Target)

	p, err = parse("ours.yaml", text("ours", map[string]string{"targetValue": "300.0625", "+": "aggregation: sum\n"}))
	require.NoError(t, err, "the sum of a pod's four GPUs")
	assert.Equal(t, 300.062, p.Target, "as KEDA rounds it")
}

func TestReasons(t *testing.T) {
	for _, name := range []string{"vllm-inference", "ollama", "tgi-inference", "batch"} {
		p, _ := Builtin().Get(name)
		assert.Contains(t, p.Reason, "lat memory counts as the target while the GPU works and as 0 while it is idle", name)
		assert.Contains(t, p.Reason, "never asks for more", name)
		assert.Contains(t, p.Reason, "instead", name)
	}
	p, _ := Builtin().Get("training")
	assert.Contains(t, p.Reason, "above a mean of 99 %")
}

func TestParseBad(t *testing.T) {
	const keys = "name, description, reason, metricType, targetValue, activationThreshold, scaleToZero, aggregation, window"
	names := snapshot.MetricNames()
	for _, m := range terms.EngineMetrics {
		names = append(names, m.Name)
	}
	metrics := strings.Join(append(names, terms.Queue.Name), ", ") + " and x_<name>"
	with := func(key, value string) []byte { return text("ours", map[string]string{key: value}) }
	for _, c := range []struct {
		data []byte
		want string
	}{
		{nil, `name: missing`},
		{[]byte("# nothing\n"), `name: missing`},
		{with("name", "-"), `name: missing`},
		{with("name", "other"), `name: "other" is not the file's name; allowed is "ours"`},
		{with("name", ""), `name: "" is empty; allowed is any other text`},
		{with("description", "-"), `description: missing`},
		{with("description", `" "`), `description: " " is empty; allowed is any other text`},
		{with("reason", "-"), `reason: missing`},
		{with("metricType", "-"), `metricType: missing`},
		{with("metricType", "gpu_utilisation"), `metricType: "gpu_utilisation" is unknown; did you mean "gpu_utilization"? allowed are ` + metrics},
		{with("metricType", ""), `metricType: "" is empty; allowed are ` + metrics},
		{with("targetValue", "-"), `targetValue: missing`},
		{with("targetValue", "0"), `targetValue: "0" is not above 0; allowed is a finite number above 0`},
		{with("targetValue", ".inf"), `targetValue: ".inf" is not a number; allowed is a finite number above 0`},
		{with("targetValue", ".nan"), `targetValue: ".nan" is not a number; allowed is a finite number above 0`},
		{with("targetValue", "80%"), `targetValue: "80%" is not a number; allowed is a finite number above 0`},
		{with("targetValue", "0x10"), `targetValue: "0x10" is not a number; allowed is a finite number above 0`},
		{with("targetValue", ""), `targetValue: "" is empty; allowed is a finite number above 0`},
		{with("targetValue", "[1]"), `unmarshal errors: line 5: cannot unmarshal !!seq into string`},
		{with("targetValue", "0.8"), `targetValue: "0.8" is 1 % or less, and gpu_utilization is in percent; did you mean "80"? allowed is above 1 and at most 100, or more with aggregation sum`},
		{with("targetValue", "1"), `targetValue: "1" is 1 % or less, and gpu_utilization is in percent; did you mean "100"? allowed is above 1 and at most 100, or more with aggregation sum`},
		{with("targetValue", "800"), `targetValue: "800" is above 100 %, the most that gpu_utilization can be; did you mean "80"? allowed is above 1 and at most 100, or more with aggregation sum`},
		{with("activationThreshold", "-5"), `activationThreshold: "-5" is below 0; allowed is a finite number, 0 or above`},
		{with("scaleToZero", "-"), `scaleToZero: missing`},
		{with("scaleToZero", "maybe"), `scaleToZero: "maybe" is no boolean; allowed are true and false`},
		{with("+", "aggregation: mean\n"), `aggregation: "mean" is unknown; allowed are max, min, avg, sum, p50 to p99`},
		{with("+", "window: 30s\n"), `window: "30s" is no window; allowed are 0s, 15s, 1m, 5m`},
		{with("+", "targetvalue: 3\n"), `targetvalue: unknown key; did you mean "targetValue"? allowed are ` + keys},
		{with("+", "color: 3\n"), `color: unknown key; allowed are ` + keys},
		{with("+", "targetValue: 3\n"), `unmarshal errors: line 8: key "targetValue" already set in map`},
		{with("+", "---\nname: two\n"), `more than one YAML document; one profile a file is allowed`},
		{[]byte("a: [\n"), `line 1: did not find expected node content`},
		{[]byte("just text\n"), "unmarshal errors: line 1: cannot unmarshal !!str `just text` into map[string]string"},
		{with("reason", strings.Repeat("x", MaxFileBytes)), `more than 65536 bytes; at most 65536 are allowed`},
	} {
		_, err := parse("ours.yaml", c.data)
		assert.EqualError(t, err, "ours.yaml: "+c.want)
	}
	for _, name := range []string{"Ours", "a_b", "a-", "-a", "ü", strings.Repeat("a", 64)} {
		_, err := parse(name+".yaml", text(`"`+name+`"`, nil))
		assert.EqualError(t, err, name+`.yaml: name: "`+name+`" is no profile name; allowed are 1 to 63 lower-case letters, digits and dashes, not beginning or ending with a dash`)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(text("ours", nil))
	f.Add(text("ours", map[string]string{"targetValue": "1e400", "+": "---\n"}))
	f.Add([]byte("a: &a [*a, *a]\n? {}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := parse("ours.yaml", data)
		if err != nil {
			require.True(t, strings.HasPrefix(err.Error(), "ours.yaml: "))
			require.NotContains(t, err.Error(), "\n")
			return
		}
		require.Equal(t, "ours", p.Name)
		require.True(t, p.Target >= terms.MinTarget && p.Target <= terms.MaxTarget)
		require.GreaterOrEqual(t, p.Activation, 0.0)
	})
}
