package trigger

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/profiles"
	"gpuscaler/scaler/terms"
	"gpuscaler/scaler/window"
	"gpuscaler/shared/snapshot"
)

type metadata = map[string]string

func metric(t testing.TB, name string) snapshot.Metric {
	m, ok := terms.LookupMetric(name)
	require.True(t, ok, name)
	return m
}

func TestParseDefaults(t *testing.T) {
	want := Trigger{
		Metric: metric(t, "gpu_utilization"), Target: 80, Aggregation: Max, GPUIndex: -1, Window: 15 * time.Second,
		Engine:         Engine{Quantile: 0.95, Waiting: 5, KVCache: 80},
		StartupTimeout: 30 * time.Minute, TargetType: AverageValue, MetricName: "keda_gpu_metric", PollInterval: 10 * time.Second,
	}
	for _, md := range []metadata{nil, {}, {"scalerAddress": "x:1", "enableTLS": "true", "unsafeSsl": "", "caCert": "c", "tlsClientCert": "d",
		"tlsClientKey": "e", "caCertFromEnv": "", "tlsClientKeyFromEnv": "k"}} {
		got, err := Parse(md, profiles.Builtin())
		require.NoError(t, err)
		assert.Equal(t, want, got)
	}
}

func TestParseGood(t *testing.T) {
	p95, err := ParseAggregation("p95")
	require.NoError(t, err)
	for name, c := range map[string]struct {
		md   metadata
		want func(*Trigger)
	}{
		"every key": {
			metadata{"metricType": "power_draw", "targetValue": "2.5e2", "activationThreshold": "0.5", "aggregation": "p95", "gpuIndex": "3",
				"window": "60s", "scope": "workload", "podSelector": "app in (a, b)", "container": "engine-0", "gpuModel": "H200", "startupTimeout": "1h30m",
				"targetType": "Value", "metricName": "my_metric:x.y-z", "pollIntervalSeconds": "3600"},
			func(tr *Trigger) {
				*tr = Trigger{Metric: metric(t, "power_draw"), Target: 250, Activation: .5, Aggregation: p95, GPUIndex: 3, Window: time.Minute,
					Scope: ScopeWorkload, PodSelector: "app in (a, b)", Container: "engine-0", GPUModel: "H200", StartupTimeout: 90 * time.Minute, TargetType: Value,
					MetricName: "my_metric:x.y-z", PollInterval: time.Hour, Engine: defaults.Engine}
			}},
		"custom metric":       {metadata{"metricType": "x_wear_percent"}, func(tr *Trigger) { tr.Metric = metric(t, "x_wear_percent") }},
		"from environment":    {metadata{"targetValueFromEnv": "70"}, func(tr *Trigger) { tr.Target = 70 }},
		"plain key wins":      {metadata{"targetValue": "60", "targetValueFromEnv": "70"}, func(tr *Trigger) { tr.Target = 60 }},
		"bad twin ignored":    {metadata{"targetValue": "60", "targetValueFromEnv": "80%"}, func(tr *Trigger) { tr.Target = 60 }},
		"container, no scope": {metadata{"container": "engine"}, func(tr *Trigger) { tr.Container = "engine" }},
		"gpu shorthand":       {metadata{"targetGpuUtilization": "65"}, func(tr *Trigger) { tr.Target = 65 }},
		"memory shorthand":    {metadata{"targetMemoryUtilization": "65"}, func(tr *Trigger) { tr.Metric, tr.Target = metric(t, "memory_used_percent"), 65 }},
		"no GPU index":        {metadata{"gpuIndex": "-1"}, func(*Trigger) {}},
		"last sample":         {metadata{"window": "0"}, func(tr *Trigger) { tr.Window = 0 }},
		"five minutes":        {metadata{"window": "300s"}, func(tr *Trigger) { tr.Window = 5 * time.Minute }},
		"no startup":          {metadata{"startupTimeout": "0s"}, func(tr *Trigger) { tr.StartupTimeout = 0 }},
		"selector, workload":  {metadata{"podSelector": "a=b", "scope": "workload"}, func(tr *Trigger) { tr.PodSelector, tr.Scope = "a=b", ScopeWorkload }},
		"profile": {metadata{"profile": "vllm-inference"}, func(tr *Trigger) {
			tr.Profile, tr.Metric, tr.Target, tr.Activation = "vllm-inference", metric(t, "memory_used_percent"), 80, 5
			tr.MetricName = "keda_gpu_vllm_inference"
		}},
		"profile from environment": {metadata{"profileFromEnv": "triton-inference"}, func(tr *Trigger) {
			tr.Profile, tr.Target, tr.Activation, tr.MetricName = "triton-inference", 75, 10, "keda_gpu_triton_inference"
		}},
		"profile overridden": {metadata{"profile": "batch", "metricType": "temperature", "targetValue": "60", "activationThreshold": "0", "metricName": "m"}, func(tr *Trigger) {
			tr.Profile, tr.Metric, tr.Target, tr.MetricName = "batch", metric(t, "temperature"), 60, "m"
		}},
		"shorthand over profile": {metadata{"profile": "batch", "targetGpuUtilization": "55"}, func(tr *Trigger) {
			tr.Profile, tr.Target, tr.Activation, tr.MetricName = "batch", 55, 1, "keda_gpu_batch"
		}},
		"never to zero, whatever the activation": {metadata{"profile": "training", "activationThreshold": "50"}, func(tr *Trigger) {
			tr.Profile, tr.Target, tr.Activation, tr.AlwaysActive, tr.MetricName = "training", 90, 50, true, "keda_gpu_training"
		}},
	} {
		t.Run(name, func(t *testing.T) {
			want := defaults
			c.want(&want)
			got, err := Parse(c.md, profiles.Builtin())
			require.NoError(t, err)
			assert.Equal(t, want, got)
		})
	}
}

func TestParseBad(t *testing.T) {
	names := snapshot.MetricNames()
	for _, m := range terms.EngineMetrics {
		names = append(names, m.Name)
	}
	metrics := strings.Join(append(names, terms.Queue.Name), ", ") + " and x_<name>"
	keys := "profile, metricType, targetValue, targetGpuUtilization, targetMemoryUtilization, activationThreshold, aggregation, gpuIndex, " +
		"window, scope, podSelector, container, gpuModel, startupTimeout, targetType, metricName, pollIntervalSeconds, " +
		"engine, enginePort, enginePath, quantile, saturationWaiting, saturationKVCache, saturationRunning, vllmEndpoint, tritonEndpoint, service, serviceMetric, serviceLabels"
	all := strings.Join(profiles.Builtin().Names(), ", ")
	const (
		target     = "; allowed is a finite number above 0"
		activation = "; allowed is a finite number, 0 or above"
		aggregated = "; allowed are max, min, avg, sum, p50 to p99"
		index      = "; allowed is an integer from -1 to 65535"
		poll       = "; allowed is an integer from 1 to 3600"
		windows    = "; allowed are 0s, 15s, 1m, 5m"
		startup    = `; allowed is a duration from 0s to 24h, like "30m"`
		label      = "; allowed are 1 to 63 lower-case letters, digits and dashes, not beginning or ending with a dash"
		metricName = "; allowed are 1 to 200 letters, digits and _ . : -, the first a letter or _"
	)
	long := strings.Repeat("9", 100)
	for _, c := range []struct {
		md   metadata
		want string
	}{
		{metadata{"targetValue": "80%"}, `targetValue: "80%" is not a number` + target},
		{metadata{"targetValue": ""}, `targetValue: "" is empty` + target},
		{metadata{"targetValue": " 80"}, `targetValue: " 80" is not a number` + target},
		{metadata{"targetValue": "80\n"}, `targetValue: "80\n" is not a number` + target},
		{metadata{"targetValue": "NaN"}, `targetValue: "NaN" is not a number` + target},
		{metadata{"targetValue": "Inf"}, `targetValue: "Inf" is not a number` + target},
		{metadata{"targetValue": "-inf"}, `targetValue: "-inf" is not a number` + target},
		{metadata{"targetValue": "1e400"}, `targetValue: "1e400" is too large` + target},
		{metadata{"targetValue": "-1e400"}, `targetValue: "-1e400" is too large` + target},
		{metadata{"targetValue": "1e-400"}, `targetValue: "1e-400" is not above 0` + target},
		{metadata{"targetValue": "0"}, `targetValue: "0" is not above 0` + target},
		{metadata{"targetValue": "-1"}, `targetValue: "-1" is not above 0` + target},
		{metadata{"targetValue": "0.0001"}, `targetValue: "0.0001" is below 0.001, the smallest target that reaches the HPA` + target},
		{metadata{"targetValue": "1e300"}, `targetValue: "1e300" is above 1e+15, more than any metric can have` + target},
		{metadata{"targetValue": "0x10"}, `targetValue: "0x10" is not a number` + target},
		{metadata{"targetValue": "1_000"}, `targetValue: "1_000" is not a number` + target},
		{metadata{"targetValue": "1e"}, `targetValue: "1e" is not a number` + target},
		{metadata{"targetValue": "+-1"}, `targetValue: "+-1" is not a number` + target},
		{metadata{"targetValue": "8\x00\xff"}, `targetValue: "8\x00\xff" is not a number` + target},
		{metadata{"targetValue": long + "%"}, `targetValue: "` + long[:64] + `"... is not a number` + target},
		{metadata{"targetValueFromEnv": "80%"}, `targetValueFromEnv: "80%" is not a number` + target},
		{metadata{"targetValue": "", "targetValueFromEnv": "80"}, `targetValue: "" is empty` + target},
		{metadata{"targetGpuUtilization": "0"}, `targetGpuUtilization: "0" is not above 0` + target},
		{metadata{"targetMemoryUtilization": "x"}, `targetMemoryUtilization: "x" is not a number` + target},
		{metadata{"activationThreshold": "-1"}, `activationThreshold: "-1" is below 0` + activation},
		{metadata{"activationThreshold": "nan"}, `activationThreshold: "nan" is not a number` + activation},
		{metadata{"activationThreshold": ""}, `activationThreshold: "" is empty` + activation},
		{metadata{"activationThreshold": "1e999"}, `activationThreshold: "1e999" is too large` + activation},

		{metadata{"aggregation": "median"}, `aggregation: "median" is unknown` + aggregated},
		{metadata{"aggregation": "MAX"}, `aggregation: "MAX" is unknown` + aggregated},
		{metadata{"aggregation": "p49"}, `aggregation: "p49" is unknown` + aggregated},
		{metadata{"aggregation": "p100"}, `aggregation: "p100" is unknown` + aggregated},
		{metadata{"aggregation": ""}, `aggregation: "" is empty` + aggregated},
		{metadata{"metricType": "gpu_utilisation"}, `metricType: "gpu_utilisation" is unknown; did you mean "gpu_utilization"? allowed are ` + metrics},
		{metadata{"metricType": "memory_used"}, `metricType: "memory_used" is unknown; did you mean "memory_used_percent"? allowed are ` + metrics},
		{metadata{"metricType": "GPU_UTILIZATION"}, `metricType: "GPU_UTILIZATION" is unknown; did you mean "gpu_utilization"? allowed are ` + metrics},
		{metadata{"metricType": "queue"}, `metricType: "queue" is unknown; allowed are ` + metrics},
		{metadata{"metricType": "x_"}, `metricType: "x_" is unknown; allowed are ` + metrics},
		{metadata{"metricType": ""}, `metricType: "" is empty; allowed are ` + metrics},
		{metadata{"metricType": "triton_queue_time"}, `metricType: "triton_queue_time" is unknown; allowed are ` + metrics},

		{metadata{"targetVallue": "80"}, `targetVallue: unknown key; did you mean "targetValue"? allowed are ` + keys},
		{metadata{"targetvalueFromEnv": "80"}, `targetvalueFromEnv: unknown key; did you mean "targetValueFromEnv"? allowed are ` + keys},
		{metadata{"targetValueFromEnvFromEnv": "80"}, `targetValueFromEnvFromEnv: unknown key; did you mean "targetValueFromEnv"? allowed are ` + keys},
		{metadata{"color": "secret"}, `color: unknown key; allowed are ` + keys},
		{metadata{"": ""}, `"": unknown key; allowed are ` + keys},
		{metadata{"a\nb": "1"}, `"a\nb": unknown key; allowed are ` + keys},
		{metadata{long: "1"}, `"` + long[:64] + `"...: unknown key; allowed are ` + keys},
		{metadata{"profile": "vllm"}, `profile: "vllm" is unknown; did you mean "llm"? allowed are ` + all},
		{metadata{"profile": "trainning"}, `profile: "trainning" is unknown; did you mean "training"? allowed are ` + all},
		{metadata{"profile": ""}, `profile: "" is empty; allowed are ` + all},

		{metadata{"gpuIndex": "-2"}, `gpuIndex: "-2" is out of range` + index},
		{metadata{"gpuIndex": "65536"}, `gpuIndex: "65536" is out of range` + index},
		{metadata{"gpuIndex": "99999999999999999999"}, `gpuIndex: "99999999999999999999" is out of range` + index},
		{metadata{"gpuIndex": "1.0"}, `gpuIndex: "1.0" is not an integer` + index},
		{metadata{"gpuIndex": ""}, `gpuIndex: "" is empty` + index},
		{metadata{"pollIntervalSeconds": "0"}, `pollIntervalSeconds: "0" is out of range` + poll},
		{metadata{"pollIntervalSeconds": "3601"}, `pollIntervalSeconds: "3601" is out of range` + poll},
		{metadata{"pollIntervalSeconds": "10s"}, `pollIntervalSeconds: "10s" is not an integer` + poll},
		{metadata{"window": "30s"}, `window: "30s" is no window` + windows},
		{metadata{"window": "15"}, `window: "15" is no window` + windows},
		{metadata{"window": "-15s"}, `window: "-15s" is no window` + windows},
		{metadata{"window": ""}, `window: "" is empty` + windows},
		{metadata{"startupTimeout": "30"}, `startupTimeout: "30" is no duration` + startup},
		{metadata{"startupTimeout": "-1s"}, `startupTimeout: "-1s" is out of range` + startup},
		{metadata{"startupTimeout": "24h1s"}, `startupTimeout: "24h1s" is out of range` + startup},
		{metadata{"startupTimeout": ""}, `startupTimeout: "" is empty` + startup},
		{metadata{"scope": "Node"}, `scope: "Node" is unknown; did you mean "node"? allowed are workload, node, cluster`},
		{metadata{"scope": "pod"}, `scope: "pod" is unknown; allowed are workload, node, cluster`},
		{metadata{"scope": ""}, `scope: "" is empty; allowed are workload, node, cluster`},
		{metadata{"targetType": "Utilization"}, `targetType: "Utilization" is unknown; allowed are AverageValue, Value`},
		{metadata{"targetType": "averageValue"}, `targetType: "averageValue" is unknown; did you mean "AverageValue"? allowed are AverageValue, Value`},
		{metadata{"podSelector": ""}, `podSelector: "" is empty; allowed is a label selector like "app=llm"`},
		{metadata{"podSelector": "  "}, `podSelector: "  " is blank; allowed is a label selector like "app=llm"`},
		{metadata{"gpuModel": ""}, `gpuModel: "" is empty; allowed is words of a GPU's name, like "H200"`},
		{metadata{"gpuModel": "--"}, `gpuModel: "--" has no letter or digit; allowed is words of a GPU's name, like "H200"`},
		{metadata{"container": ""}, `container: "" is empty; allowed is the name of a container, like "engine"`},
		{metadata{"containerFromEnv": " "}, `containerFromEnv: " " is blank; allowed is the name of a container, like "engine"`},
		{metadata{"container": "Engine"}, `container: "Engine" is no container name` + label},
		{metadata{"container": "engine-"}, `container: "engine-" is no container name` + label},
		{metadata{"container": "a.b"}, `container: "a.b" is no container name` + label},
		{metadata{"container": strings.Repeat("a", 64)}, `container: "` + strings.Repeat("a", 64) + `" is no container name` + label},
		{metadata{"metricName": ""}, `metricName: "" is empty` + metricName},
		{metadata{"metricName": "1abc"}, `metricName: "1abc" is no metric name` + metricName},
		{metadata{"metricName": "a b"}, `metricName: "a b" is no metric name` + metricName},
		{metadata{"metricName": strings.Repeat("a", 201)}, `metricName: "` + strings.Repeat("a", 64) + `"... is no metric name` + metricName},

		{metadata{"targetGpuUtilization": "80", "targetMemoryUtilization": "70"}, `targetGpuUtilization: "80" contradicts targetMemoryUtilization "70"; only one of the two is allowed`},
		{metadata{"targetGpuUtilization": "80", "metricType": "temperature"}, `targetGpuUtilization: "80" contradicts metricType "temperature"; only one of the two is allowed`},
		{metadata{"targetGpuUtilization": "80", "targetValueFromEnv": "70"}, `targetGpuUtilization: "80" contradicts targetValueFromEnv "70"; only one of the two is allowed`},
		{metadata{"targetMemoryUtilization": "80", "metricType": "temperature"}, `targetMemoryUtilization: "80" contradicts metricType "temperature"; only one of the two is allowed`},
		{metadata{"targetMemoryUtilization": "80", "targetValue": "70"}, `targetMemoryUtilization: "80" contradicts targetValue "70"; only one of the two is allowed`},
		{metadata{"podSelector": "a=b", "scope": "node"}, `podSelector: "a=b" contradicts scope "node"; with it only scope "workload" is allowed`},
		{metadata{"podSelector": "a=b", "scopeFromEnv": "cluster"}, `podSelector: "a=b" contradicts scopeFromEnv "cluster"; with it only scope "workload" is allowed`},
		{metadata{"container": "a", "scope": "node"}, `container: "a" contradicts scope "node"; with it only scope "workload" is allowed`},
		{metadata{"containerFromEnv": "a", "podSelector": "a=b", "scope": "cluster"}, `containerFromEnv: "a" contradicts scope "cluster"; with it only scope "workload" is allowed`},

		// Of several errors, always the same one.
		{metadata{"zzz": "1", "yyy": "1", "aggregation": "x", "targetValue": "x"}, `yyy: unknown key; allowed are ` + keys},
		{metadata{"profile": "x", "aggregation": "x", "targetValue": "x"}, `aggregation: "x" is unknown` + aggregated},
		{metadata{"targetGpuUtilization": "80", "targetMemoryUtilization": "70", "window": "x"}, `window: "x" is no window` + windows},
		{metadata{"targetGpuUtilization": "0.8", "targetValue": "0.7"}, `targetGpuUtilization: "0.8" contradicts targetValue "0.7"; only one of the two is allowed`},
		{metadata{"targetValue": strings.Repeat("1", 1<<20-11)}, `metadata: 1048576 bytes; at most 65536 are allowed`},
	} {
		_, err := Parse(c.md, profiles.Builtin())
		var e *Error
		if assert.ErrorAs(t, err, &e, "%.100v", c.md) {
			assert.Equal(t, c.want, e.Error())
			if e.Key != "metadata" {
				assert.Equal(t, c.md[e.Key], e.Value)
			}
		}
	}
}

func TestParseTooManyEntries(t *testing.T) {
	md := metadata{}
	for i := range 129 {
		md[fmt.Sprint("k", i)] = ""
	}
	_, err := Parse(md, profiles.Builtin())
	require.EqualError(t, err, "metadata: 129 entries; at most 128 are allowed")
}

func TestParseWithoutProfiles(t *testing.T) {
	_, err := Parse(metadata{"profile": "batch"}, nil)
	require.EqualError(t, err, `profile: "batch" is unknown; allowed are `)
}

// The good path allocates the trigger, and the name of a profile's metric.
func TestParseAllocates(t *testing.T) {
	md := sixKeys()
	assert.LessOrEqual(t, testing.AllocsPerRun(100, func() { _, _ = Parse(md, profiles.Builtin()) }), 3.0)
}

func TestKeysAreComplete(t *testing.T) {
	for _, k := range Keys {
		assert.NotEmpty(t, k.Doc, k.Name)
		assert.NotContains(t, k.Doc, "\n", k.Name)
		assert.Equal(t, k.Name == keyProfile, k.set == nil, k.Name)
	}
	for _, name := range []string{keyProfile, keyMetricType, keyTarget, keyTargetGPU, keyTargetMem, keyAggregation, keyScope, keyContainer, keyPodSelector} {
		assert.Contains(t, position, name)
	}
}

func sixKeys() metadata {
	return metadata{"scalerAddress": "gpuscaler.gpuscaler.svc:6000", "profile": "vllm-inference", "targetValue": "70",
		"activationThreshold": "5", "aggregation": "p95", "window": "1m"}
}

func BenchmarkParse(b *testing.B) {
	for name, md := range map[string]metadata{"empty": {}, "six": sixKeys()} {
		b.Run(name, func(b *testing.B) {
			set := profiles.Builtin()
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Parse(md, set); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func FuzzParse(f *testing.F) {
	f.Add("targetValue", "80", "profile", "batch", "aggregation", "p95")
	f.Add("targetValueFromEnv", "1e400", "window", "60s", "gpuIndex", "-1")
	f.Add("targetGpuUtilization", "80", "podSelector", "a=b", "scope", "node")
	f.Add("metricName", "keda_x", "startupTimeout", "9999h", "pollIntervalSeconds", "0")
	f.Add("metricType", "x_wear", "activationThreshold", "-0", "targetType", "Value")
	f.Add("profile", "distributed-training", "metricType", "dram_activity", "aggregation", "sum")
	f.Add("targetValue", "100.0004", "container", "a", "scope", "cluster")
	f.Add("scalerAddress", "", "gpuModel", "H200", "targetMemoryUtilization", "0x1p-2")
	f.Fuzz(func(t *testing.T, k1, v1, k2, v2, k3, v3 string) {
		md := metadata{k1: v1, k2: v2, k3: v3}
		tr, err := Parse(md, profiles.Builtin())
		again, errAgain := Parse(md, profiles.Builtin())
		require.Equal(t, tr, again)
		require.Equal(t, err, errAgain)
		if err != nil {
			var e *Error
			require.True(t, errors.As(err, &e))
			require.Zero(t, tr)
			require.Less(t, len(err.Error()), 4096)
			for _, r := range err.Error() {
				require.False(t, r < ' ' || r == 0x7f || r == 0xfffd, "%q", err.Error())
			}
			return
		}
		require.True(t, tr.Target >= 0.001 && tr.Target <= 1e15)
		if tr.Metric.Percentage() {
			require.True(t, tr.Target > 1 && (tr.Target <= 100 || tr.Aggregation == Sum), tr.Target)
		}
		inHPA, err := strconv.ParseFloat(fmt.Sprintf("%.3f", tr.Target), 64)
		require.NoError(t, err)
		require.Equal(t, inHPA, tr.Target)
		require.True(t, tr.Activation >= 0 && !math.IsInf(tr.Activation, 0) && !math.Signbit(tr.Activation))
		require.True(t, tr.GPUIndex >= -1 && tr.GPUIndex <= 65535)
		require.GreaterOrEqual(t, window.Index(tr.Window), 0)
		require.True(t, tr.StartupTimeout >= 0 && tr.StartupTimeout <= 24*time.Hour)
		require.True(t, tr.PollInterval >= time.Second && tr.PollInterval <= time.Hour)
		require.Contains(t, []Scope{"", ScopeWorkload, ScopeNode, ScopeCluster}, tr.Scope)
		require.Contains(t, []TargetType{AverageValue, Value}, tr.TargetType)
		require.False(t, (tr.PodSelector != "" || tr.Container != "") && (tr.Scope == ScopeNode || tr.Scope == ScopeCluster))
		require.NotEmpty(t, tr.MetricName)
		_, known := snapshot.Lookup(tr.Metric.Name)
		require.True(t, known)
		a, err := ParseAggregation(tr.Aggregation.String())
		require.NoError(t, err)
		require.Equal(t, tr.Aggregation, a)
	})
}
