package evaluate

import (
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/profiles"
	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/trigger"
	"gpuscaler/shared/fixture"
	"gpuscaler/shared/snapshot"
)

const staleAfter = 10 * time.Second

var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func at(s float64) time.Time { return epoch.Add(time.Duration(s * float64(time.Second))) }

type metadata = map[string]string

func parse(t testing.TB, md metadata) *trigger.Trigger {
	t.Helper()
	parsed, err := trigger.Parse(md, profiles.Builtin())
	require.NoError(t, err)
	return &parsed
}

// node is a fleet that tests feed by hand, on a clock of their own.
type node struct {
	*fleet.Local
	t       testing.TB
	sources map[string]*fleet.Source
}

func newNode(t testing.TB) *node {
	return &node{fleet.NewLocal("node-1", staleAfter, slog.New(slog.DiscardHandler), epoch), t, map[string]*fleet.Source{}}
}

// say is a sample of one writer, s seconds after the start.
func (n *node) say(writer string, s float64, devices ...snapshot.Device) {
	n.t.Helper()
	n.apply(&snapshot.Sample{Writer: writer, Devices: devices}, s)
}

func (n *node) apply(sample *snapshot.Sample, s float64) {
	n.t.Helper()
	require.NoError(n.t, sample.Validate())
	if n.sources[sample.Writer] == nil {
		n.sources[sample.Writer] = n.Connect()
	}
	require.NoError(n.t, n.sources[sample.Writer].Apply(sample, at(s)))
}

// play is a node on which a recording has run up to its sample number last.
func play(t testing.TB, file string, last int) (*node, time.Time) {
	t.Helper()
	f, err := fixture.Load("../../testdata/" + file)
	require.NoError(t, err)
	n := newNode(t)
	var now time.Time
	for i := range last + 1 {
		s := f.At(i)
		now = epoch.Add(s.Elapsed)
		n.apply(&s, s.Elapsed.Seconds())
	}
	return n, now
}

// The cases of the published reference scaler, on constant readings.
func TestExactAnswers(t *testing.T) {
	for _, c := range []struct {
		file   string
		md     metadata
		want   float64
		active bool
	}{
		{"one-75.csv", metadata{}, 75, true},
		{"one-75.csv", metadata{"gpuIndex": "0"}, 75, true},
		{"one-75.csv", metadata{"window": "0s"}, 75, true},
		{"one-75.csv", metadata{"window": "5m"}, 75, true},
		{"one-75.csv", metadata{"scope": "node"}, 75, true},
		{"one-75.csv", metadata{"targetGpuUtilization": "80"}, 75, true},
		{"one-75.csv", metadata{"targetMemoryUtilization": "80"}, 75, true},
		{"one-75.csv", metadata{"metricType": "memory_used_percent"}, 75, true},
		{"one-75.csv", metadata{"metricType": "memory_used_mib"}, 6144, true},
		{"one-75.csv", metadata{"metricType": "memory_utilization"}, 40, true},
		{"one-75.csv", metadata{"metricType": "temperature"}, 65, true},
		{"one-75.csv", metadata{"metricType": "power_draw"}, 250, true},
		{"one-75.csv", metadata{"activationThreshold": "74.9"}, 75, true},
		{"one-75.csv", metadata{"activationThreshold": "75"}, 75, false}, // strictly above
		{"one-75.csv", metadata{"activationThreshold": "80"}, 75, false},
		{"one-75.csv", metadata{"profile": "vllm-inference"}, 75, true},
		{"one-75.csv", metadata{"profile": "triton-inference", "activationThreshold": "90"}, 75, false},
		{"one-75.csv", metadata{"profile": "training", "activationThreshold": "90"}, 75, true},
		{"one-75.csv", metadata{"gpuModel": "rtx 3070"}, 75, true},
		{"two-60-80.csv", metadata{}, 80, true},
		{"two-60-80.csv", metadata{"gpuIndex": "-1"}, 80, true},
		{"two-60-80.csv", metadata{"gpuIndex": "0"}, 60, true},
		{"two-60-80.csv", metadata{"gpuIndex": "1"}, 80, true},
		{"two-60-80.csv", metadata{"aggregation": "avg"}, 70, true},
		{"two-60-80.csv", metadata{"aggregation": "min"}, 60, true},
		{"two-60-80.csv", metadata{"aggregation": "sum"}, 140, true},
		{"two-60-80.csv", metadata{"aggregation": "p50"}, 60, true},
		{"two-60-80.csv", metadata{"aggregation": "p51"}, 80, true},
		{"two-60-80.csv", metadata{"aggregation": "avg", "activationThreshold": "70"}, 70, false},
		{"two-60-80.csv", metadata{"gpuIndex": "1", "metricType": "memory_used_percent"}, 75, true},
		{"two-60-80.csv", metadata{"gpuIndex": "1", "aggregation": "min"}, 80, true},
		{"twenty-steps.csv", metadata{}, 100, true},
		{"twenty-steps.csv", metadata{"aggregation": "p95"}, 95, true},
		{"twenty-steps.csv", metadata{"aggregation": "p96"}, 100, true},
		{"twenty-steps.csv", metadata{"aggregation": "p50"}, 50, true},
		{"hundred.csv", metadata{}, 100, true},
		{"hundred.csv", metadata{"aggregation": "p99"}, 99, true},
		{"hundred.csv", metadata{"aggregation": "p95"}, 95, true},
		{"hundred.csv", metadata{"gpuIndex": "99"}, 100, true},
	} {
		name := fmt.Sprint(c.file, " ", c.md)
		n, now := play(t, c.file, 1)
		d, err := Evaluate(parse(t, c.md), n.Node(), now, staleAfter)
		require.NoError(t, err, name)
		assert.Equal(t, c.want, d.Value, name)
		assert.Equal(t, c.active, d.Active, name)
		assert.Empty(t, d.LeftOut, name)
		active, err := Active(parse(t, c.md), n.Node(), now, staleAfter)
		require.NoError(t, err, name)
		assert.Equal(t, c.active, active, name)
	}
}

// Activation at and around the threshold, zero included: idle is not active.
func TestActivationIsStrict(t *testing.T) {
	for _, c := range []struct {
		value, threshold string
		want             bool
	}{{"0", "0", false}, {"0.001", "0", true}, {"5", "5", false}, {"5.001", "5", true}, {"4.999", "5", false}} {
		n := newNode(t)
		var v float64
		_, err := fmt.Sscan(c.value, &v)
		require.NoError(t, err)
		n.say("w", 1, gpu(0, "H200", values{"gpu_utilization": v}))
		active, err := Active(parse(t, metadata{"activationThreshold": c.threshold}), n.Node(), at(1), staleAfter)
		require.NoError(t, err)
		assert.Equal(t, c.want, active, "%s above %s", c.value, c.threshold)
	}
}

type values = map[string]float64

func gpu(index int, model string, v values) snapshot.Device {
	return snapshot.Device{ID: fmt.Sprint("GPU-", index), Vendor: "nvidia", Model: model, Index: index, Values: v}
}

// used are the devices of a decision and their values, for one comparison.
func used(d Decision) (all []string) {
	for _, r := range d.Used {
		all = append(all, fmt.Sprintf("%s=%v", r.Device, r.Value))
	}
	return all
}

// In the place of a partitioned GPU stand its instances, for what they have;
// the GPU itself for what they have not. Nothing is counted twice.
func TestMIG(t *testing.T) {
	n, now := play(t, "h200-mig.csv", 0)
	const three, two, one = "GPU 0 MIG 3g.71gb/1", "GPU 0 MIG 2g.35gb/5", "GPU 0 MIG 1g.18gb/9"
	for _, c := range []struct {
		md   metadata
		want []string
	}{
		{metadata{"metricType": "gpu_utilization"}, []string{three + "=98.96", two + "=57.28", one + "=0", "GPU 1=99"}},
		{metadata{"metricType": "memory_used_mib"}, []string{three + "=64225", two + "=12455", one + "=1", "GPU 1=110351"}},
		{metadata{"metricType": "sm_activity", "gpuIndex": "0"}, []string{three + "=39.41", two + "=42.27", one + "=0"}},
		{metadata{"metricType": "temperature"}, []string{"GPU 0=45", "GPU 1=68"}},
		{metadata{"metricType": "power_draw"}, []string{"GPU 0=302.941", "GPU 1=657.33"}},
		{metadata{"metricType": "pcie_rx_kbps", "gpuIndex": "0"}, []string{"GPU 0=314267"}},
		{metadata{"metricType": "temperature", "gpuIndex": "1"}, []string{"GPU 1=68"}},
		{metadata{"metricType": "memory_utilization"}, []string{"GPU 1=43"}},
		{metadata{"metricType": "memory_used_mib", "gpuModel": "1g.18gb"}, []string{one + "=1"}},
	} {
		d, err := Evaluate(parse(t, c.md), n.Node(), now, staleAfter)
		require.NoError(t, err, c.md)
		assert.Equal(t, c.want, used(d), c.md)
	}
	d, err := Evaluate(parse(t, metadata{"metricType": "memory_used_mib", "aggregation": "sum"}), n.Node(), now, staleAfter)
	require.NoError(t, err)
	assert.Equal(t, 64225.+12455+1+110351, d.Value)
	_, err = Evaluate(parse(t, metadata{"gpuIndex": "2"}), n.Node(), now, staleAfter)
	assert.EqualError(t, err, "gpuIndex: 2 is beyond the GPUs of node node-1; it has 2 GPUs (gpuIndex 0 to 1)", "instances are no GPUs")
}

// A layout that changes while it is watched is followed with the next sample.
func TestMIGLayoutChange(t *testing.T) {
	for last, want := range map[int]int{74: 4, 75: 2, 77: 2, 78: 3, 149: 3} {
		n, now := play(t, "h200-mig.csv", last)
		d, err := Evaluate(parse(t, metadata{"metricType": "memory_used_mib"}), n.Node(), now, staleAfter)
		require.NoError(t, err, last)
		assert.Len(t, d.Used, want, last)
	}
}

// A failing instance is left out, and its GPU does not stand in for it.
func TestMIGInstanceFailing(t *testing.T) {
	n := newNode(t)
	mig := func(instance int, v values, failed map[string]string) snapshot.Device {
		return snapshot.Device{ID: fmt.Sprint("MIG-", instance), Vendor: "nvidia", Parent: "GPU-0", Instance: instance, Profile: "3g.71gb", Values: v, Failed: failed}
	}
	n.say("w", 1, gpu(0, "H200", values{"memory_used_mib": 900}),
		mig(1, values{"memory_used_mib": 300}, nil), mig(2, nil, map[string]string{"memory_used_mib": "UNKNOWN"}))
	d, err := Evaluate(parse(t, metadata{"metricType": "memory_used_mib", "aggregation": "sum"}), n.Node(), at(1), staleAfter)
	require.NoError(t, err)
	assert.Equal(t, 300.0, d.Value)
	require.Len(t, d.LeftOut, 1)
	assert.Equal(t, "GPU 0 MIG 3g.71gb/2: UNKNOWN", d.LeftOut[0].Device.String()+": "+d.LeftOut[0].Reason)
}

func TestWindows(t *testing.T) {
	n := newNode(t)
	for s := range 100 { // 0 for 80 s, then 90
		v := 0.0
		if s >= 80 {
			v = 90
		}
		n.say("w", float64(s), gpu(0, "H200", values{"gpu_utilization": v}))
	}
	for window, want := range map[string]float64{"0s": 90, "15s": 90, "1m": 30, "5m": 18} {
		d, err := Evaluate(parse(t, metadata{"window": window}), n.Node(), at(99), staleAfter)
		require.NoError(t, err)
		assert.Equal(t, want, d.Value, window)
	}
}
