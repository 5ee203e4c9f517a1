package fleet

import (
	"cmp"
	"maps"
	"slices"
	"time"
)

// EngineKey names an engine that is read: the pod, by its UID, and how. It is comparable.
type EngineKey struct {
	UID string
	// Engine is which one it has to be, Port and Path where its metrics are; "" and 0
	// leave it to who reads.
	Engine string
	Port   int
	Path   string
}

// Compare orders keys.
func (k EngineKey) Compare(other EngineKey) int {
	return cmp.Or(cmp.Compare(k.UID, other.UID), cmp.Compare(k.Engine, other.Engine), cmp.Compare(k.Port, other.Port), cmp.Compare(k.Path, other.Path))
}

// Engine is what is known of the inference engine in a pod. Read-only.
type Engine struct {
	// Name is which engine it is, as package engine has it ("vllm"); "" while no answer
	// was recognized.
	Name string
	// Address is where it is read: "10.0.3.7:8000/metrics"; "" before it is known.
	Address string
	// Heard is when its newest answer came that could be used; zero: never.
	Heard time.Time
	// Error is why it cannot be read now, or "".
	Error string
	// Metrics are those that it has, without quantiles, also where there is no mean of
	// them yet.
	Metrics []string
	// Readings are the means of the metrics, by terms.Reading. With an error they are the last
	// there were. No window reaches back beyond Pod.Begin.
	Readings Readings
	// From are the names of its own metrics that are used. Peers do not tell of them.
	From []string
	// Totals are its counters since it is read. Peers do not tell of them.
	Totals EngineTotals
	// Latencies are those of all requests since it is read, by position in Measured; nil where
	// it has none such. Peers do not tell of them.
	Latencies [len(Measured)]*Histogram
}

// Histogram is one in Prometheus' classic form, in seconds: the buckets' upper bounds, the
// last +Inf, with how many are below each. Read-only.
type Histogram struct {
	Bounds, Counts []float64
	Sum            float64
}

// Measured are the latencies of an engine.
var Measured = [...]string{TTFT: "time_to_first_token", ITL: "inter_token_latency", E2E: "request_latency", QueueWait: "queue_time"}

// Positions in Measured.
const (
	TTFT = iota
	ITL
	E2E
	QueueWait
)

// EngineTotals are an engine's counters since it is read, by position in Counted; a
// negative one: it has none such. They do not go back when its process starts again.
type EngineTotals [len(Counted)]float64

// Counted are the counters of an engine.
var Counted = [...]string{PromptTokens: "prompt_tokens", GenerationTokens: "generation_tokens", Requests: "requests"}

// Positions in Counted.
const (
	PromptTokens = iota
	GenerationTokens
	Requests // that have ended
)

// Has says whether the engine has a metric, given without its quantile.
func (e *Engine) Has(metric string) bool { return slices.Contains(e.Metrics, metric) }

// Engine is one by its key; nil where it is not read.
func (n *Node) Engine(key EngineKey) *Engine { return n.engines[key] }

// Engines are those that are read. Read-only.
func (n *Node) Engines() map[EngineKey]*Engine { return n.engines }

// SetEngines takes over what is known of all engines that are read on this node.
func (l *Local) SetEngines(all map[EngineKey]*Engine, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.engines = maps.Clone(all)
	l.publish(now)
}
