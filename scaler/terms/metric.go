package terms

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"gpuscaler/shared/snapshot"
)

// NoRequest is the value of a latency over a window in which no request says anything
// of it.
const NoRequest = -1

// Bounds of engine metrics: what no engine has.
const (
	mostRequests = 1e9
	mostPercent  = 1e6 // of engine_saturation, which has no limit by itself
	mostMillis   = 1e9
	mostRate     = 1e9
)

// EngineMetrics is the table of the metrics that inference engines have, in the order
// shown to people. Which of an engine's own figures they are says package engine. It must
// not be modified.
var EngineMetrics = []snapshot.Metric{
	{Name: "engine_waiting", Unit: "requests", Max: mostRequests, Sums: true, Source: "requests that wait in the engine"},
	{Name: "engine_running", Unit: "requests", Max: mostRequests, Sums: true, Source: "requests that the engine works on"},
	{Name: "engine_kv_cache_percent", Unit: "%", Max: 100, Source: "the KV cache in use; of several ranks the fullest"},
	{Name: Saturation, Unit: "%", Max: mostPercent, Source: "the largest of waiting / saturationWaiting, KV cache / saturationKVCache and running / saturationRunning"},
	{Name: "engine_ttft_ms", Unit: "ms", Min: NoRequest, Max: mostMillis, Source: "time to first token: the quantile over the window"},
	{Name: "engine_itl_ms", Unit: "ms", Min: NoRequest, Max: mostMillis, Source: "time between two tokens: the quantile over the window"},
	{Name: "engine_e2e_ms", Unit: "ms", Min: NoRequest, Max: mostMillis, Source: "time of a whole request: the quantile over the window"},
	{Name: "engine_queue_wait_ms", Unit: "ms", Min: NoRequest, Max: mostMillis, Source: "time in the engine's queue: the quantile over the window; of Triton the mean"},
	{Name: "engine_request_rate", Unit: "requests/s", Max: mostRate, Sums: true, Source: "finished requests"},
	{Name: "engine_token_rate", Unit: "tokens/s", Max: mostRate, Sums: true, Source: "generated tokens"},
	{Name: "engine_prompt_token_rate", Unit: "tokens/s", Max: mostRate, Sums: true, Source: "prompt tokens"},
}

// Saturation is the metric that several figures of an engine make up.
const Saturation = "engine_saturation"

// aliases are the names that the published reference scaler has for engine metrics.
var aliases = map[string]string{
	"vllm_queue_depth":     "engine_waiting",
	"vllm_kv_cache_usage":  "engine_kv_cache_percent",
	"triton_queue_wait_ms": "engine_queue_wait_ms",
	"triton_request_rate":  "engine_request_rate",
}

// Queue is the metric that is none of a pod's, but of a Service in front of the workload.
var Queue = snapshot.Metric{Name: "service_queue", Unit: "requests", Max: mostRequests, Sums: true, Source: "any metric of a Service in front of the workload, added up over its ready pods"}

// IsQueue says whether a metric is Queue.
func IsQueue(m snapshot.Metric) bool { return m.Name == Queue.Name }

const enginePrefix = "engine_"

// IsEngine says whether a metric is one of EngineMetrics: of a pod's engine, and of no
// device.
func IsEngine(m snapshot.Metric) bool { return strings.HasPrefix(m.Name, enginePrefix) }

// IsLatency says whether a metric is a latency, which is one for each quantile.
func IsLatency(m snapshot.Metric) bool { return IsEngine(m) && m.Unit == "ms" }

// LookupMetric finds a metric by the name that a person writes: one of a device (see
// snapshot.Lookup), of an engine, the reference's name for one of these, or Queue.
func LookupMetric(name string) (snapshot.Metric, bool) {
	if m, ok := snapshot.Lookup(name); ok {
		return m, true
	}
	if own, ok := aliases[name]; ok {
		name = own
	}
	if i := slices.IndexFunc(EngineMetrics, func(m snapshot.Metric) bool { return m.Name == name }); i >= 0 {
		return EngineMetrics[i], true
	}
	if name == Queue.Name {
		return Queue, true
	}
	return snapshot.Metric{}, false
}

// UnknownMetric says that there is no metric of a name, and which there are.
func UnknownMetric(name string) error {
	names := snapshot.MetricNames()
	for i := range EngineMetrics {
		names = append(names, EngineMetrics[i].Name)
	}
	names = append(names, Queue.Name)
	return fmt.Errorf("%w and x_<name>", UnknownWord(name, names))
}

// maxPath is how long a path of a page of metrics may be, in bytes.
const maxPath = 256

// CheckPath says why a path is none that can be read, or nil.
func CheckPath(path string) error {
	const allowed = `allowed is a path like "/metrics", of at most 256 letters, digits and any of / . _ - ~ : %`
	reason := ""
	switch {
	case path == "":
		return fmt.Errorf(`"" is empty; %s`, allowed)
	case path[0] != '/':
		reason = "does not begin with /"
	case len(path) > maxPath:
		reason = "is too long"
	}
	for i := 0; i < len(path) && reason == ""; i++ {
		c := path[i]
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || isDigit(c)
		if !letter && !strings.ContainsRune("/._-~:%", rune(c)) {
			reason = "is no path"
		}
	}
	if reason == "" {
		return nil
	}
	return fmt.Errorf("%s %s; %s", Quote(path), reason, allowed)
}

// Engines are the inference engines that are read, as the metadata has them.
var Engines = []string{"vllm", "sglang", "tensorrt-llm", "triton", "tgi", "lmdeploy", "llama.cpp", "nim"}

// Reading names a metric among an engine's readings: its own name, and of a latency,
// which is one for each quantile that is asked for, with it: "engine_ttft_ms/0.95". A
// quantile of 0 is none.
func Reading(metric string, quantile float64) string {
	if quantile == 0 {
		return metric
	}
	return metric + "/" + strconv.FormatFloat(quantile, 'g', -1, 64)
}
