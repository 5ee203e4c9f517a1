package trigger

import (
	"fmt"
	"net/url"
	"slices"
	"strconv"

	"gpuscaler/scaler/terms"
)

// Engine is what a trigger says of the inference engines in its workload's pods. It is
// comparable.
type Engine struct {
	// Name is which engine it has to be, one of terms.Engines; "" is any.
	Name string
	// Port and Path are where each pod's engine tells its metrics; 0 and "" leave it to
	// what the pod declares.
	Port int
	Path string
	// Quantile is that of latencies, above 0 and below 1.
	Quantile float64
	// Waiting and Running, in requests, and KVCache, in percent, are what counts as 100 % of
	// engine_saturation; 0: that part does not count.
	Waiting, KVCache, Running float64
	// Ignored is the part of an endpoint's URL that is not used, for people: its scheme
	// and host. "" is none.
	Ignored string
}

// Keys of engine metrics.
const (
	keyEngine            = "engine"
	keyEnginePort        = "enginePort"
	keyEnginePath        = "enginePath"
	keyQuantile          = "quantile"
	keySaturationWaiting = "saturationWaiting"
	keySaturationKVCache = "saturationKVCache"
	keySaturationRunning = "saturationRunning"
	keyVLLMEndpoint      = "vllmEndpoint"
	keyTritonEndpoint    = "tritonEndpoint"
)

func setEngine(t *Trigger, value string) error {
	if !slices.Contains(terms.Engines, value) {
		return terms.UnknownWord(value, terms.Engines)
	}
	t.Engine.Name = value
	return nil
}

func setEnginePort(t *Trigger, value string) (err error) {
	t.Engine.Port, err = integer(value, 1, 65535)
	return err
}

func setEnginePath(t *Trigger, value string) error {
	t.Engine.Path = value
	return terms.CheckPath(value)
}

func setQuantile(t *Trigger, value string) error {
	q, err := terms.ParseActivation(value) // a plain number, 0 or above
	if err != nil || !(q > 0 && q < 1) {
		return fmt.Errorf("%s is no quantile; allowed is a number above 0 and below 1, like 0.95", terms.Quote(value))
	}
	t.Engine.Quantile = q
	return nil
}

func setSaturation(field func(*Trigger) *float64) func(*Trigger, string) error {
	return func(t *Trigger, value string) (err error) {
		*field(t), err = terms.ParseActivation(value)
		return err
	}
}

// setEndpoint takes port and path of a URL. The reference scaler reads all pods through
// one; each pod is read by itself here.
func setEndpoint(t *Trigger, value string) error {
	const allowed = `allowed is a URL like "http://vllm:8000/metrics"`
	u, err := url.Parse(value)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return fmt.Errorf("%s is no URL; %s", terms.Quote(value), allowed)
	}
	t.Engine.Port, t.Engine.Path = 0, ""
	if u.Port() != "" {
		if t.Engine.Port, err = strconv.Atoi(u.Port()); err != nil || t.Engine.Port < 1 || t.Engine.Port > 65535 {
			return fmt.Errorf("%s has no port from 1 to 65535; %s", terms.Quote(value), allowed)
		}
	}
	if path := u.EscapedPath(); path != "" && path != "/" {
		if err := terms.CheckPath(path); err != nil {
			return err
		}
		t.Engine.Path = path
	}
	t.Engine.Ignored = u.Scheme + "://" + u.Hostname()
	return nil
}

// engineOnly are the keys that mean something with engine metrics only, withoutEngine
// those that mean nothing with them; each with the metrics, for messages.
var engineOnly, withoutEngine = positions(keyEngine, keyEnginePort, keyEnginePath, keyQuantile, keySaturationWaiting, keySaturationKVCache, keySaturationRunning, keyTritonEndpoint, keyVLLMEndpoint),
	positions(keyContainer, keyGPUIndex, keyGPUModel)

func positions(keys ...string) (at []int) {
	for _, key := range keys {
		at = append(at, position[key])
	}
	return at
}

// engineContradiction refuses keys that would have no effect, and scopes in which no
// engine is read.
func engineContradiction(found *[len(table)]given, t *Trigger) error {
	refuse := func(g *given, reason string) error {
		return &Error{Key: g.key, Value: g.value, FromEnv: g.fromEnv(), Reason: fmt.Sprintf("%s %s", terms.Quote(g.value), reason)}
	}
	if !terms.IsEngine(t.Metric) {
		for _, at := range engineOnly {
			if g := &found[at]; g.key != "" {
				return refuse(g, fmt.Sprintf("has no effect on %s; it goes with metricType engine_waiting, engine_saturation and the like, or a profile of these (llm)", t.Metric.Name))
			}
		}
		return nil
	}
	for _, at := range withoutEngine {
		if g := &found[at]; g.key != "" {
			return refuse(g, fmt.Sprintf("is about GPUs, and has no effect on %s, which is a pod's", t.Metric.Name))
		}
	}
	if t.Scope == ScopeNode || t.Scope == ScopeCluster {
		return refuse(&found[position[keyScope]], fmt.Sprintf("contradicts metricType %s: engines are read of a workload's pods; allowed is %q", t.Metric.Name, ScopeWorkload))
	}
	if !terms.IsLatency(t.Metric) {
		if g := &found[position[keyQuantile]]; g.key != "" {
			return refuse(g, fmt.Sprintf("has no effect on %s, which is no latency", t.Metric.Name))
		}
	}
	if t.Metric.Name != terms.Saturation {
		for _, key := range [...]string{keySaturationKVCache, keySaturationRunning, keySaturationWaiting} {
			if g := &found[position[key]]; g.key != "" {
				return refuse(g, fmt.Sprintf("has no effect on %s; it goes with metricType %s", t.Metric.Name, terms.Saturation))
			}
		}
		return nil
	}
	if t.Engine.Waiting+t.Engine.KVCache+t.Engine.Running == 0 {
		return &Error{Key: keySaturationWaiting, Value: "0", Reason: "0 leaves nothing that counts; one of saturationWaiting, saturationKVCache and saturationRunning has to be above 0"}
	}
	return nil
}
