package engine

// table says where one engine has what. A new engine is one more entry of tables, and
// its recording in testdata/engines. Names are in order of preference: an engine's new
// ones before the old.
type table struct {
	name string
	// Gauges and counters, all of which are added up over models and data-parallel ranks,
	// but for the share of the KV cache in use, of which the largest counts.
	waiting, running, kv         []source
	prompt, generation, requests []source
	// latency are histograms, or a counter of time with one of events for the mean.
	latency [latencies][]source
	// ports are its own; paths where its metrics are.
	ports []int
	path  string
	// hint says how to have it tell its metrics, where it does not by itself.
	hint string
}

// source is a metric of an engine.
type source struct {
	name string
	// label and value select the series; "" is all.
	label, value string
	// scale makes it the unit that is used: requests, tokens, %, seconds; 0 is 1.
	scale float64
	// by is the counter of events that a counter of time is divided by.
	by string
}

func named(names ...string) (all []source) {
	for _, name := range names {
		all = append(all, source{name: name})
	}
	return all
}

// ratio is a share from 0 to 1, in percent.
func ratio(names ...string) (all []source) {
	for _, name := range names {
		all = append(all, source{name: name, scale: 100})
	}
	return all
}

// repeated are labels of ranks that all have the same requests, or the same cache.
// Data-parallel ranks have others each.
var repeated = []string{"tp_rank", "pp_rank", "moe_ep_rank", "pid"}

// tables are the engines, in the order in which an answer is compared with them: those
// whose names have a prefix first.
var tables = []table{
	{
		// vllm-project/vllm, vllm/v1/metrics/loggers.py: names and buckets; before 0.9
		// gpu_cache_usage_perc, before 0.11 time_per_output_token_seconds alone.
		name:    "vllm",
		waiting: named("vllm:num_requests_waiting"), running: named("vllm:num_requests_running"),
		kv:         ratio("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"),
		prompt:     named("vllm:prompt_tokens_total"),
		generation: named("vllm:generation_tokens_total"),
		requests:   named("vllm:request_success_total"),
		latency: [latencies][]source{
			TTFT:      named("vllm:time_to_first_token_seconds"),
			ITL:       named("vllm:inter_token_latency_seconds", "vllm:time_per_output_token_seconds"),
			E2E:       named("vllm:e2e_request_latency_seconds"),
			QueueWait: named("vllm:request_queue_time_seconds"),
		},
		ports: []int{8000}, path: "/metrics",
	},
	{
		// sgl-project/sglang, python/sglang/srt/metrics/collector.py: SchedulerMetricsCollector
		// and TokenizerMetricsCollector.
		name:    "sglang",
		waiting: named("sglang:num_queue_reqs"), running: named("sglang:num_running_reqs"),
		kv:         ratio("sglang:token_usage"),
		prompt:     named("sglang:prompt_tokens_total"),
		generation: named("sglang:generation_tokens_total"),
		requests:   named("sglang:num_requests_total"),
		latency: [latencies][]source{
			TTFT:      named("sglang:time_to_first_token_seconds"),
			ITL:       named("sglang:inter_token_latency_seconds", "sglang:time_per_output_token_seconds"),
			E2E:       named("sglang:e2e_request_latency_seconds"),
			QueueWait: named("sglang:queue_time_seconds"),
		},
		ports: []int{30000}, path: "/metrics", hint: "SGLang has metrics with --enable-metrics only",
	},
	{
		// NVIDIA/TensorRT-LLM, tensorrt_llm/metrics/collector.py.
		name:    "tensorrt-llm",
		waiting: named("trtllm_num_requests_waiting"), running: named("trtllm_num_requests_running"),
		kv:         ratio("trtllm_kv_cache_utilization"),
		prompt:     named("trtllm_prompt_tokens_total"),
		generation: named("trtllm_generation_tokens_total"),
		requests:   named("trtllm_request_success_total"),
		latency: [latencies][]source{
			TTFT:      named("trtllm_time_to_first_token_seconds"),
			ITL:       named("trtllm_time_per_output_token_seconds"),
			E2E:       named("trtllm_e2e_request_latency_seconds"),
			QueueWait: named("trtllm_request_queue_time_seconds"),
		},
		ports: []int{8000}, path: "/prometheus/metrics", hint: "trtllm-serve has them at /prometheus/metrics, with return_perf_metrics",
	},
	{
		// triton-inference-server/server, docs/user_guide/metrics.md; its TRT-LLM backend's
		// are custom metrics of triton-inference-server/tensorrtllm_backend (README, "Triton
		// Metrics"). An ensemble's requests count with those of its parts: the answer does
		// not say what is one. Both times are of successful requests and of failed ones.
		name:     "triton",
		waiting:  []source{{name: "nv_trt_llm_request_metrics", label: "request_type", value: "waiting"}, {name: "nv_inference_pending_request_count"}},
		running:  []source{{name: "nv_trt_llm_request_metrics", label: "request_type", value: "scheduled"}},
		kv:       []source{{name: "nv_trt_llm_kv_cache_block_metrics", label: "kv_cache_block_type", value: "fraction", scale: 100}},
		requests: named("nv_inference_request_success"),
		latency: [latencies][]source{
			E2E:       {{name: "nv_inference_request_duration_us", scale: 1e-6, by: "nv_inference_request_success"}},
			QueueWait: {{name: "nv_inference_queue_duration_us", scale: 1e-6, by: "nv_inference_request_success"}},
		},
		ports: []int{8002}, path: "/metrics",
	},
	{
		// huggingface/text-generation-inference, docs/source/reference/metrics.md: counters
		// without _total, and tokens as sums of histograms.
		name:    "tgi",
		waiting: named("tgi_queue_size"), running: named("tgi_batch_current_size"),
		prompt:     named("tgi_request_input_length"),
		generation: named("tgi_request_generated_tokens"),
		requests:   named("tgi_request_success", "tgi_request_count"),
		latency: [latencies][]source{
			ITL:       named("tgi_request_mean_time_per_token_duration"),
			E2E:       named("tgi_request_duration"),
			QueueWait: named("tgi_request_queue_duration"),
		},
		ports: []int{80, 3000}, path: "/metrics",
	},
	{
		// InternLM/lmdeploy, lmdeploy/metrics/loggers.py.
		name:    "lmdeploy",
		waiting: named("lmdeploy:num_requests_waiting"), running: named("lmdeploy:num_requests_running"),
		kv:         ratio("lmdeploy:gpu_cache_usage_perc"),
		prompt:     named("lmdeploy:prompt_tokens_total"),
		generation: named("lmdeploy:generation_tokens_total"),
		requests:   []source{{name: "lmdeploy:e2e_request_latency_seconds", value: countOf}},
		latency: [latencies][]source{
			TTFT:      named("lmdeploy:time_to_first_token_seconds"),
			ITL:       named("lmdeploy:inter_token_latency_seconds", "lmdeploy:time_per_output_token_seconds"),
			E2E:       named("lmdeploy:e2e_request_latency_seconds"),
			QueueWait: named("lmdeploy:request_queue_time_seconds"),
		},
		ports: []int{23333}, path: "/metrics", hint: "LMDeploy has metrics with --enable-metrics only",
	},
	{
		// ggml-org/llama.cpp, tools/server/README.md, "GET /metrics": since 2025 without a
		// share of the KV cache.
		name:    "llama.cpp",
		waiting: named("llamacpp:requests_deferred"), running: named("llamacpp:requests_processing"),
		kv:         ratio("llamacpp:kv_cache_usage_ratio"),
		prompt:     named("llamacpp:prompt_tokens_total"),
		generation: named("llamacpp:tokens_predicted_total"),
		ports:      []int{8080}, path: "/metrics", hint: "llama.cpp's server has metrics with --metrics only",
	},
	{
		// docs.nvidia.com/nim/large-language-models/latest/observability.html. Newer ones have
		// vLLM's own names.
		name:    "nim",
		waiting: named("num_requests_waiting"), running: named("num_requests_running"),
		kv:         ratio("gpu_cache_usage_perc"),
		prompt:     named("prompt_tokens_total"),
		generation: named("generation_tokens_total"),
		requests:   named("request_success_total", "request_finish_total"),
		latency: [latencies][]source{
			TTFT: named("time_to_first_token_seconds"),
			ITL:  named("time_per_output_token_seconds"),
			E2E:  named("e2e_request_latency_seconds"),
		},
		ports: []int{8000}, path: "/v1/metrics",
	},
}

// countOf as a source's value: how many events a histogram has, and not their sum.
const countOf = "count"

// Names are those of all engines, as the metadata has them.
func Names() (names []string) {
	for i := range tables {
		names = append(names, tables[i].name)
	}
	return names
}

// Paths are where engines have their metrics, each once, the usual one first; of one
// engine where it has, "" is any.
func Paths(engine string) (paths []string) {
	for i := range tables {
		if t := &tables[i]; engine == "" || t.name == engine {
			paths = appendNew(paths, t.path)
		}
	}
	return paths
}

// Ports are an engine's own, where its pod declares none; nil of "".
func Ports(engine string) []int {
	for i := range tables {
		if tables[i].name == engine {
			return tables[i].ports
		}
	}
	return nil
}

// Hint says how to have an engine tell its metrics; of "" what any may need.
func Hint(engine string) string {
	hint := ""
	for i := range tables {
		t := &tables[i]
		switch {
		case t.hint == "":
		case t.name == engine:
			return t.hint
		case engine == "" && hint == "":
			hint = t.hint
		case engine == "":
			hint += "; " + t.hint
		}
	}
	return hint
}

func appendNew(all []string, one string) []string {
	for _, have := range all {
		if have == one {
			return all
		}
	}
	return append(all, one)
}
