package exporter

import (
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/scaler/evaluate"
	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/meter"
	"gpuscaler/shared/snapshot"
)

// lab is a node whose figures a test makes, and what Prometheus gets of it.
type lab struct {
	testing.TB
	node     *fleet.Local
	fleet    *fleet.Fleet
	devices  *fleet.Source
	kubelet  *fleet.Source
	triggers triggers
	handler  http.Handler
	start    time.Time
}

type triggers []evaluate.Answer

func (t *triggers) Answers(since time.Time) []evaluate.Answer {
	return slices.DeleteFunc(slices.Clone(*t), func(a evaluate.Answer) bool { return a.At.Before(since) })
}

func (*triggers) Calls(tell func(call, code string, count uint64)) { tell("GetMetrics", "OK", 7) }

type workloads struct{}

func (workloads) Health(time.Time) (known, failing int, oldest time.Duration) {
	return 3, 1, 4 * time.Second
}

func newLab(t testing.TB) *lab {
	l := &lab{TB: t, start: time.Now().Add(-time.Minute)}
	l.node = fleet.NewLocal("node-1", 10*time.Second, slog.New(slog.DiscardHandler), l.start)
	m := meter.New(time.Minute)
	l.node.Observe(m.Observe)
	l.fleet = fleet.New(l.node)
	l.devices, l.kubelet = l.node.Connect(), l.node.Connect()
	l.handler = Handler(Options{
		Node: "node-1", Version: "v1", Fleet: l.fleet, Meter: m, Triggers: &l.triggers, Workloads: workloads{},
		StaleAfter: 10 * time.Second, AttributionStaleAfter: 2 * time.Minute,
	})
	return l
}

// say has the readers say something, so long after the start.
func (l *lab) say(after time.Duration, devices ...snapshot.Device) {
	l.Helper()
	require.NoError(l, l.devices.Apply(&snapshot.Sample{Writer: "nvmlsidecar", Version: "v1", Elapsed: after, Devices: devices, Refused: 3}, l.start.Add(after)))
}

func (l *lab) hold(held map[string][]string) {
	l.Helper()
	var pods []fleet.Pod
	a := &snapshot.Allocation{}
	for _, name := range slices.Sorted(maps.Keys(held)) {
		pods = append(pods, fleet.Pod{Namespace: "shop", Name: name, UID: name, Node: "node-1", Owner: fleet.Owner{Kind: "Deployment", Name: "of-" + name}})
		a.Containers = append(a.Containers, snapshot.Container{Namespace: "shop", Pod: name, Name: "engine", Plugin: []snapshot.PluginDevices{{Resource: "nvidia.com/gpu", IDs: held[name]}}})
	}
	l.node.SetPods(pods, l.start)
	require.NoError(l, l.kubelet.Apply(&snapshot.Sample{Writer: "podresources", Allocation: a}, l.start))
}

func (l *lab) scrape() string {
	l.Helper()
	w := httptest.NewRecorder()
	l.handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	require.Equal(l, http.StatusOK, w.Code, w.Body.String())
	text, err := io.ReadAll(w.Body)
	require.NoError(l, err)
	return string(text)
}

func (l *lab) families() map[string]*dto.MetricFamily {
	l.Helper()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	all, err := parser.TextToMetricFamilies(strings.NewReader(l.scrape()))
	require.NoError(l, err)
	return all
}

// sum adds up a family's series that have all of these labels.
func sum(f *dto.MetricFamily, labels ...string) (total float64, series int) {
	for _, m := range f.GetMetric() {
		has := map[string]string{}
		for _, pair := range m.GetLabel() {
			has[pair.GetName()] = pair.GetValue()
		}
		all := true
		for i := 0; i < len(labels); i += 2 {
			all = all && has[labels[i]] == labels[i+1]
		}
		if all {
			total += m.GetGauge().GetValue() + m.GetCounter().GetValue()
			series++
		}
	}
	return total, series
}

func gpu(i int, utilization, watts, joules float64) snapshot.Device {
	values := map[string]float64{"gpu_utilization": utilization, "power_draw": watts, "memory_used_mib": 1024, "temperature": 50}
	states := map[string]bool{snapshot.RowRemapPending: false, snapshot.RowRemapFailed: false}
	snapshot.Throttled(states, 0)
	return snapshot.Device{ID: fmt.Sprint("GPU-", i), Vendor: "nvidia", Model: "NVIDIA H100", Index: i, MemoryTotalMiB: 81559, Values: values, States: states,
		Counters: map[string]float64{"energy_joules": joules, "ecc_corrected_errors": 0, "ecc_uncorrected_errors": 0, "xid_errors": 1, "xid_31": 1}}
}

func instance(i int, of string, utilization float64) snapshot.Device {
	return snapshot.Device{ID: fmt.Sprint("MIG-", i), Vendor: "nvidia", Model: "NVIDIA H100", Index: 1, Parent: of, Instance: i, Profile: "3g.40gb",
		MemoryTotalMiB: 40000, Values: map[string]float64{"gpu_utilization": utilization, "memory_used_mib": 512}}
}

// everything is a node with all that there is: a GPU that two pods share, one with two instances
// of which one pod holds each, one that nobody holds, and one that is lost.
func everything(l *lab) {
	l.hold(map[string][]string{"a": {"GPU-0::0"}, "b": {"GPU-0::1"}, "c": {"MIG-1"}, "d": {"MIG-2"}})
	split := func(joules float64) snapshot.Device {
		d := gpu(1, 0, 300, joules)
		delete(d.Values, "gpu_utilization")
		return d
	}
	lost := snapshot.Device{ID: "GPU-3", Vendor: "nvidia", Index: 3, Error: "GPU is lost"}
	custom := gpu(2, 0, 70, 70)
	custom.Values["x_wear_percent"] = 3
	l.say(58*time.Second, gpu(0, 90, 600, 1000), split(500), instance(1, "GPU-1", 80), instance(2, "GPU-1", 40), gpu(2, 0, 70, 0), lost)
	l.say(59*time.Second, gpu(0, 90, 600, 1601), split(800), instance(1, "GPU-1", 80), instance(2, "GPU-1", 40), custom, lost)
	l.triggers = triggers{
		{Namespace: "shop", Name: "a", MetricName: "m", Metric: "gpu_utilization", Target: 80, Value: 135, Active: true, Replicas: 2, Of: 4, Missing: 1, At: time.Now()},
		{Namespace: "shop", Name: "broken", MetricName: "m", Metric: "gpu_utilization", Target: 80, Failed: true, At: time.Now()},
		{Namespace: "shop", Name: "forgotten", Target: 1, At: time.Now().Add(-time.Hour)},
	}
}

func TestNamesPassTheLint(t *testing.T) {
	l := newLab(t)
	everything(l)
	problems, err := promlint.New(strings.NewReader(l.scrape())).Lint()
	require.NoError(t, err)
	assert.Empty(t, problems)
}

// Every built-in metric has a name for Prometheus.
func TestAllMetricsAreNamed(t *testing.T) {
	assert.ElementsMatch(t, snapshot.MetricNames(), slices.Collect(maps.Keys(gauges)))
	for _, metric := range fleet.Integrated {
		assert.Contains(t, snapshot.MetricNames(), metric)
	}
}

// A device that several share never counts twice: its pods add up to it.
func TestPodsAddUpToTheDevice(t *testing.T) {
	l := newLab(t)
	everything(l)
	f := l.families()
	for _, name := range []string{"utilization_ratio", "memory_used_bytes", "power_watts", "utilization_seconds_total"} {
		for _, uuid := range []string{"GPU-0", "MIG-1", "MIG-2"} {
			device, there := sum(f["gpuscaler_gpu_"+name], "uuid", uuid)
			pods, _ := sum(f["gpuscaler_pod_gpu_"+name], "uuid", uuid)
			if there > 0 {
				assert.InDelta(t, device, pods, 1e-9, "%s of %s", name, uuid)
				assert.Positive(t, pods, "%s of %s", name, uuid)
			}
		}
	}
	watts, _ := sum(f["gpuscaler_pod_gpu_power_watts"], "uuid", "GPU-1")
	assert.InDelta(t, 300, watts, 1e-9, "the power of a partitioned GPU is that of all who hold a piece")
	_, idle := sum(f["gpuscaler_pod_gpu_power_watts"], "uuid", "GPU-2")
	assert.Zero(t, idle)
}

// All energy adds up to the devices', exactly.
func TestEnergyAddsUp(t *testing.T) {
	l := newLab(t)
	everything(l)
	f := l.families()
	devices, n := sum(f["gpuscaler_gpu_energy_joules_total"])
	assert.Equal(t, 3, n)
	assert.InDelta(t, 601+300+70, devices, 1e-4)
	parts := 0.0
	for _, name := range []string{"workload_energy", "unheld_energy", "unattributed_energy", "expired_energy"} {
		require.Contains(t, f, "gpuscaler_"+name+"_joules_total")
		v, _ := sum(f["gpuscaler_"+name+"_joules_total"])
		parts += v
	}
	assert.Equal(t, devices, parts) //nolint:testifylint // exactly
	a, _ := sum(f["gpuscaler_workload_energy_joules_total"], "namespace", "shop", "workload_kind", "Deployment", "workload", "of-a")
	assert.InDelta(t, 300.5, a, 1e-4)
	unheld, _ := sum(f["gpuscaler_unheld_energy_joules_total"])
	assert.InDelta(t, 70, unheld, 1e-4)
}

// What cannot be read now is left out, and never shown as it was.
func TestNoStaleGauges(t *testing.T) {
	l := newLab(t)
	l.say(30*time.Second, gpu(0, 90, 600, 1000))
	f := l.families()
	up, n := sum(f["gpuscaler_gpu_up"])
	assert.Equal(t, 1, n)
	assert.Zero(t, up)
	assert.NotContains(t, f, "gpuscaler_gpu_utilization_ratio")
	age, _ := sum(f["gpuscaler_gpu_reading_age_seconds"])
	assert.InDelta(t, 30, age, 5)
	assert.Contains(t, f, "gpuscaler_gpu_energy_joules_total", "counters stay")
	reader, n := sum(f["gpuscaler_reader_up"], "reader", "nvmlsidecar")
	assert.Equal(t, 1, n)
	assert.Zero(t, reader)
	refused, n := sum(f["gpuscaler_reader_refused_devices"], "reader", "nvmlsidecar")
	assert.Equal(t, 1, n, "the reader of the kubelet has none")
	assert.InDelta(t, 3, refused, 0)
}

func TestTriggers(t *testing.T) {
	l := newLab(t)
	everything(l)
	f := l.families()
	labels := []string{"namespace", "shop", "scaledobject", "a", "metric_name", "m", "metric", "gpu_utilization"}
	for name, want := range map[string]float64{"target": 80, "value": 135, "active": 1, "replicas": 2, "coverage_ratio": 0.75, "failing": 0} {
		got, n := sum(f["gpuscaler_trigger_"+name], labels...)
		assert.Equal(t, 1, n, name)
		assert.InDelta(t, want, got, 1e-9, name)
	}
	failing, _ := sum(f["gpuscaler_trigger_failing"], "scaledobject", "broken")
	assert.InDelta(t, 1, failing, 0)
	for _, gone := range []string{"broken", "forgotten"} {
		_, n := sum(f["gpuscaler_trigger_value"], "scaledobject", gone)
		assert.Zero(t, n, gone)
	}
	calls, _ := sum(f["gpuscaler_calls_total"], "call", "GetMetrics", "code", "OK")
	assert.InDelta(t, 7, calls, 0)
	custom, _ := sum(f["gpuscaler_device_custom"], "metric", "x_wear_percent", "uuid", "GPU-2")
	assert.InDelta(t, 3, custom, 0)
	known, _ := sum(f["gpuscaler_workloads"], "state", "known")
	assert.InDelta(t, 3, known, 0)
}

// Names that callers make up do not take the place of a trigger of a known workload,
// which has no answer just now.
func TestTriggersAreBounded(t *testing.T) {
	l := newLab(t)
	for i := range 3 * maxTriggers {
		l.triggers = append(l.triggers, evaluate.Answer{Namespace: "a", Name: fmt.Sprint("made-up-", i), MetricName: "m", Target: 80, Replicas: -1, At: time.Now()})
	}
	l.triggers = append(l.triggers, evaluate.Answer{Namespace: "shop", Name: "real", MetricName: "m", Target: 80, Known: true, Failed: true, At: time.Now()})
	f := l.families()
	_, n := sum(f["gpuscaler_trigger_target"])
	assert.Equal(t, maxTriggers, n)
	failing, n := sum(f["gpuscaler_trigger_failing"], "namespace", "shop", "scaledobject", "real")
	assert.Equal(t, 1, n)
	assert.InDelta(t, 1, failing, 0)
}

// A front has no node: it shows triggers and peers alone.
func TestFront(t *testing.T) {
	f := fleet.New(nil)
	peer := f.Join("node-2")
	f.Join("node-3")
	_, _, err := peer.Apply((&fleet.Node{Name: "node-2", Heard: time.Now()}).With(fleet.NewPods(nil, nil, nil)))
	require.NoError(t, err)
	l := &lab{TB: t, handler: Handler(Options{Node: "front", Fleet: f, Triggers: &triggers{}, StaleAfter: time.Second})}
	all := l.families()
	heard, _ := sum(all["gpuscaler_nodes"], "state", "heard")
	unheard, _ := sum(all["gpuscaler_nodes"], "state", "unheard")
	assert.Equal(t, []float64{1, 1}, []float64{heard, unheard})
	for name := range all {
		assert.NotContains(t, name, "_gpu_")
	}
}

// What a GPU has used stays when it is lost after its place was empty; who holds it is
// not shown for longer than the kubelet's word is good.
func TestLostAndOld(t *testing.T) {
	l := newLab(t)
	everything(l)
	l.say(59500*time.Millisecond, gpu(1, 0, 300, 900))
	l.say(59600*time.Millisecond, snapshot.Device{ID: "GPU-0", Vendor: "nvidia", Error: "GPU is lost"}, gpu(1, 0, 300, 900))
	joules, n := sum(l.families()["gpuscaler_gpu_energy_joules_total"], "uuid", "GPU-0")
	assert.Equal(t, 1, n)
	assert.InDelta(t, 601, joules, 1e-4)

	old := newLab(t)
	old.start = time.Now().Add(-3 * time.Minute) // of the kubelet's word
	everything(old)
	for name := range old.families() {
		assert.NotContains(t, name, "_share_ratio")
	}
}

// A label that cannot be costs its series, and no other.
func TestBadLabel(t *testing.T) {
	l := newLab(t)
	everything(l)
	l.triggers = append(l.triggers, evaluate.Answer{Namespace: "shop", Name: "a\xff", MetricName: "m", Target: 80, At: time.Now()})
	l.hold(map[string][]string{"b\xff": {"GPU-0"}})
	f := l.families()
	_, n := sum(f["gpuscaler_trigger_target"])
	assert.Equal(t, 3, n, "mended")
	_, n = sum(f["gpuscaler_gpu_up"])
	assert.Equal(t, 6, n)
}

// What is written in the README of how many series there are.
func TestCardinality(t *testing.T) {
	l := newLab(t)
	l.start = time.Now()
	crowd(l)
	series := 0
	for name, f := range l.families() {
		if strings.HasPrefix(name, "gpuscaler_") {
			series += len(f.GetMetric())
		}
	}
	assert.InDelta(t, 940, series, 50)
}

// crowd is a node of 8 GPUs that 64 pods share.
func crowd(l *lab) {
	held := map[string][]string{}
	for i := range 64 {
		held[fmt.Sprint("pod-", i)] = []string{fmt.Sprintf("GPU-%d::%d", i%8, i)}
	}
	l.hold(held)
	for second := range 3 {
		var all []snapshot.Device
		for i := range 8 {
			d := gpu(i, 50, 500, 500*float64(second))
			for _, m := range snapshot.Metrics {
				d.Values[m.Name] = 50
			}
			all = append(all, d)
		}
		l.say(57*time.Second+time.Duration(second)*time.Second, all...)
	}
}

func BenchmarkScrape(b *testing.B) {
	l := newLab(b)
	l.start = time.Now() // so that nothing gets old
	crowd(l)
	b.ReportAllocs()
	for b.Loop() {
		l.handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/metrics", nil))
	}
}
