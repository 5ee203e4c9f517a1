// Package exporter shows what is known to Prometheus. All of a scrape is made from one
// picture of the node and one reading of the meter, so that its sums are right. It must
// not know what a trigger means, and never makes anyone wait.
package exporter

import (
	"maps"
	"net/http"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"gpuscaler/scaler/attribution"
	"gpuscaler/scaler/evaluate"
	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/meter"
)

const (
	// answersKept is for how long a trigger is shown after it was asked for last.
	// A poll and a half of KEDA's: another scaler may be asked meanwhile, and know better.
	answersKept = 90 * time.Second
	// maxTriggers are shown: whoever reaches KEDA's port can make names up. Those of known
	// workloads go first.
	maxTriggers = 1024
)

// Triggers is where it is known what KEDA was told.
type Triggers interface {
	Answers(since time.Time) []evaluate.Answer
	Calls(tell func(call, code string, count uint64))
}

// Workloads is where it is known how reading them goes.
type Workloads interface {
	Health(now time.Time) (known, failing int, oldest time.Duration)
}

// Options say what is shown.
type Options struct {
	Node, Version string
	Fleet         *fleet.Fleet
	Meter         *meter.Meter // nil where the fleet has no node of its own
	Triggers      Triggers
	Workloads     Workloads // nil: there are none
	// StaleAfter is the age from which a reading is no data, AttributionStaleAfter that for
	// what the kubelet said.
	StaleAfter, AttributionStaleAfter time.Duration
}

// Handler serves /metrics.
func Handler(o Options) http.Handler {
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(&exporter{o, describe(o.Node), time.Now()}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4, ErrorHandling: promhttp.ContinueOnError})
}

// exporter implements [prometheus.Collector]. It is unchecked: what it sends depends on
// what there is.
type exporter struct {
	Options
	*descs
	began time.Time
}

// Describe implements [prometheus.Collector].
func (*exporter) Describe(chan<- *prometheus.Desc) {}

// Collect implements [prometheus.Collector].
func (e *exporter) Collect(to chan<- prometheus.Metric) {
	now := time.Now()
	s := scrape{exporter: e, to: to, now: now}
	s.gauge(e.build, 1, e.Version, runtime.Version())
	if e.Meter != nil {
		s.ofNode(e.Fleet.Own(), e.Meter.Read())
	}
	s.triggers()
	s.peers()
	if e.Workloads != nil {
		known, failing, oldest := e.Workloads.Health(now)
		s.gauge(e.workloads, float64(known), "known")
		s.gauge(e.workloads, float64(failing), "failing")
		if known > 0 {
			s.gauge(e.workloadAge, oldest.Seconds())
		}
	}
}

// scrape is one of them.
type scrape struct {
	*exporter
	to  chan<- prometheus.Metric
	now time.Time
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func (s *scrape) fresh(at time.Time) bool { return s.now.Sub(at) <= s.StaleAfter }

// whole is a total in its unit.
func whole(total int64, q quantity) float64 { return float64(total) / fleet.Fine * q.scale }

// ofNode is all of this node: devices, pods, workloads and readers.
func (s *scrape) ofNode(n *fleet.Node, m *meter.Reading) {
	devices := make(map[string]*fleet.Device, len(n.Devices))
	for _, d := range n.Devices {
		devices[d.ID] = d
		s.device(d)
	}
	if n.PodsKnown && !n.Allocated.IsZero() && s.now.Sub(n.Allocated) <= s.AttributionStaleAfter { // as the meter has it
		s.pods(n, devices)
	}
	for _, d := range m.Devices {
		s.totals(d)
		if devices[d.Device.ID] == nil {
			devices[d.Device.ID] = d.Device // for the sums of pods that held it
		}
	}
	for _, p := range m.Pods {
		d := devices[p.Device]
		if d == nil {
			d = &fleet.Device{ID: p.Device, Index: -1}
		}
		of := s.podLabels(p.Pod, d)
		for _, i := range podIntegrals {
			if p.Has[i] {
				s.counterOf(s.podIntegrals[i], whole(p.Totals[i], integrals[i]), of)
			}
		}
	}
	for _, w := range m.Workloads {
		labels := []string{w.Namespace, w.Kind, w.Name}
		if w.Has[fleet.Power] {
			s.counter(s.energy, whole(w.Totals[fleet.Power], integrals[fleet.Power]), labels...)
		}
		if w.HasIdle {
			s.counter(s.idleEnergy, whole(w.Idle, integrals[fleet.Power]), labels...)
		}
		if w.Has[fleet.Utilization] {
			s.counter(s.busy, whole(w.Totals[fleet.Utilization], integrals[fleet.Utilization]), labels...)
		}
		for i, has := range w.Counted.Has {
			if has {
				s.counter(s.counted[i], w.Counted.Totals[i], labels...)
			}
		}
		for i, h := range w.Counted.Latencies {
			if h != nil {
				s.histogram(s.measured[i], h, labels...)
			}
		}
	}
	if m.Has[fleet.Power] {
		s.counter(s.unheld, whole(m.Unheld[fleet.Power], integrals[fleet.Power]))
		s.counter(s.unknown, whole(m.Unknown[fleet.Power], integrals[fleet.Power]))
		s.counter(s.expired, whole(m.Expired[fleet.Power], integrals[fleet.Power]))
		s.counter(s.gone, whole(m.Gone[fleet.Power], integrals[fleet.Power]))
	}
	s.readers(n)
}

// device is one device. What is old or could not be read is left out, and never shown
// as it was.
func (s *scrape) device(d *fleet.Device) {
	of := s.gpuLabels(d)
	up := d.Error == "" && s.fresh(d.Heard)
	s.gaugeOf(s.up, truth(up), of)
	s.gaugeOf(s.age, max(0, s.now.Sub(d.Heard).Seconds()), of)
	if d.MemoryTotalMiB > 0 {
		s.gaugeOf(s.memory, d.MemoryTotalMiB*(1<<20), of)
	}
	s.health(d, up, of)
	if up {
		for metric, means := range d.Means().All() {
			if q, ok := gauges[metric]; ok {
				s.gaugeOf(s.gauges[metric], means[0]*q.scale, of)
			} else {
				s.gauge(s.custom, means[0], append([]string{metric}, gpuNames(d)...)...)
			}
		}
	}
}

// totals are a device's, which stay for a while when it is gone.
func (s *scrape) totals(d meter.DeviceSums) {
	of := s.gpuLabels(d.Device)
	for i := range d.Totals {
		if d.Has[i] {
			s.counterOf(s.integrals[i], whole(d.Totals[i], integrals[i]), of)
		}
	}
}

// pods are those that hold devices, with their part of what these show.
func (s *scrape) pods(n *fleet.Node, devices map[string]*fleet.Device) {
	for _, p := range n.Pods {
		for i := range p.Shares {
			share := &p.Shares[i]
			if d := devices[share.Device]; d != nil {
				s.podGauge(p, share, d, share.Holders, true)
			}
			// What its instances do not tell: the power of a partitioned GPU, once.
			first := true
			for _, before := range p.Shares[:i] {
				first = first && before.GPU != share.GPU
			}
			if gpu := devices[share.GPU]; gpu != nil && share.GPU != share.Device && first {
				s.podGauge(p, share, gpu, share.GPUHolders, false)
			}
		}
	}
}

func (s *scrape) podGauge(p *fleet.Pod, share *attribution.Share, d *fleet.Device, holders int, holds bool) {
	of := s.podLabels(meter.Pod{
		Workload: meter.Workload{Namespace: p.Namespace, Kind: p.Owner.Kind, Name: p.Owner.Name},
		Pod:      p.Name, Container: share.Container(), Device: d.ID,
	}, d)
	if holds {
		s.gaugeOf(s.share, 1/float64(holders), of)
	}
	if d.Error != "" || !s.fresh(d.Heard) {
		return
	}
	for _, metric := range podGauges {
		if v, ok := d.Value(metric, 0); ok && (holds || metric == "power_draw") {
			s.gaugeOf(s.podGauges[metric], v*gauges[metric].scale/float64(holders), of)
		}
	}
}

func (s *scrape) gpuLabels(d *fleet.Device) labels {
	return prometheus.MakeLabelPairs(s.up, gpuNames(d))
}

func gpuNames(d *fleet.Device) []string {
	return []string{strconv.Itoa(d.Index), d.ID, d.Model, d.Profile}
}

func (s *scrape) podLabels(p meter.Pod, d *fleet.Device) labels {
	gpu := ""
	if d.Index >= 0 {
		gpu = strconv.Itoa(d.Index)
	}
	return prometheus.MakeLabelPairs(s.share, []string{p.Namespace, p.Pod, p.Container, p.Kind, p.Name, gpu, d.ID, d.Profile})
}

// readers are those that speak; those of one name count as one.
func (s *scrape) readers(n *fleet.Node) {
	told := map[string]bool{}
	for _, w := range n.Writers {
		if told[w.Name] {
			continue
		}
		told[w.Name] = true
		name := strings.ToValidUTF8(w.Name, "?")
		s.gauge(s.readerUp, truth(w.Error == "" && s.fresh(w.Heard)), name)
		s.gauge(s.readerAge, max(0, s.now.Sub(w.Heard).Seconds()), name)
		if !w.Allocates {
			s.gauge(s.refused, float64(w.Refused), name)
		}
	}
	switch {
	case !n.Allocated.IsZero():
		s.gauge(s.kubeletAge, max(0, s.now.Sub(n.Allocated).Seconds()))
	case n.PodsKnown: // then somebody wants to know
		s.gauge(s.kubeletAge, s.now.Sub(s.began).Seconds())
	}
	s.counter(s.leftOut, float64(n.LeftOut))
}

// triggers are those that KEDA asks for. Two of one name are shown as one.
func (s *scrape) triggers() {
	s.Triggers.Calls(func(call, code string, count uint64) { s.counter(s.calls, float64(count), call, code) })
	latest := map[[4]string]evaluate.Answer{}
	for _, a := range s.Triggers.Answers(s.now.Add(-answersKept)) {
		key := [4]string{a.Namespace, a.Name, a.MetricName, a.Metric}
		if before, again := latest[key]; !again || a.At.After(before.At) {
			latest[key] = a
		}
	}
	for _, key := range shown(latest) {
		a := latest[key]
		labels := make([]string, len(key))
		for i, text := range key {
			labels[i] = strings.ToValidUTF8(text, "?")
		}
		s.gauge(s.target, a.Target, labels...)
		s.gauge(s.failed, truth(a.Failed), labels...)
		s.gauge(s.answered, s.now.Sub(a.At).Seconds(), labels...)
		if a.Failed {
			continue
		}
		s.gauge(s.value, a.Value, labels...)
		s.gauge(s.active, truth(a.Active), labels...)
		if a.Replicas >= 0 {
			s.gauge(s.replicas, float64(a.Replicas), labels...)
			s.gauge(s.flat, float64(a.Flat), labels...)
			s.gauge(s.podsLeftOut, float64(a.LeftOut), labels...)
		}
		if share, ok := a.Coverage(); ok {
			s.gauge(s.coverage, share, labels...)
		}
	}
}

// shown are the triggers that are.
func shown(latest map[[4]string]evaluate.Answer) [][4]string {
	all := slices.Collect(maps.Keys(latest))
	if len(all) <= maxTriggers {
		return all
	}
	slices.SortFunc(all, func(a, b [4]string) int {
		if latest[a].Known != latest[b].Known {
			return int(truth(latest[b].Known)) - int(truth(latest[a].Known))
		}
		return slices.Compare(a[:], b[:])
	})
	return all[:maxTriggers]
}

// peers are the other nodes.
func (s *scrape) peers() {
	heard, silent := 0, 0
	own := s.Fleet.Own()
	for _, n := range s.Fleet.Nodes() {
		switch {
		case own != nil && n.Name == own.Name:
		case s.fresh(n.Heard):
			heard++
		default:
			silent++
		}
	}
	s.gauge(s.nodes, float64(heard), "heard")
	s.gauge(s.nodes, float64(silent), "silent")
	s.gauge(s.nodes, float64(len(s.Fleet.Unheard())), "unheard")
}
