package engine

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	dto "github.com/prometheus/client_model/go"

	"gpuscaler/scaler/terms"
)

// Positions of a sample's gauges and counters.
const (
	waiting = iota
	running
	kv
	gauges
)

const (
	prompt = iota
	generation
	requests
	counters
)

// Names of the metrics by those positions.
var (
	gaugeNames   = [gauges]string{waiting: "engine_waiting", running: "engine_running", kv: "engine_kv_cache_percent"}
	counterNames = [counters]string{prompt: "engine_prompt_token_rate", generation: "engine_token_rate", requests: "engine_request_rate"}
	latencyNames = [latencies]string{TTFT: "engine_ttft_ms", ITL: "engine_itl_ms", E2E: "engine_e2e_ms", QueueWait: "engine_queue_wait_ms"}
)

// Sample is what one answer of an engine says. Read-only.
type Sample struct {
	// Engine is which one it is.
	Engine string
	// From are the engine's own names that were used, sorted.
	From []string

	gauges   [gauges]float64   // NaN: it has none such
	counters [counters]float64 // NaN likewise
	latency  [latencies]*Histogram
}

// Metrics are the metrics that the engine has, by their own names, without quantiles, in
// the table's order.
func (s *Sample) Metrics() (names []string) {
	for i, v := range s.gauges {
		if !math.IsNaN(v) {
			names = append(names, gaugeNames[i])
		}
	}
	for i, h := range s.latency {
		if h != nil {
			names = append(names, latencyNames[i])
		}
	}
	for i, v := range s.counters {
		if !math.IsNaN(v) {
			names = append(names, counterNames[i])
		}
	}
	return names
}

// Sample recognizes the engine by its metrics' names: the one that is wanted, or any
// (""). The error says what was found instead, or which value makes no sense.
func (f Families) Sample(want string) (*Sample, error) {
	for i := range tables {
		t := &tables[i]
		if want != "" && t.name != want {
			continue
		}
		if slices.ContainsFunc(slices.Concat(t.waiting, t.running, t.kv), func(s source) bool { return f.finds(s) }) {
			return t.sample(f)
		}
	}
	if want != "" {
		return nil, fmt.Errorf("the answer has no metric of %s; %s", want, f.have(""))
	}
	return nil, fmt.Errorf("the answer has metrics of no engine that is known (%s); %s", strings.Join(Names(), ", "), f.have(""))
}

func (t *table) sample(f Families) (*Sample, error) {
	s := &Sample{Engine: t.name}
	var errs []error
	for i, sources := range [gauges][]source{t.waiting, t.running, t.kv} {
		combine := sum
		if i == kv {
			combine = largest
		}
		s.gauges[i] = f.read(sources, combine, s, &errs)
	}
	if v := s.gauges[kv]; v > 100 {
		s.gauges[kv] = 100
		if v > 101 { // beyond what rounding does
			errs = append(errs, fmt.Errorf("the KV cache in use stands at %v %%; allowed is up to 100", v))
		}
	}
	for i, sources := range [counters][]source{t.prompt, t.generation, t.requests} {
		s.counters[i] = f.read(sources, sum, s, &errs)
	}
	for i, sources := range t.latency {
		s.latency[i] = f.histogram(sources, s, &errs)
	}
	slices.Sort(s.From)
	return s, errors.Join(errs...)
}

func (f Families) finds(s source) bool {
	family := f[s.name]
	return family != nil && slices.ContainsFunc(family.GetMetric(), s.selects)
}

// selects says whether a series is one of the source's.
func (s source) selects(m *dto.Metric) bool {
	return s.label == "" || has(m, map[string]string{s.label: s.value})
}

// read is the first of these sources that there is; NaN without any.
func (f Families) read(sources []source, combine func(values []float64) float64, into *Sample, errs *[]error) float64 {
	for _, source := range sources {
		if !f.finds(source) {
			continue
		}
		into.From = append(into.From, source.name)
		values, err := f.values(source)
		if err != nil {
			*errs = append(*errs, err)
			return math.NaN()
		}
		return combine(values)
	}
	return math.NaN()
}

// values are those of a source's series, each rank's once.
func (f Families) values(s source) (values []float64, err error) {
	family := f[s.name]
	at := map[string]int{} // of what is no repetition
	for _, m := range family.GetMetric() {
		if !s.selects(m) {
			continue
		}
		v, ok := number(family, m)
		if h := m.GetHistogram(); !ok && h != nil {
			if v, ok = h.GetSampleSum(), true; s.value == countOf {
				v = count(h)
			}
		}
		if q := m.GetSummary(); !ok && q != nil {
			v, ok = q.GetSampleSum(), true
		}
		if !ok || !sensible(v) {
			return nil, fmt.Errorf("%s stands at %v; allowed is a number from 0 to %g", terms.Quote(s.name), v, maxValue)
		}
		if s.scale != 0 {
			v *= s.scale
		}
		key := identity(m)
		if i, again := at[key]; again {
			values[i] = max(values[i], v)
			continue
		}
		at[key] = len(values)
		values = append(values, v)
	}
	return values, nil
}

// identity is a series' labels without those of ranks that repeat it.
func identity(m *dto.Metric) string {
	var b strings.Builder
	for _, l := range m.GetLabel() {
		if !slices.Contains(repeated, l.GetName()) {
			b.WriteString(l.GetName() + "\x00" + l.GetValue() + "\x00")
		}
	}
	return b.String()
}

func sum(values []float64) (total float64) {
	for _, v := range values {
		total += v
	}
	return total
}

func largest(values []float64) float64 { return slices.Max(values) }
