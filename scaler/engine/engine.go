// Package engine reads what inference engines say of themselves: it recognizes an
// engine by the names of its metrics, turns its answers into samples that mean the same
// for every engine, and keeps means, rates and quantiles of them. It is pure: no clock,
// no transport. It must not know pods.
package engine

// Latency is one of the latencies that engines have as histograms.
type Latency int

// The latencies.
const (
	TTFT      Latency = iota // from a request's arrival to its first token
	ITL                      // between two tokens of a request
	E2E                      // from a request's arrival to its end
	QueueWait                // from a request's arrival until it is scheduled

	latencies
)

// Totals are an engine's counters since it is read: of a process that was started again,
// too, they never go back. Read-only.
type Totals struct {
	// PromptTokens, GenerationTokens and Requests (finished ones); a negative one: the
	// engine has none such.
	PromptTokens, GenerationTokens, Requests float64
	// Latencies are all requests' in seconds; nil where the engine has no such histogram.
	Latencies [latencies]*Histogram
}

// Histogram is one in Prometheus' classic form. Read-only.
type Histogram struct {
	// Bounds are the buckets' upper bounds in seconds, ascending, the last +Inf; Counts
	// are cumulative.
	Bounds, Counts []float64
	Sum            float64
}
