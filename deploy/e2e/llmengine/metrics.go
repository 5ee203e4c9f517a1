package llmengine

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
)

// ContentType is the media type of what WriteMetrics writes.
const ContentType = "text/plain; version=0.0.4; charset=utf-8"

// WriteMetrics writes the state as vLLM does on its metrics page: in Prometheus' text format,
// with vLLM's names, labels and buckets. A cancelled request is in none of the counts of
// finished ones, as in vLLM, where only the engine's own aborts count.
func (s State) WriteMetrics(w io.Writer, model string) error {
	p := page{labels: `engine="0",model_name="` + escape.Replace(model) + `"`}
	waiting := float64(s.Waiting)
	p.family("num_requests_running", "gauge", "Number of requests in model execution batches.").
		value("", float64(s.Running))
	p.family("num_requests_waiting", "gauge", "Number of requests waiting to be processed.").
		value("", waiting)
	p.family("num_requests_waiting_by_reason", "gauge", "Number of waiting requests by reason.").
		value(`reason="capacity",`, waiting)
	p.family("kv_cache_usage_perc", "gauge", "KV-cache usage. 1 means 100 percent usage.").
		value("", float64(s.UsedBlocks)/float64(s.Blocks))
	p.family("prompt_tokens_total", "counter", "Number of prefill tokens processed.").
		value("", float64(s.Stats.PromptTokens))
	p.family("generation_tokens_total", "counter", "Number of generation tokens processed.").
		value("", float64(s.Stats.GenerationTokens))
	p.family("request_success_total", "counter", "Count of successfully processed requests.").
		value(`finished_reason="stop",`, float64(s.Stats.Finished)).
		value(`finished_reason="length",`, 0).
		value(`finished_reason="abort",`, 0)
	p.histogram("time_to_first_token_seconds", "Histogram of time to first token in seconds.", s.Stats.TimeToFirstToken)
	p.histogram("inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", s.Stats.InterTokenLatency)
	p.histogram("e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", s.Stats.Latency)
	p.histogram("request_queue_time_seconds", "Histogram of time spent in WAITING phase for request.", s.Stats.QueueTime)
	_, err := io.WriteString(w, p.text.String())
	return err
}

// escape is the escaping of a label's value.
var escape = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

// page is a metrics page in the making.
type page struct {
	labels string // that every series has
	name   string // of the current family
	text   strings.Builder
}

func (p *page) family(name, kind, help string) *page {
	p.name = "vllm:" + name
	fmt.Fprintf(&p.text, "# HELP %s %s\n# TYPE %s %s\n", p.name, help, p.name, kind)
	return p
}

// value writes one series of the family. More labels end with a comma.
func (p *page) value(labels string, v float64) *page { return p.series("", labels, v) }

func (p *page) series(suffix, labels string, v float64) *page {
	fmt.Fprintf(&p.text, "%s%s{%s%s} %s\n", p.name, suffix, labels, p.labels, number(v))
	return p
}

func (p *page) histogram(name, help string, h Histogram) {
	p.family(name, "histogram", help)
	var below uint64
	for i, n := range h.Counts {
		below += n
		bound := math.Inf(1)
		if i < len(h.Bounds) {
			bound = h.Bounds[i]
		}
		p.series("_bucket", `le="`+number(bound)+`",`, float64(below))
	}
	p.series("_count", "", float64(below))
	p.series("_sum", "", h.Sum)
}

// number writes a number as the Python client does: with a decimal point in each.
func number(v float64) string {
	if math.IsInf(v, 1) {
		return "+Inf"
	}
	text := strconv.FormatFloat(v, 'f', -1, 64)
	if !strings.Contains(text, ".") {
		text += ".0"
	}
	return text
}
