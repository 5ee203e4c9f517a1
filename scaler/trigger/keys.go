package trigger

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"gpuscaler/scaler/terms"
	"gpuscaler/shared/snapshot"
)

// Key is one key of a trigger's metadata: the only place where its name,
// default and meaning are written down.
type Key struct {
	// Name is the key. With "FromEnv" appended it means the same; the value
	// then is the one that KEDA took from the workload's environment.
	Name string
	// Default is the value it has when it is absent, or "" for none. A profile
	// comes before it.
	Default string
	// Doc is its meaning in a line.
	Doc string

	// set checks a value and puts it into the trigger. The error begins with
	// the value and says what is allowed. profile has none: it needs the set.
	set func(t *Trigger, value string) error
}

// Keys is the table of all keys, in the order shown to people. It must not be
// modified.
var Keys = table[:]

var table = [...]Key{
	{"profile", "", "a built-in or custom profile; every other key overrides it", nil},
	{"metricType", "gpu_utilization", "a metric by name, or x_<name> from another reader", setMetric},
	{"targetValue", "80", "target per replica in the metric's unit, above 0; a percentage is above 1 and at most 100, or more with aggregation sum", setTarget},
	{"targetGpuUtilization", "", "shorthand: metricType gpu_utilization and its target in one", shorthand("gpu_utilization")},
	{"targetMemoryUtilization", "", "shorthand: metricType memory_used_percent and its target in one", shorthand("memory_used_percent")},
	{"activationThreshold", "0", "active above this, in the metric's unit; no effect with a profile that never scales to zero", setActivation},
	{"aggregation", "max", "how several GPUs become one value: max, min, avg, sum, p50 to p99 (by nearest rank)", setAggregation},
	{"gpuIndex", "-1", "only this GPU, counted from 0; -1 is all", setGPUIndex},
	{"window", "15s", "the mean over 0s (the last sample), 15s, 1m or 5m", setWindow},
	{"scope", "", "workload, node or cluster; absent: workload with Kubernetes, else node", setScope},
	{"podSelector", "", "label selector of the workload's pods, instead of the ScaledObject's own target", setPodSelector},
	{"container", "", "only the GPUs of this container of each pod; absent: of all", setContainer},
	{"gpuModel", "", "only GPUs whose name has all these words: A100, L40S, or a label's value like nvidia-l4 or NVIDIA-A100-SXM4-80GB", setGPUModel},
	{"startupTimeout", "30m", "how long a pod that was never ready counts as starting, up to 24h", setStartupTimeout},
	{"targetType", "AverageValue", "AverageValue or Value, where the ScaledObject cannot be read", setTargetType},
	{"metricName", "", "the name shown in the HPA; absent: keda_gpu_metric, or keda_gpu_ and the profile's name", setMetricName},
	{"pollIntervalSeconds", "10", "heartbeat of StreamIsActive in seconds, 1 to 3600", setPollInterval},
	{keyEngine, "", "engine metrics: which engine it is, " + strings.Join(terms.Engines, ", ") + "; absent: any, by the names in its answer", setEngine},
	{keyEnginePort, "", "engine metrics: where a pod's engine tells its metrics; absent: the ports that its containers declare", setEnginePort},
	{keyEnginePath, "", "engine metrics: the path there; absent: those that engines have", setEnginePath},
	{keyQuantile, "0.95", "engine latencies: the quantile over the window, above 0 and below 1", setQuantile},
	{keySaturationWaiting, "5", "engine_saturation: how many waiting requests of a pod are 100 %; 0: they do not count", setSaturation(func(t *Trigger) *float64 { return &t.Engine.Waiting })},
	{keySaturationKVCache, "80", "engine_saturation: how full a KV cache is 100 %, in percent; 0: it does not count", setSaturation(func(t *Trigger) *float64 { return &t.Engine.KVCache })},
	{keySaturationRunning, "0", "engine_saturation: how many running requests of a pod are 100 %; 0: they do not count", setSaturation(func(t *Trigger) *float64 { return &t.Engine.Running })},
	{keyVLLMEndpoint, "", "the reference's: only port and path of this URL are used, as each pod's engine is read by itself", setEndpoint},
	{keyTritonEndpoint, "", "likewise", setEndpoint},
	{keyService, "", "service_queue: NAME[:PORT][/PATH] of a Service in the ScaledObject's own namespace, whose ready pods are read; absent: its only port or the one called metrics, and /metrics", setService},
	{keyServiceMetric, "", "service_queue: a gauge that they tell, by its own name", setServiceMetric},
	{keyServiceLabels, "", "service_queue: only the series with all these labels, like handler=reverse_proxy; absent: all", setServiceLabels},
}

// Keys that the rules between keys speak of.
const (
	keyProfile     = "profile"
	keyMetricType  = "metricType"
	keyTarget      = "targetValue"
	keyTargetGPU   = "targetGpuUtilization"
	keyTargetMem   = "targetMemoryUtilization"
	keyAggregation = "aggregation"
	keyContainer   = "container"
	keyScope       = "scope"
	keyPodSelector = "podSelector"
	keyGPUIndex    = "gpuIndex"
	keyGPUModel    = "gpuModel"
)

var (
	// sorted are the keys in the order in which they are checked, so that the
	// first error is always the same one.
	sorted = func() (keys [len(table)]Key) {
		copy(keys[:], slices.SortedFunc(slices.Values(Keys), func(a, b Key) int { return cmp.Compare(a.Name, b.Name) }))
		return keys
	}()
	// position finds a key in sorted.
	position = func() map[string]int {
		m := make(map[string]int, len(sorted))
		for i, k := range sorted {
			m[k.Name] = i
		}
		return m
	}()
	// defaults is the trigger of metadata {}, derived from the table.
	defaults = func() Trigger {
		var t Trigger
		for _, k := range Keys {
			if k.Default == "" {
				continue
			}
			if err := k.set(&t, k.Default); err != nil {
				panic(k.Name + ": " + err.Error())
			}
		}
		t.MetricName = metricNameDefault
		return t
	}()
)

func keyNames() []string {
	names := make([]string, len(Keys))
	for i, k := range Keys {
		names[i] = k.Name
	}
	return names
}

const metricNameDefault = "keda_gpu_metric"

func setMetric(t *Trigger, value string) error {
	m, ok := terms.LookupMetric(value)
	if !ok {
		return terms.UnknownMetric(value)
	}
	t.Metric = m
	return nil
}

func setTarget(t *Trigger, value string) (err error) {
	t.Target, err = terms.ParseTarget(value)
	return err
}

func shorthand(metric string) func(*Trigger, string) error {
	m, ok := snapshot.Lookup(metric)
	if !ok {
		panic("no metric " + metric)
	}
	return func(t *Trigger, value string) error {
		t.Metric = m
		return setTarget(t, value)
	}
}

func setActivation(t *Trigger, value string) (err error) {
	t.Activation, err = terms.ParseActivation(value)
	return err
}

func setAggregation(t *Trigger, value string) (err error) {
	t.Aggregation, err = terms.ParseAggregation(value)
	return err
}

func setGPUIndex(t *Trigger, value string) (err error) {
	t.GPUIndex, err = integer(value, -1, math.MaxUint16)
	return err
}

func setWindow(t *Trigger, value string) (err error) {
	t.Window, err = terms.ParseWindow(value)
	return err
}

func setScope(t *Trigger, value string) error {
	switch s := Scope(value); s {
	case ScopeWorkload, ScopeNode, ScopeCluster:
		t.Scope = s
		return nil
	}
	return terms.UnknownWord(value, []string{string(ScopeWorkload), string(ScopeNode), string(ScopeCluster)})
}

func setPodSelector(t *Trigger, value string) error {
	t.PodSelector = value
	return notBlank(value, `a label selector like "app=llm"`)
}

func setContainer(t *Trigger, value string) error {
	t.Container = value
	if err := notBlank(value, `the name of a container, like "engine"`); err != nil {
		return err
	}
	if !terms.IsLabel(value) {
		return fmt.Errorf("%s is no container name; %s", terms.Quote(value), terms.LabelAllowed)
	}
	return nil
}

func setGPUModel(t *Trigger, value string) error {
	const allowed = `words of a GPU's name, like "H200"`
	t.GPUModel = value
	if err := notBlank(value, allowed); err != nil {
		return err
	}
	if !terms.HasWord(value) {
		return fmt.Errorf("%s has no letter or digit; allowed is %s", terms.Quote(value), allowed)
	}
	return nil
}

func setStartupTimeout(t *Trigger, value string) error {
	const longest = 24 * time.Hour
	d, err := time.ParseDuration(value)
	if err == nil && d >= 0 && d <= longest {
		t.StartupTimeout = d
		return nil
	}
	reason := "is no duration"
	switch {
	case value == "":
		reason = "is empty"
	case err == nil:
		reason = "is out of range"
	}
	return fmt.Errorf(`%s %s; allowed is a duration from 0s to %s, like "30m"`, terms.Quote(value), reason, terms.Duration(longest))
}

func setTargetType(t *Trigger, value string) error {
	switch tt := TargetType(value); tt {
	case AverageValue, Value:
		t.TargetType = tt
		return nil
	}
	return terms.UnknownWord(value, []string{string(AverageValue), string(Value)})
}

// setMetricName keeps names to what a Kubernetes metric may be called, with
// room for the index that KEDA puts before it.
func setMetricName(t *Trigger, value string) error {
	const longest = 200
	ok := value != "" && len(value) <= longest
	for i := 0; i < len(value) && ok; i++ {
		c := value[i]
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_'
		ok = letter || i > 0 && (c >= '0' && c <= '9' || c == '.' || c == ':' || c == '-')
	}
	if !ok {
		reason := "is no metric name"
		if value == "" {
			reason = "is empty"
		}
		return fmt.Errorf("%s %s; allowed are 1 to %d letters, digits and _ . : -, the first a letter or _", terms.Quote(value), reason, longest)
	}
	t.MetricName = value
	return nil
}

func setPollInterval(t *Trigger, value string) error {
	seconds, err := integer(value, 1, 3600)
	t.PollInterval = time.Duration(seconds) * time.Second
	return err
}

// integer reads a whole number between two bounds, both inclusive.
func integer(value string, least, most int) (int, error) {
	n, err := strconv.Atoi(value)
	if err == nil && n >= least && n <= most {
		return n, nil
	}
	reason := "is not an integer"
	switch {
	case value == "":
		reason = "is empty"
	case err == nil || errors.Is(err, strconv.ErrRange):
		reason = "is out of range"
	}
	return 0, fmt.Errorf("%s %s; allowed is an integer from %d to %d", terms.Quote(value), reason, least, most)
}

func notBlank(value, allowed string) error {
	if strings.TrimSpace(value) != "" {
		return nil
	}
	if value == "" {
		return fmt.Errorf(`"" is empty; allowed is %s`, allowed)
	}
	return fmt.Errorf("%s is blank; allowed is %s", terms.Quote(value), allowed)
}
