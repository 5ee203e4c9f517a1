package llmengine

import (
	"bytes"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// shape is a metrics page without values, and without what is about other ranks.
func shape(page string) []string {
	var lines []string
	value := regexp.MustCompile(` [^ ]+$`)
	for line := range strings.Lines(page) {
		line = strings.TrimSpace(line)
		if strings.Contains(line, `engine="1"`) || !strings.Contains(line, "vllm:") {
			continue
		}
		if !strings.HasPrefix(line, "#") {
			line = value.ReplaceAllString(line, "")
		}
		lines = append(lines, line)
	}
	return lines
}

// TestPageIsVLLMs: names, types, help, labels and buckets are those of the page in testdata.
func TestPageIsVLLMs(t *testing.T) {
	recorded, err := os.ReadFile("../../../testdata/engines/vllm-0.11.txt")
	require.NoError(t, err)
	var page strings.Builder
	require.NoError(t, engine(t, Default()).State().WriteMetrics(&page, "acme/llm-8b"))
	assert.Equal(t, shape(string(recorded)), shape(page.String()))
}

// TestPageHasTheState: a parser reads the engine's figures from the page.
func TestPageHasTheState(t *testing.T) {
	c := small()
	c.MaxRunning = 2
	e := engine(t, c)
	for range 5 {
		submit(t, e, 160, 30)
	}
	e.Advance(time.Second)
	s := e.State()
	require.Equal(t, 2, s.Running)
	require.Equal(t, 1, s.Waiting)

	var page bytes.Buffer
	require.NoError(t, s.WriteMetrics(&page, "a\"b\\c\nd"))
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(&page)
	require.NoError(t, err)
	require.Len(t, families, 11)
	first := families["vllm:num_requests_running"].GetMetric()[0]
	assert.Equal(t, "a\"b\\c\nd", first.GetLabel()[1].GetValue())
	assert.InDelta(t, 2, first.GetGauge().GetValue(), 0)
	assert.InDelta(t, 1, families["vllm:num_requests_waiting"].GetMetric()[0].GetGauge().GetValue(), 0)
	assert.InDelta(t, float64(s.UsedBlocks)/3750, families["vllm:kv_cache_usage_perc"].GetMetric()[0].GetGauge().GetValue(), 1e-12)
	assert.InDelta(t, 4*160, families["vllm:prompt_tokens_total"].GetMetric()[0].GetCounter().GetValue(), 0)
	assert.InDelta(t, 2, families["vllm:request_success_total"].GetMetric()[0].GetCounter().GetValue(), 0)
	latency := families["vllm:e2e_request_latency_seconds"].GetMetric()[0].GetHistogram()
	assert.Equal(t, uint64(2), latency.GetSampleCount())
	assert.InDelta(t, s.Stats.Latency.Sum, latency.GetSampleSum(), 1e-12)
	assert.Equal(t, s.Stats.TimeToFirstToken.Count(), families["vllm:time_to_first_token_seconds"].GetMetric()[0].GetHistogram().GetSampleCount())
}

// TestStateDoesNotChange: a state that was taken stays as it was.
func TestStateDoesNotChange(t *testing.T) {
	e := engine(t, small())
	submit(t, e, 10, 10)
	s := e.State()
	e.Advance(time.Minute)
	assert.Zero(t, s.Stats.TimeToFirstToken.Count())
	assert.Equal(t, uint64(1), e.State().Stats.TimeToFirstToken.Count())
}
