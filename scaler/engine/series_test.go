package engine

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/scaler/terms"
	"gpuscaler/scaler/window"
)

// page is what a small engine answers: waiting, running, finished requests, and how many
// first tokens came within 100 ms, within 1 s, and later.
func page(waiting, running, finished int, ttft ...int) string {
	a, b, c := ttft[0], ttft[0]+ttft[1], ttft[0]+ttft[1]+ttft[2]
	return fmt.Sprintf("vllm:num_requests_waiting %d\nvllm:num_requests_running %d\n# TYPE vllm:request_success_total counter\nvllm:request_success_total %d\n"+
		"# TYPE vllm:time_to_first_token_seconds histogram\nvllm:time_to_first_token_seconds_bucket{le=\"0.1\"} %d\nvllm:time_to_first_token_seconds_bucket{le=\"1\"} %d\n"+
		"vllm:time_to_first_token_seconds_bucket{le=\"+Inf\"} %d\nvllm:time_to_first_token_seconds_sum %d\nvllm:time_to_first_token_seconds_count %d\n",
		waiting, running, finished, a, b, c, c, c)
}

// never is before every reading.
const never = time.Duration(math.MinInt64)

// means are those of a series by name.
func means(s *Series, from time.Duration, quantiles ...float64) (map[string]window.Means, map[string]window.Coverage) {
	names, all, coverage := s.Means(from, quantiles)
	m, c := map[string]window.Means{}, map[string]window.Coverage{}
	for i, name := range names {
		m[name], c[name] = all[i], coverage[i]
	}
	return m, c
}

func TestMeans(t *testing.T) {
	var s Series
	// A request a second for a minute: first tokens within 100 ms; then 30 s of two a
	// second, all of them late.
	second, requests, fast, slow := 0, 0, 0, 0
	add := func(waiting int) {
		s.Add(time.Duration(second)*time.Second, sample(t, page(waiting, 4, requests, fast, 0, slow)))
		second++
	}
	add(0)
	m, _ := means(&s, never, 0.5)
	assert.Equal(t, map[string]window.Means{"engine_waiting": {}, "engine_running": {4, 4, 4, 4}}, m, "a rate needs two readings, and so does a quantile")
	assert.Equal(t, []string{"engine_waiting", "engine_running", "engine_ttft_ms", "engine_request_rate"}, s.Metrics())
	for range 60 {
		requests++
		fast++
		add(0)
	}
	m, c := means(&s, never, 0.5)
	assert.Equal(t, window.Means{1, 1, 1, 1}, m["engine_request_rate"])
	assert.Equal(t, window.Means{50, 50, 50, 50}, m["engine_ttft_ms/0.5"], "half of the bucket")
	assert.Equal(t, window.Coverage{0, 15 * time.Second, time.Minute, time.Minute}, c["engine_ttft_ms/0.5"])
	for range 30 {
		requests += 2
		slow += 2
		add(10)
	}
	m, _ = means(&s, never, 0.5, 0.25)
	assert.Equal(t, window.Means{10, 10, 5, 300. / 91}, m["engine_waiting"])
	assert.Equal(t, window.Means{2, 2, 1.5, 120. / 90}, m["engine_request_rate"])
	assert.Equal(t, []float64{1000, 1000, 1000}, []float64{m["engine_ttft_ms/0.5"][0], m["engine_ttft_ms/0.5"][1], m["engine_ttft_ms/0.5"][2]}, "what is beyond the last bound counts as that")
	assert.InDelta(t, 75, m["engine_ttft_ms/0.25"][2], 1e-9, "of 30 fast ones and 60 slow ones")

	// Nothing of before a moment: the pod was not ready.
	m, c = means(&s, 80*time.Second, 0.25)
	assert.Equal(t, window.Means{1000, 1000, 1000, 1000}, m["engine_ttft_ms/0.25"])
	assert.Equal(t, window.Coverage{0, 10 * time.Second, 10 * time.Second, 10 * time.Second}, c["engine_ttft_ms/0.25"])
	assert.Equal(t, window.Means{10, 10, 10, 10}, m["engine_waiting"])
	m, _ = means(&s, 90*time.Second, 0.25)
	assert.Empty(t, m["engine_request_rate"])

	// Nothing happens: the latency is that of no request.
	for range 60 {
		add(0)
	}
	m, _ = means(&s, never, 0.5)
	assert.Equal(t, []float64{terms.NoRequest, terms.NoRequest, terms.NoRequest}, []float64{m["engine_ttft_ms/0.5"][0], m["engine_ttft_ms/0.5"][1], m["engine_ttft_ms/0.5"][2]})
	assert.NotEqual(t, float64(terms.NoRequest), m["engine_ttft_ms/0.5"][3])
	assert.Equal(t, Totals{PromptTokens: -1, GenerationTokens: -1, Requests: 120, Latencies: s.Totals().Latencies}, s.Totals())
	assert.Equal(t, []float64{60, 60, 120}, s.Totals().Latencies[TTFT].Counts)
}

// A process that was started again has all counters at 0: no rate is negative, no
// latency spans it, and the totals go on.
func TestRestart(t *testing.T) {
	var s Series
	s.Add(0, sample(t, page(0, 1, 100, 100, 0, 0)))
	s.Add(time.Second, sample(t, page(0, 1, 110, 110, 0, 0)))
	s.Add(2*time.Second, sample(t, page(0, 1, 3, 0, 0, 3)))
	m, _ := means(&s, never, 0.5)
	assert.NotContains(t, m, "engine_request_rate")
	assert.NotContains(t, m, "engine_ttft_ms/0.5")
	assert.Contains(t, s.Metrics(), "engine_ttft_ms", "the engine has it")
	s.Add(3*time.Second, sample(t, page(0, 1, 5, 0, 0, 5)))
	m, _ = means(&s, never, 0.5)
	assert.Equal(t, window.Means{2, 2, 2, 2}, m["engine_request_rate"])
	assert.Equal(t, window.Means{1000, 1000, 1000, 1000}, m["engine_ttft_ms/0.5"])
	assert.InDelta(t, 10+3+2, s.Totals().Requests, 0)
	assert.Equal(t, []float64{10, 10, 15}, s.Totals().Latencies[TTFT].Counts)
}

// Triton says how long all requests waited, and no distribution: each quantile is the mean.
func TestMeanLatency(t *testing.T) {
	var s Series
	for i := range 3 {
		s.Add(time.Duration(i)*time.Second, sample(t, fmt.Sprintf("nv_inference_pending_request_count 0\n# TYPE nv_inference_request_success counter\n"+
			"nv_inference_request_success %d\n# TYPE nv_inference_queue_duration_us counter\nnv_inference_queue_duration_us %d\n", 10*i, 500_000*i)))
	}
	m, _ := means(&s, never, 0.95)
	assert.Equal(t, window.Means{50, 50, 50, 50}, m["engine_queue_wait_ms/0.95"])
}

func TestQuantile(t *testing.T) {
	inf := math.Inf(1)
	h := func(bounds []float64, counts ...float64) *Histogram {
		return &Histogram{Bounds: bounds, Counts: counts, Sum: 6}
	}
	for name, c := range map[string]struct {
		h    *Histogram
		q    float64
		want float64
		ok   bool
	}{
		"within":           {h([]float64{1, 2, inf}, 0, 4, 4), .5, 1.5, true},
		"first":            {h([]float64{1, 2, inf}, 4, 4, 4), .25, .25, true},
		"beyond":           {h([]float64{1, 2, inf}, 0, 0, 4), .5, 2, true},
		"empty bucket":     {h([]float64{1, 2, 4, inf}, 2, 2, 4, 4), .5, 1, true},
		"nothing":          {h([]float64{1, inf}, 0, 0), .5, 0, false},
		"mean":             {h([]float64{inf}, 3), .99, 2, true},
		"not above 0":      {h([]float64{0, 1, inf}, 4, 4, 4), .5, 0, true},
		"of no event's 99": {h([]float64{inf}, 0), .99, 0, false},
	} {
		got, ok := c.h.quantile(c.q)
		assert.Equal(t, c.ok, ok, name)
		assert.InDelta(t, c.want, got, 1e-9, name)
	}
}

// TestSeriesIsSound: whatever an engine does, restarts and gaps included, no rate is
// negative and each quantile is terms.NoRequest or within the buckets, and coverage within its window.
func TestSeriesIsSound(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var s Series
		at, requests, ttft := time.Duration(0), 0, [3]int{}
		for range r.IntN(400) {
			at += time.Duration(1+r.IntN(3000)) * time.Millisecond
			switch r.IntN(60) {
			case 0:
				requests, ttft = 0, [3]int{}
			case 1:
				at += 6 * time.Minute
			}
			for range r.IntN(3) {
				requests++
				ttft[r.IntN(3)]++
			}
			s.Add(at, sample(t, page(r.IntN(9), r.IntN(9), requests, ttft[:]...)))
			from := never
			if r.IntN(2) == 0 {
				from = at - time.Duration(r.IntN(400))*time.Second
			}
			names, all, coverage := s.Means(from, []float64{.5, .99})
			for i, name := range names {
				for w, v := range all[i] {
					require.False(t, math.IsNaN(v) || v > 1e6 || (v < 0 && v != terms.NoRequest), "%s: %v", name, v)
					if name == "engine_ttft_ms/0.5" || name == "engine_ttft_ms/0.99" {
						require.LessOrEqual(t, v, 1000.001)
					}
					require.LessOrEqual(t, coverage[i][w], window.Windows[w], name)
					require.GreaterOrEqual(t, coverage[i][w], time.Duration(0), name)
				}
			}
			require.LessOrEqual(t, len(s.latency[TTFT].states), 303)
		}
	}
}

func BenchmarkReading(b *testing.B) {
	body := recorded(b, "vllm-0.11.txt")
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	var s Series
	for i := range b.N {
		f, err := Parse(body, text, Tables)
		require.NoError(b, err)
		x, err := f.Sample("")
		require.NoError(b, err)
		s.Add(time.Duration(i)*time.Second, x)
		s.Means(0, []float64{.95})
	}
}
