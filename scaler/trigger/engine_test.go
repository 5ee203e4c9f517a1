package trigger

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/profiles"
)

// TestParseEngine: how engines are read, by our keys and by the reference's.
func TestParseEngine(t *testing.T) {
	usual := Engine{Quantile: 0.95, Waiting: 5, KVCache: 80}
	for name, c := range map[string]struct {
		md   metadata
		want func(*Engine)
	}{
		"nothing":           {metadata{}, func(*Engine) {}},
		"all keys":          {metadata{"engine": "sglang", "enginePort": "30000", "enginePath": "/m"}, func(e *Engine) { e.Name, e.Port, e.Path = "sglang", 30000, "/m" }},
		"quantile":          {metadata{"metricType": "engine_ttft_ms", "quantile": "0.5"}, func(e *Engine) { e.Quantile = 0.5 }},
		"saturation":        {metadata{"saturationWaiting": "0", "saturationKVCache": "90", "saturationRunning": "64"}, func(e *Engine) { e.Waiting, e.KVCache, e.Running = 0, 90, 64 }},
		"the reference's":   {metadata{"vllmEndpoint": "http://vllm.shop:8000/metrics"}, func(e *Engine) { e.Port, e.Path, e.Ignored = 8000, "/metrics", "http://vllm.shop" }},
		"without port":      {metadata{"tritonEndpoint": "https://[::1]"}, func(e *Engine) { e.Ignored = "https://::1" }},
		"from the workload": {metadata{"enginePortFromEnv": "1"}, func(e *Engine) { e.Port = 1 }},
	} {
		if c.md["metricType"] == "" {
			c.md["metricType"] = "engine_saturation"
		}
		got, err := Parse(c.md, profiles.Builtin())
		require.NoError(t, err, name)
		want := usual
		c.want(&want)
		assert.Equal(t, want, got.Engine, name)
	}
}

// TestParseEngineNames: the reference's names are those of ours.
func TestParseEngineNames(t *testing.T) {
	for alias, name := range map[string]string{
		"vllm_queue_depth": "engine_waiting", "vllm_kv_cache_usage": "engine_kv_cache_percent",
		"triton_queue_wait_ms": "engine_queue_wait_ms", "triton_request_rate": "engine_request_rate",
	} {
		got, err := Parse(metadata{"metricType": alias}, profiles.Builtin())
		require.NoError(t, err)
		assert.Equal(t, metric(t, name), got.Metric)
	}
}

// TestParseEngineBad: no key is silently without effect, and no value that is none is
// taken.
func TestParseEngineBad(t *testing.T) {
	const engines = "allowed are vllm, sglang, tensorrt-llm, triton, tgi, lmdeploy, llama.cpp, nim"
	for _, c := range []struct {
		md   metadata
		want string
	}{
		{metadata{"engine": "vlm"}, `engine: "vlm" is unknown; did you mean "vllm"? ` + engines},
		{metadata{"engine": ""}, `engine: "" is empty; ` + engines},
		{metadata{"enginePort": "0"}, `enginePort: "0" is out of range; allowed is an integer from 1 to 65535`},
		{metadata{"enginePort": "http"}, `enginePort: "http" is not an integer; allowed is an integer from 1 to 65535`},
		{metadata{"enginePath": "metrics"}, `enginePath: "metrics" does not begin with /; allowed is a path like "/metrics"`},
		{metadata{"enginePath": "/a?b=c"}, `enginePath: "/a?b=c" is no path`},
		{metadata{"enginePath": "/a\r\nX: y"}, `enginePath: "/a\r\nX: y" is no path`},
		{metadata{"metricType": "engine_ttft_ms", "quantile": "1"}, `quantile: "1" is no quantile; allowed is a number above 0 and below 1, like 0.95`},
		{metadata{"metricType": "engine_ttft_ms", "quantile": "p95"}, `quantile: "p95" is no quantile`},
		{metadata{"saturationWaiting": "-1"}, `saturationWaiting: "-1" is below 0`},
		{metadata{"saturationWaiting": "0", "saturationKVCache": "0"}, `saturationWaiting: 0 leaves nothing that counts`},
		{metadata{"vllmEndpoint": "vllm:8000"}, `vllmEndpoint: "vllm:8000" is no URL; allowed is a URL like "http://vllm:8000/metrics"`},
		{metadata{"vllmEndpoint": "file:///etc/passwd"}, `vllmEndpoint: "file:///etc/passwd" is no URL`},
		{metadata{"vllmEndpoint": "http://x:99999/"}, `vllmEndpoint: "http://x:99999/" has no port from 1 to 65535`},
		{metadata{"vllmEndpoint": "http://x:1", "enginePort": "2"}, `enginePort: "2" contradicts vllmEndpoint "http://x:1"; only one of the two is allowed`},
		{metadata{"vllmEndpoint": "http://x:1", "tritonEndpoint": "http://x:1"}, `tritonEndpoint: "http://x:1" contradicts vllmEndpoint`},

		{metadata{"metricType": "gpu_utilization", "enginePort": "1"}, `enginePort: "1" has no effect on gpu_utilization; it goes with metricType engine_waiting`},
		{metadata{"metricType": "engine_waiting", "quantile": "0.5"}, `quantile: "0.5" has no effect on engine_waiting, which is no latency`},
		{metadata{"metricType": "engine_waiting", "saturationRunning": "5"}, `saturationRunning: "5" has no effect on engine_waiting; it goes with metricType engine_saturation`},
		{metadata{"gpuIndex": "0"}, `gpuIndex: "0" is about GPUs, and has no effect on engine_saturation, which is a pod's`},
		{metadata{"gpuModel": "H200"}, `gpuModel: "H200" is about GPUs`},
		{metadata{"container": "engine"}, `container: "engine" is about GPUs`},
		{metadata{"scope": "node"}, `scope: "node" contradicts metricType engine_saturation: engines are read of a workload's pods; allowed is "workload"`},
		{metadata{"scope": "cluster"}, `scope: "cluster" contradicts metricType engine_saturation`},
		{metadata{"metricType": "engine_kv_cache_percent", "targetValue": "0.8"}, `targetValue: "0.8" is 1 % or less, and engine_kv_cache_percent is in percent; did you mean "80"?`},
		{metadata{"metricType": "engine_kv_cache_percent", "targetValue": "120"}, `targetValue: "120" is above 100 %`},
	} {
		if c.md["metricType"] == "" {
			c.md["metricType"] = "engine_saturation"
		}
		_, err := Parse(c.md, profiles.Builtin())
		require.Error(t, err, "%v", c.md)
		assert.True(t, strings.HasPrefix(err.Error(), c.want), "%v\nis   %s\nwant %s", c.md, err, c.want)
	}
	_, err := Parse(metadata{"metricType": "engine_saturation", "targetValue": "150"}, profiles.Builtin())
	assert.NoError(t, err, "a queue may be longer than what counts as 100 %%")
}
