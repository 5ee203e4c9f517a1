package evaluate

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/shared/snapshot"
)

func lost(index int, reason string) snapshot.Device {
	d := gpu(index, "NVIDIA H200", nil)
	d.Error = reason
	return d
}

func failing(index int, metric, reason string) snapshot.Device {
	d := gpu(index, "NVIDIA H200", values{"temperature": 40})
	d.Failed = map[string]string{metric: reason}
	return d
}

func wear(index int, percent float64) snapshot.Device {
	return snapshot.Device{ID: fmt.Sprint("ACME-", index), Vendor: "acme", Model: "Acme Flash", Index: index, Values: values{"x_wear_percent": percent}}
}

func h200(index int) snapshot.Device {
	return gpu(index, "NVIDIA H200", values{"gpu_utilization": 50, "temperature": 40})
}

// silent is a reader that says that it can read nothing.
func silent(reason string) func(n *node) {
	return func(n *node) { n.apply(&snapshot.Sample{Writer: "nvmlsidecar", Error: reason}, 1) }
}

func with(devices ...snapshot.Device) func(n *node) {
	return func(n *node) { n.say("nvmlsidecar", 1, devices...) }
}

// No data is an error, never a zero: every way in which there can be none on
// one node, with the words that people will read.
func TestErrors(t *testing.T) {
	for name, c := range map[string]struct {
		given func(n *node)
		md    metadata
		now   float64
		kind  Kind
		want  string
	}{
		"nothing heard": {func(*node) {}, nil, 1, Unavailable, "node node-1: nothing heard yet from any reader"},
		"nothing heard, and a gpuIndex": {func(*node) {}, metadata{"gpuIndex": "3"}, 1, Unavailable,
			"node node-1: nothing heard yet from any reader"},
		"gpuIndex beyond": {with(h200(0), h200(1)), metadata{"gpuIndex": "99"}, 1, Invalid,
			"gpuIndex: 99 is beyond the GPUs of node node-1; it has 2 GPUs (gpuIndex 0 to 1)"},
		"gpuIndex beyond one": {with(h200(0)), metadata{"gpuIndex": "1"}, 1, Invalid,
			"gpuIndex: 1 is beyond the GPUs of node node-1; it has 1 GPU (gpuIndex 0)"},
		"gpuIndex beyond, stale": {with(h200(0)), metadata{"gpuIndex": "1"}, 60, Invalid,
			"gpuIndex: 1 is beyond the GPUs of node node-1; it has 1 GPU (gpuIndex 0)"},
		"stale": {with(h200(0), h200(1)), nil, 13.4, Unavailable,
			"node node-1: GPU 0 (NVIDIA H200): nothing heard for 12.4s, more than 10s"},
		"stale, one GPU of two asked for": {with(h200(0), h200(1)), metadata{"gpuIndex": "1"}, 13.4, Unavailable,
			"node node-1: GPU 1 (NVIDIA H200): nothing heard for 12.4s, more than 10s"},
		"stale and lost": {with(lost(0, "GPU_IS_LOST")), nil, 13.4, Unavailable,
			"node node-1: GPU 0 (NVIDIA H200): nothing heard for 12.4s, more than 10s"},
		"no driver": {silent("libnvidia-ml.so.1: not found"), nil, 2, Unavailable,
			"node node-1: nvmlsidecar: libnvidia-ml.so.1: not found"},
		"no driver, and a gpuIndex": {silent("libnvidia-ml.so.1: not found"), metadata{"gpuIndex": "3"}, 2, Unavailable,
			"node node-1: nvmlsidecar: libnvidia-ml.so.1: not found"},
		"driver gone": {func(n *node) { with(h200(0), h200(1))(n); silent("DRIVER_NOT_LOADED")(n) }, nil, 2, Unavailable,
			"node node-1: gpu_utilization cannot be read: GPU 0 (NVIDIA H200): DRIVER_NOT_LOADED; GPU 1 (NVIDIA H200): DRIVER_NOT_LOADED"},
		"all lost": {with(lost(0, "GPU_IS_LOST"), lost(1, "UNKNOWN")), nil, 2, Unavailable,
			"node node-1: gpu_utilization cannot be read: GPU 0 (NVIDIA H200): GPU_IS_LOST; GPU 1 (NVIDIA H200): UNKNOWN"},
		"the GPU asked for is lost": {with(h200(0), lost(1, "GPU_IS_LOST")), metadata{"gpuIndex": "1"}, 2, Unavailable,
			"node node-1: gpu_utilization cannot be read: GPU 1 (NVIDIA H200): GPU_IS_LOST"},
		"getter failing everywhere": {with(failing(0, "power_draw", "UNKNOWN"), failing(1, "power_draw", "TIMEOUT")), metadata{"metricType": "power_draw"}, 2,
			Unavailable, "node node-1: power_draw cannot be read: GPU 0 (NVIDIA H200): UNKNOWN; GPU 1 (NVIDIA H200): TIMEOUT"},
		"rate pending": {with(snapshot.Device{ID: "GPU-0", Vendor: "nvidia", Counters: values{"nvlink_tx_bytes": 1}}), metadata{"metricType": "nvlink_tx_mbps"}, 2,
			Unavailable, "node node-1: nvlink_tx_mbps cannot be read: GPU 0: a rate needs two readings"},
		"not supported": {with(h200(0), gpu(1, "T4", values{"encoder_utilization": 1})), metadata{"metricType": "sm_activity"}, 2, Impossible,
			"metricType: no GPU in scope on node node-1 has sm_activity: NVIDIA H200, T4; they have gpu_utilization, temperature, encoder_utilization"},
		"not supported by the one asked for": {with(h200(0), gpu(1, "T4", values{"encoder_utilization": 1})), metadata{"metricType": "encoder_utilization", "gpuIndex": "0"}, 2,
			Impossible, "metricType: no GPU in scope on node node-1 has encoder_utilization: NVIDIA H200; they have gpu_utilization, temperature"},
		"nobody reports it": {with(h200(0)), metadata{"metricType": "x_wear_percent"}, 2, Impossible,
			"metricType: no GPU in scope on node node-1 has x_wear_percent: NVIDIA H200; they have gpu_utilization, temperature"},
		"not supported, and stale": {with(h200(0)), metadata{"metricType": "x_wear_percent"}, 40, Unavailable,
			"node node-1: nothing heard for 39s, more than 10s"},
		"no such model": {with(h200(0), gpu(1, "Tesla T4", nil), gpu(2, "Tesla T4", nil)), metadata{"gpuModel": "A100"}, 2, Impossible,
			`gpuModel: no GPU in scope on node node-1 has "A100" in its name; there are NVIDIA H200, Tesla T4`},
		"no such model at this index": {with(h200(0), gpu(1, "Tesla T4", nil)), metadata{"gpuModel": "T4", "gpuIndex": "0"}, 2, Impossible,
			`gpuModel: no GPU in scope on node node-1 has "T4" in its name; there are NVIDIA H200`},
		"no GPUs":        {with(), nil, 2, Impossible, "node node-1 has no GPUs"},
		"no GPUs, stale": {with(), nil, 40, Unavailable, "node node-1: nothing heard for 39s, more than 10s"},
		"workload": {with(h200(0)), metadata{"scope": "workload"}, 2, Impossible,
			"scope: workload needs the Kubernetes API and --workloads=auto, which this scaler does not have; use scope: node"},
		"pod selector": {with(h200(0)), metadata{"scope": "workload", "podSelector": "app=llm"}, 2, Impossible,
			"scope: workload needs the Kubernetes API and --workloads=auto, which this scaler does not have; use scope: node"},
		"cluster": {with(h200(0)), metadata{"scope": "cluster"}, 2, Impossible,
			"scope: cluster needs the other nodes, and this scaler knows only its own (--peers); use scope: node"},
		"negative": {with(gpu(0, "H200", values{"temperature": -5})), metadata{"metricType": "temperature"}, 2, Impossible,
			"metricType: temperature stands at -5, and KEDA would read a negative value as 0"},
	} {
		n := newNode(t)
		c.given(n)
		trig := parse(t, c.md)
		d, err := Evaluate(trig, n.Node(), at(c.now), staleAfter)
		assert.EqualError(t, err, c.want, name)
		var typed *Error
		require.True(t, errors.As(err, &typed), name)
		assert.Equal(t, c.kind, typed.Kind, name)
		assert.Equal(t, Decision{}, d, name)

		active, err := Active(trig, n.Node(), at(c.now), staleAfter)
		assert.EqualError(t, err, c.want, name)
		assert.False(t, active, name)

		// What never scales to zero is active whatever is known.
		trig.AlwaysActive = true
		active, err = Active(trig, n.Node(), at(c.now), staleAfter)
		assert.NoError(t, err, name)
		assert.True(t, active, name)
		_, err = Evaluate(trig, n.Node(), at(c.now), staleAfter)
		assert.EqualError(t, err, c.want, "%s: its value follows the table", name)
	}
}

// A message has to fit a gRPC status and a Kubernetes event.
func TestLongMessagesAreCut(t *testing.T) {
	n := newNode(t)
	var all []snapshot.Device
	for i := range snapshot.MaxDevices {
		all = append(all, lost(i, strings.Repeat("x", snapshot.MaxText)))
	}
	n.say("w", 1, all...)
	_, err := Evaluate(parse(t, nil), n.Node(), at(1), staleAfter)
	assert.ErrorContains(t, err, "; and 240 more")
	assert.Less(t, len(err.Error()), 5000)

	all = nil
	for i := range snapshot.MaxDevices {
		d := gpu(i, fmt.Sprint("model ", i), values{})
		for j := range 20 {
			d.Values[fmt.Sprintf("x_%d_%d", i, j)] = 1
		}
		all = append(all, d)
	}
	n.say("w", 2, all...)
	_, err = Evaluate(parse(t, metadata{"gpuModel": "none"}), n.Node(), at(2), staleAfter)
	assert.ErrorContains(t, err, "model 0, model 1, ")
	assert.ErrorContains(t, err, " and 216 more")
	_, err = Evaluate(parse(t, nil), n.Node(), at(2), staleAfter)
	assert.ErrorContains(t, err, " and 5080 more")
}

func TestPartialLoss(t *testing.T) {
	n := newNode(t)
	n.say("w", 1, gpu(0, "NVIDIA H200", values{"gpu_utilization": 60}), lost(1, "GPU_IS_LOST"), failing(2, "gpu_utilization", "UNKNOWN"),
		gpu(3, "Tesla T4", values{"temperature": 30}), gpu(4, "NVIDIA H200", values{"gpu_utilization": 80}))
	for aggregation, want := range map[string]float64{"min": 60, "avg": 70, "max": 80, "sum": 140} {
		d, err := Evaluate(parse(t, metadata{"aggregation": aggregation}), n.Node(), at(2), staleAfter)
		require.NoError(t, err)
		assert.Equal(t, want, d.Value, "%s: what is lost is left out and is no 0", aggregation)
		assert.Equal(t, []string{"GPU 0=60", "GPU 4=80"}, used(d))
		var left []string
		for _, l := range d.LeftOut {
			left = append(left, l.Device.String()+": "+l.Reason)
		}
		assert.Equal(t, []string{"GPU 1: GPU_IS_LOST", "GPU 2: UNKNOWN"}, left, "a T4 that has no such metric is not missing")
	}
	// The index counts lost GPUs as well: those after them keep theirs.
	d, err := Evaluate(parse(t, metadata{"gpuIndex": "4"}), n.Node(), at(2), staleAfter)
	require.NoError(t, err)
	assert.Equal(t, 80.0, d.Value)
}

func TestModelFilter(t *testing.T) {
	n := newNode(t)
	n.say("w", 1, gpu(0, "NVIDIA H200", values{"gpu_utilization": 60}), gpu(1, "NVIDIA H200 NVL", values{"gpu_utilization": 70}),
		gpu(2, "Tesla T4", values{"gpu_utilization": 99}))
	for model, want := range map[string]float64{"H200": 70, "h200": 70, "nvl": 70, "T4": 99, "tesla": 99, "NVIDIA H200": 70} {
		d, err := Evaluate(parse(t, metadata{"gpuModel": model}), n.Node(), at(1), staleAfter)
		require.NoError(t, err)
		assert.Equal(t, want, d.Value, model)
	}
}

// Another vendor's devices beside the GPUs: each trigger reads its own, and
// gpuIndex counts those of the vendor that has the metric.
func TestTwoVendors(t *testing.T) {
	n := newNode(t)
	n.say("nvmlsidecar", 1, h200(0), h200(1))
	n.say("acme", 1, wear(0, 12), wear(1, 31))
	for _, c := range []struct {
		md   metadata
		want float64
	}{
		{metadata{"metricType": "x_wear_percent"}, 31},
		{metadata{"metricType": "x_wear_percent", "aggregation": "min"}, 12},
		{metadata{"metricType": "x_wear_percent", "gpuIndex": "0"}, 12},
		{metadata{"metricType": "x_wear_percent", "gpuModel": "acme"}, 31},
		{metadata{"aggregation": "sum"}, 100},
		{metadata{"gpuIndex": "1"}, 50},
	} {
		d, err := Evaluate(parse(t, c.md), n.Node(), at(2), staleAfter)
		require.NoError(t, err, c.md)
		assert.Equal(t, c.want, d.Value, c.md)
	}
	_, err := Evaluate(parse(t, metadata{"gpuIndex": "2"}), n.Node(), at(2), staleAfter)
	assert.ErrorContains(t, err, "it has 2 GPUs (gpuIndex 0 to 1)")

	// One vendor's silence is no silence of the other.
	n.say("acme", 20, wear(0, 12), wear(1, 31))
	d, err := Evaluate(parse(t, metadata{"metricType": "x_wear_percent"}), n.Node(), at(20), staleAfter)
	require.NoError(t, err)
	assert.Equal(t, 31.0, d.Value)
	_, err = Evaluate(parse(t, nil), n.Node(), at(20), staleAfter)
	assert.EqualError(t, err, "node node-1: GPU 0 (NVIDIA H200): nothing heard for 19s, more than 10s")
}

// A reader that can read nothing explains why there are no GPUs, while another
// vendor's answers go on.
// A disk has a temperature too. It is no GPU: a built-in metric is NVIDIA's on
// a node that has such GPUs, unless gpuModel asks for something else.
func TestBuiltinMetricOfAnotherVendor(t *testing.T) {
	disk := snapshot.Device{ID: "ACME-0", Vendor: "acme", Model: "ACME Disk", Values: values{"temperature": 33}}
	n := newNode(t)
	n.say("acme", 1, disk)
	answer := func(md metadata, s float64) []string {
		t.Helper()
		md["metricType"] = "temperature"
		d, err := Evaluate(parse(t, md), n.Node(), at(s), staleAfter)
		require.NoError(t, err)
		return used(d)
	}
	assert.Equal(t, []string{"acme device 0=33"}, answer(metadata{}, 1), "alone it answers")
	n.say("nvidia's", 2, gpu(0, "NVIDIA H200", values{"temperature": 65}), gpu(1, "NVIDIA H200", values{"temperature": 66}))
	assert.Equal(t, []string{"GPU 0=65", "GPU 1=66"}, answer(metadata{"aggregation": "min"}, 2))
	assert.Equal(t, []string{"GPU 0=65"}, answer(metadata{"gpuIndex": "0"}, 2))
	assert.Equal(t, []string{"acme device 0=33"}, answer(metadata{"gpuModel": "disk"}, 2))
	assert.Equal(t, []string{"acme device 0=33"}, answer(metadata{"gpuModel": "disk", "gpuIndex": "0"}, 2))
	n.say("nvidia's", 20, gpu(0, "NVIDIA H200", values{"temperature": 65}))
	assert.Equal(t, []string{"GPU 0=65"}, answer(metadata{}, 20), "the disk is silent, which is no concern of the GPU's")

	// GPUs that were lost before they could be read are missing, not replaced.
	n.say("nvidia's", 21, lost(0, "GPU_IS_LOST"))
	n.say("acme", 21, disk)
	_, err := Evaluate(parse(t, metadata{"metricType": "temperature"}), n.Node(), at(21), staleAfter)
	assert.ErrorContains(t, err, "GPU_IS_LOST")
}

func TestBrokenReaderBesideAGoodOne(t *testing.T) {
	n := newNode(t)
	silent("no driver")(n)
	n.say("acme", 1, wear(0, 12))
	_, err := Evaluate(parse(t, nil), n.Node(), at(2), staleAfter)
	assert.EqualError(t, err, "node node-1: nvmlsidecar: no driver")
	d, err := Evaluate(parse(t, metadata{"metricType": "x_wear_percent"}), n.Node(), at(2), staleAfter)
	require.NoError(t, err)
	assert.Equal(t, 12.0, d.Value)
}

func TestStaleAtTheLimit(t *testing.T) {
	n := newNode(t)
	n.say("w", 1, h200(0))
	_, err := Evaluate(parse(t, nil), n.Node(), at(11), staleAfter)
	assert.NoError(t, err, "10 s old is not older than 10 s")
	_, err = Evaluate(parse(t, nil), n.Node(), at(11.001), staleAfter)
	assert.Error(t, err)
}

// A device that was lost before it was ever read may have any metric. It does
// not stand in the way of those that are known to have it.
func TestNeverRead(t *testing.T) {
	n := newNode(t)
	unread := wear(0, 0)
	unread.Values, unread.Error = nil, "BROKEN"
	n.say("acme", 1, unread)
	_, err := Evaluate(parse(t, metadata{"metricType": "x_wear_percent"}), n.Node(), at(1), staleAfter)
	assert.EqualError(t, err, "node node-1: x_wear_percent cannot be read: acme device 0 (Acme Flash): BROKEN")

	n.say("nvmlsidecar", 20, h200(0), h200(1)) // acme is silent by now
	d, err := Evaluate(parse(t, metadata{"gpuIndex": "1"}), n.Node(), at(20), staleAfter)
	require.NoError(t, err)
	assert.Equal(t, []string{"GPU 1=50"}, used(d))
	_, err = Evaluate(parse(t, metadata{"gpuIndex": "2"}), n.Node(), at(20), staleAfter)
	assert.ErrorContains(t, err, "it has 2 GPUs (gpuIndex 0 to 1)")

	mig := snapshot.Device{ID: "MIG-1", Vendor: "nvidia", Parent: "GPU-0", Instance: 1, Error: "UNKNOWN"}
	n.say("nvmlsidecar", 21, h200(0), mig)
	d, err = Evaluate(parse(t, metadata{"metricType": "temperature"}), n.Node(), at(21), staleAfter)
	require.NoError(t, err)
	assert.Equal(t, []string{"GPU 0=40"}, used(d), "the instance does not take the place of the GPU's own sensor")
	n.say("acme", 21, unread)
	_, err = Evaluate(parse(t, metadata{"metricType": "sm_activity"}), n.Node(), at(21), staleAfter)
	assert.EqualError(t, err, "node node-1: sm_activity cannot be read: GPU 0 MIG /1: UNKNOWN")
}
