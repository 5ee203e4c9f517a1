package engine

import (
	"bytes"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prometheus/common/expfmt"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/scaler/terms"
)

const recordings = "../../testdata/engines"

const text = "text/plain; version=0.0.4; charset=utf-8"

func recorded(t testing.TB, name string) []byte {
	t.Helper()
	body, err := os.ReadFile(filepath.Join(recordings, name))
	require.NoError(t, err)
	return body
}

func sample(t testing.TB, body string) *Sample {
	t.Helper()
	f, err := Parse([]byte(body), text, Tables)
	require.NoError(t, err)
	s, err := f.Sample("")
	require.NoError(t, err)
	return s
}

// TestRecordings: every recording is recognized, also where an engine is asked for, and
// says the same as all others, as far as its engine says it at all.
func TestRecordings(t *testing.T) {
	all := "engine_waiting engine_running engine_kv_cache_percent engine_ttft_ms engine_itl_ms engine_e2e_ms engine_queue_wait_ms engine_prompt_token_rate engine_token_rate engine_request_rate"
	without := func(names ...string) string {
		left := all
		for _, n := range names {
			left = strings.Replace(strings.Replace(left, n+" ", "", 1), " "+n, "", 1)
		}
		return left
	}
	for file, c := range map[string]struct {
		engine, metrics string
		waiting         float64
	}{
		"vllm-0.6.txt":                 {"vllm", all, 3},
		"vllm-0.11.txt":                {"vllm", all, 4},
		"sglang-0.5.txt":               {"sglang", without("engine_queue_wait_ms"), 3},
		"tensorrt-llm-1.3.txt":         {"tensorrt-llm", all, 3},
		"triton-2.50.txt":              {"triton", "engine_waiting engine_e2e_ms engine_queue_wait_ms engine_request_rate", 5},
		"triton-tensorrt-llm-0.15.txt": {"triton", "engine_waiting engine_running engine_kv_cache_percent engine_e2e_ms engine_queue_wait_ms engine_request_rate", 3},
		"tgi-3.txt":                    {"tgi", without("engine_kv_cache_percent", "engine_ttft_ms"), 3},
		"nim-1.8.txt":                  {"nim", without("engine_queue_wait_ms"), 3},
		"lmdeploy-0.9.txt":             {"lmdeploy", all, 3},
		"llama.cpp-b4000.txt":          {"llama.cpp", "engine_waiting engine_running engine_kv_cache_percent engine_prompt_token_rate engine_token_rate", 3},
		"llama.cpp-b7000.txt":          {"llama.cpp", "engine_waiting engine_running engine_prompt_token_rate engine_token_rate", 3},
	} {
		t.Run(file, func(t *testing.T) {
			f, err := Parse(recorded(t, file), text, Tables)
			require.NoError(t, err)
			s, err := f.Sample("")
			require.NoError(t, err)
			assert.Equal(t, c.engine, s.Engine)
			assert.Equal(t, c.metrics, strings.Join(s.Metrics(), " "))
			assert.InDelta(t, c.waiting, s.gauges[waiting], 0)
			ranks := 1.0
			if file == "vllm-0.11.txt" { // two engines
				ranks = 2
			}
			is := func(want, got float64) {
				if !math.IsNaN(got) {
					assert.InDelta(t, want, got, 1)
				}
			}
			is(map[float64]float64{1: 12, 2: 22}[ranks], s.gauges[running])
			is(map[float64]float64{1: 42, 2: 61}[ranks], s.gauges[kv])
			is(20000*ranks, s.counters[prompt])
			is(8000*ranks, s.counters[generation])
			is(38*ranks, s.counters[requests])
			if h := s.latency[TTFT]; h != nil {
				assert.InDelta(t, 40*ranks, h.Count(), 0)
			}
			again, err := f.Sample(c.engine)
			require.NoError(t, err)
			assert.Equal(t, s.From, again.From)
			for _, other := range Names() {
				if other != c.engine {
					_, err := f.Sample(other)
					require.ErrorContains(t, err, "no metric of "+other+"; it has ")
				}
			}
		})
	}
	files, err := filepath.Glob(recordings + "/*.txt")
	require.NoError(t, err)
	assert.Len(t, files, 11, "a recording that no case is about")
}

// TestProtobuf: the same figures come in protobuf.
func TestProtobuf(t *testing.T) {
	body := recorded(t, "vllm-0.11.txt")
	f, err := Parse(body, text, nil)
	require.NoError(t, err)
	var b bytes.Buffer
	format := expfmt.NewFormat(expfmt.TypeProtoDelim)
	encoder := expfmt.NewEncoder(&b, format)
	for _, family := range f {
		require.NoError(t, encoder.Encode(family))
	}
	p, err := Parse(b.Bytes(), string(format), Tables)
	require.NoError(t, err)
	want, err := f.Sample("")
	require.NoError(t, err)
	got, err := p.Sample("")
	require.NoError(t, err)
	assert.Equal(t, want, got)

	_, err = Parse(append(b.Bytes(), 9, 9), string(format), Tables)
	require.ErrorContains(t, err, "no protobuf of Prometheus'")
}

// TestNoMetrics: what is no page of metrics, or of no engine, is an error that says what
// it is. Names are compared whole.
func TestNoMetrics(t *testing.T) {
	for name, c := range map[string]struct{ body, contentType, want string }{
		"empty":           {"", text, "the answer is empty"},
		"HTML":            {"\n <!DOCTYPE html><html>", "text/html", "an HTML page"},
		"HTML as text":    {"<html>502</html>", text, "an HTML page"},
		"JSON":            {`[{"iter":1}]`, "application/json", "the answer is JSON"},
		"JSON as text":    {`{"error":"no"}`, text, "the answer is JSON"},
		"prose":           {"no such page\n", text, "not in Prometheus' text format"},
		"others'":         {"go_goroutines 9\n", text, "metrics of no engine that is known (vllm, sglang, tensorrt-llm, triton, tgi, lmdeploy, llama.cpp, nim); it has go_goroutines"},
		"renamed":         {"vllm:waiting_requests 9\n", text, "it has vllm:waiting_requests"},
		"prefix":          {"vllm:num_requests_waiting_by_reason{reason=\"x\"} 9\n", text, "it has vllm:num_requests_waiting_by_reason"},
		"NaN":             {"vllm:num_requests_waiting NaN\n", text, `"vllm:num_requests_waiting" stands at NaN`},
		"infinite":        {"vllm:num_requests_waiting +Inf\n", text, `"vllm:num_requests_waiting" stands at +Inf`},
		"negative":        {"vllm:num_requests_waiting -1\n", text, `"vllm:num_requests_waiting" stands at -1`},
		"NaN of one rank": {"vllm:num_requests_waiting{engine=\"0\"} 1\nvllm:num_requests_waiting{engine=\"1\"} NaN\n", text, "stands at NaN"},
		"percent":         {"vllm:num_requests_waiting 0\nvllm:kv_cache_usage_perc 42\n", text, "stands at 4200 %"},
		"no histogram":    {"vllm:num_requests_waiting 0\nvllm:time_to_first_token_seconds 1\n", text, `"vllm:time_to_first_token_seconds" is no histogram`},
		"not cumulative": {"vllm:num_requests_waiting 0\n# TYPE vllm:time_to_first_token_seconds histogram\nvllm:time_to_first_token_seconds_bucket{le=\"1\"} 5\n" +
			"vllm:time_to_first_token_seconds_bucket{le=\"+Inf\"} 3\nvllm:time_to_first_token_seconds_count 3\nvllm:time_to_first_token_seconds_sum 3\n", text, "not cumulative"},
	} {
		t.Run(name, func(t *testing.T) {
			f, err := Parse([]byte(c.body), c.contentType, nil)
			if err == nil {
				_, err = f.Sample("")
			}
			require.ErrorContains(t, err, c.want)
		})
	}
	var many strings.Builder
	for i := range maxSeries + 1 {
		many.WriteString("a{b=\"" + strings.Repeat("x", i%7) + string(rune('a'+i%26)) + "\"} 1\n")
	}
	_, err := Parse([]byte(many.String()), text, nil)
	require.ErrorContains(t, err, "the answer has 1 metrics with 20001 series; at most 4096 with 20000 are read")
}

func TestLevel(t *testing.T) {
	f, err := Parse([]byte("# TYPE caddy_requests gauge\ncaddy_requests{handler=\"proxy\",server=\"a\"} 2\ncaddy_requests{handler=\"proxy\",server=\"b\"} 3\n"+
		"caddy_requests{handler=\"file\",server=\"a\"} 40\n# TYPE queue_total counter\nqueue_total 7\n# TYPE h histogram\nh_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 1\nbad NaN\n"), text, nil)
	require.NoError(t, err)
	for name, c := range map[string]struct {
		metric string
		labels map[string]string
		want   float64
		series int
		err    string
	}{
		"all":       {"caddy_requests", nil, 45, 3, ""},
		"label":     {"caddy_requests", map[string]string{"handler": "proxy"}, 5, 2, ""},
		"labels":    {"caddy_requests", map[string]string{"handler": "proxy", "server": "b"}, 3, 1, ""},
		"none such": {"caddy_requests", map[string]string{"handler": "none"}, 0, 0, ""},
		"counter":   {"queue_total", nil, 0, 0, `"queue_total" is a counter; allowed is a gauge`},
		"absent":    {"caddy_request", nil, 0, 0, `the answer has no metric "caddy_request"; "caddy_request" is unknown; did you mean "caddy_requests"?`},
		"histogram": {"h", nil, 0, 0, `"h" is a histogram; allowed is a gauge`},
		"NaN":       {"bad", nil, 0, 0, `"bad" stands at NaN`},
	} {
		t.Run(name, func(t *testing.T) {
			got, series, err := f.Level(c.metric, c.labels)
			if c.err != "" {
				require.ErrorContains(t, err, c.err)
				return
			}
			require.NoError(t, err)
			assert.InDelta(t, c.want, got, 0)
			assert.Equal(t, c.series, series)
		})
	}
	assert.Equal(t, `"handler=proxy,server=a", "handler=proxy,server=b", "handler=file,server=a"`, f.Labels("caddy_requests"))
}

// TestDecoderPanics: an answer on which the decoder panics is one that cannot be read.
func TestDecoderPanics(t *testing.T) {
	_, err := Parse([]byte("# TYPE a gauge\n{} 1\n"), text, Tables)
	require.ErrorContains(t, err, "its decoder fails")
}

// FuzzParse: no answer makes it panic, and what it says is finite.
func FuzzParse(f *testing.F) {
	files, err := filepath.Glob(recordings + "/*.txt")
	require.NoError(f, err)
	for _, file := range files {
		f.Add(recorded(f, filepath.Base(file)), text)
	}
	f.Add([]byte("\x03\x0a\x01a"), string(expfmt.NewFormat(expfmt.TypeProtoDelim)))
	f.Add([]byte("\xff\xff\xff\xff\xff\xff\x3f\x0a"), string(expfmt.NewFormat(expfmt.TypeProtoDelim)))
	f.Add([]byte("# TYPE a gauge\n{} 1\n"), text)
	f.Fuzz(func(t *testing.T, body []byte, contentType string) {
		families, err := Parse(body, contentType, Tables)
		if err != nil {
			return
		}
		s, err := families.Sample("")
		if err != nil {
			return
		}
		var series Series
		series.Add(0, s)
		series.Add(1e9, s)
		_, means, _ := series.Means(0, []float64{0.5, 0.99})
		for _, m := range means {
			for _, v := range m {
				require.False(t, math.IsNaN(v) || math.IsInf(v, 0), "%v", v)
			}
		}
	})
}

// TestNames: the metadata allows exactly the engines that have a table.
func TestNames(t *testing.T) { assert.Equal(t, terms.Engines, Names()) }
