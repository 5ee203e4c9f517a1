package fleet

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/shared/snapshot"
)

const staleAfter = 10 * time.Second

var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// at is s seconds after the node's start.
func at(s float64) time.Time { return epoch.Add(time.Duration(s * float64(time.Second))) }

func elapsed(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

type values = map[string]float64

func newLocal() *Local { return NewLocal("node-1", staleAfter, slog.New(slog.DiscardHandler), epoch) }

func gpu(index int, v values) snapshot.Device {
	return snapshot.Device{ID: fmt.Sprint("GPU-", index), Vendor: "nvidia", Model: "NVIDIA H200", Index: index, Values: v}
}

func lost(index int, reason string) snapshot.Device {
	d := gpu(index, nil)
	d.Error = reason
	return d
}

func wear(index int, percent float64) snapshot.Device {
	return snapshot.Device{ID: fmt.Sprint("ACME-", index), Vendor: "acme", Model: "Acme Flash", Index: index, Values: values{"x_wear_percent": percent}}
}

// apply feeds a sample taken at t by the writer's clock and arriving at now. It
// insists on what the decoder would have let through.
func apply(t testing.TB, s *Source, writer string, taken, now float64, devices ...snapshot.Device) error {
	t.Helper()
	sample := &snapshot.Sample{Writer: writer, Elapsed: elapsed(taken), Devices: devices}
	require.NoError(t, sample.Validate())
	return s.Apply(sample, at(now))
}

// say is apply for a writer whose clock began with the node's.
func say(t testing.TB, s *Source, now float64, devices ...snapshot.Device) {
	t.Helper()
	require.NoError(t, apply(t, s, "nvmlsidecar", now, now, devices...))
}

func public(t testing.TB, l *Local, id string) *Device {
	t.Helper()
	for _, d := range l.Node().Devices {
		if d.ID == id {
			return d
		}
	}
	require.Fail(t, "no device "+id)
	return nil
}

func value(t testing.TB, l *Local, id, metric string, w time.Duration) float64 {
	t.Helper()
	v, ok := public(t, l, id).Value(metric, w)
	require.True(t, ok, "%s has no %s", id, metric)
	return v
}

func ids(l *Local) string {
	var all []string
	for _, d := range l.Node().Devices {
		all = append(all, d.ID)
	}
	return strings.Join(all, " ")
}

func TestEmptyNode(t *testing.T) {
	n := newLocal().Node()
	require.NotNil(t, n)
	assert.Equal(t, &Node{Name: "node-1"}, n)
}

func TestTwoVendors(t *testing.T) {
	l := newLocal()
	nvml, acme := l.Connect(), l.Connect()
	say(t, nvml, 1, gpu(1, values{"gpu_utilization": 80}), gpu(0, values{"gpu_utilization": 60}))
	require.NoError(t, apply(t, acme, "acme", 500, 1.5, wear(0, 12)))
	assert.Equal(t, "ACME-0 GPU-0 GPU-1", ids(l), "by vendor, then by index")
	assert.Equal(t, at(1.5), l.Node().Heard)
	assert.Equal(t, []Writer{{Name: "nvmlsidecar", Heard: at(1)}, {Name: "acme", Heard: at(1.5)}}, l.Node().Writers)
	assert.Equal(t, "acme device 0", l.Node().Devices[0].String())

	// Neither touches the other's devices.
	say(t, nvml, 2, gpu(0, values{"gpu_utilization": 61}))
	assert.Equal(t, "ACME-0 GPU-0", ids(l))
	assert.Equal(t, 12.0, value(t, l, "ACME-0", "x_wear_percent", 0))
	assert.Equal(t, 60.5, value(t, l, "GPU-0", "gpu_utilization", 15*time.Second))
}

// Instances follow the GPU that they are part of.
func TestOrder(t *testing.T) {
	l := newLocal()
	mig := func(index, instance int) snapshot.Device {
		d := gpu(index, nil)
		d.ID, d.Parent, d.Instance, d.Profile = fmt.Sprintf("MIG-%d-%d", index, instance), d.ID, instance, "1g.18gb"
		return d
	}
	say(t, l.Connect(), 1, mig(1, 9), gpu(10, nil), gpu(1, nil), mig(1, 2), gpu(2, nil))
	assert.Equal(t, "GPU-1 MIG-1-2 MIG-1-9 GPU-2 GPU-10", ids(l))
	assert.Equal(t, "GPU 1 MIG 1g.18gb/9", l.Node().Devices[2].String())
}

func TestDeviceOfAnotherConnection(t *testing.T) {
	l := newLocal()
	first, second := l.Connect(), l.Connect()
	say(t, first, 1, gpu(0, values{"temperature": 40}))
	before := l.Node()

	err := apply(t, second, "impostor", 1, 2, gpu(0, values{"temperature": 99}), gpu(1, nil))
	assert.EqualError(t, err, `device "GPU-0" is reported by another connection (nvmlsidecar)`)
	assert.Same(t, before, l.Node(), "nothing of it is taken over")
	second.Close(at(2)) // was never one of the writers
	assert.Same(t, before, l.Node())

	// At the age limit the first still owns it; beyond it, it does not.
	second = l.Connect()
	require.Error(t, apply(t, second, "heir", 1, 11, gpu(0, nil)))
	require.NoError(t, apply(t, second, "heir", 2, 11.5, gpu(0, values{"temperature": 41})))
	require.Error(t, apply(t, first, "nvmlsidecar", 12, 12, gpu(0, nil)), "and now it is the first that is refused")
	first.Close(at(12))
	assert.Equal(t, 41.0, value(t, l, "GPU-0", "temperature", 0))
	assert.Equal(t, []Writer{{Name: "heir", Heard: at(11.5)}}, l.Node().Writers)
	require.NoError(t, apply(t, second, "heir", 3, 12.5, gpu(0, nil)), "closing the old one took nothing away")
}

func TestTakeoverKeepsHistory(t *testing.T) {
	l := newLocal()
	first := l.Connect()
	for s := range 5 {
		say(t, first, float64(s), gpu(0, values{"gpu_utilization": 10}))
	}
	first.Close(at(4.5))
	assert.Equal(t, 10.0, value(t, l, "GPU-0", "gpu_utilization", 0), "what is known stays known")
	assert.Equal(t, at(4), public(t, l, "GPU-0").Heard, "and grows old")
	assert.Empty(t, l.Node().Writers)

	second := l.Connect()
	require.NoError(t, apply(t, second, "nvmlsidecar", 0.1, 6, gpu(0, values{"gpu_utilization": 40})))
	assert.Equal(t, 40.0, value(t, l, "GPU-0", "gpu_utilization", 0))
	assert.Equal(t, (5*10.0+40)/6, value(t, l, "GPU-0", "gpu_utilization", 15*time.Second))
}

func TestDeviceGone(t *testing.T) {
	l := newLocal()
	s := l.Connect()
	say(t, s, 1, gpu(0, values{"temperature": 40}), gpu(1, nil))
	say(t, s, 2, gpu(1, nil))
	assert.Equal(t, "GPU-1", ids(l))
	say(t, s, 3)
	assert.Empty(t, ids(l))
	assert.Zero(t, l.weight)
	assert.Equal(t, at(3), l.Node().Heard)
}

// A reader that is restarted because the layout changed does not leave the old
// instances behind to go stale and to block the node.
func TestSuccessorWithOtherDevices(t *testing.T) {
	l := newLocal()
	first, acme := l.Connect(), l.Connect()
	say(t, first, 1, gpu(0, nil), gpu(1, nil))
	require.NoError(t, apply(t, acme, "acme", 1, 1, wear(0, 1)))
	first.Close(at(2))

	require.NoError(t, apply(t, acme, "acme", 2, 2, wear(0, 1)))
	assert.Equal(t, "ACME-0 GPU-0 GPU-1", ids(l), "others say nothing about them")

	second := l.Connect()
	require.NoError(t, second.Apply(&snapshot.Sample{Writer: "nvmlsidecar", Elapsed: 1, Error: "no driver"}, at(3)))
	assert.Equal(t, "ACME-0 GPU-0 GPU-1", ids(l), "who cannot read says nothing about them")
	require.NoError(t, apply(t, second, "nvmlsidecar", 2, 4, gpu(1, nil), gpu(2, nil)))
	assert.Equal(t, "ACME-0 GPU-1 GPU-2", ids(l))
	assert.NoError(t, l.Node().Ready(at(11), staleAfter))

	// A nameless writer inherits nothing.
	nameless := l.Connect()
	require.NoError(t, apply(t, nameless, "", 1, 5, gpu(7, nil)))
	nameless.Close(at(5))
	require.NoError(t, apply(t, l.Connect(), "", 1, 6, gpu(8, nil)))
	assert.Equal(t, "ACME-0 GPU-1 GPU-2 GPU-7 GPU-8", ids(l))
}

func TestForgetAfter(t *testing.T) {
	l := newLocal()
	nvml, acme := l.Connect(), l.Connect()
	say(t, nvml, 1, gpu(0, values{"temperature": 40}))
	nvml.Close(at(2))
	require.NoError(t, apply(t, acme, "acme", 86401, 86401, wear(0, 1)))
	assert.Equal(t, "ACME-0 GPU-0", ids(l))
	require.NoError(t, apply(t, acme, "acme", 86402, 86402, wear(0, 1)))
	assert.Equal(t, "ACME-0", ids(l))
	assert.Equal(t, 2, l.weight)

	// A device whose writer still lives is never forgotten, however silent.
	silent := l.Connect()
	require.NoError(t, apply(t, silent, "nvmlsidecar", 1, 86500, gpu(0, nil)))
	require.NoError(t, apply(t, acme, "acme", 200000, 200000, wear(0, 1)))
	assert.Equal(t, "ACME-0 GPU-0", ids(l))
}

func TestLostDevice(t *testing.T) {
	l := newLocal()
	s := l.Connect()
	say(t, s, 1, gpu(0, values{"temperature": 40}), gpu(1, values{"temperature": 50, "power_draw": 300}))
	say(t, s, 2, gpu(0, values{"temperature": 40}), lost(1, "GPU_IS_LOST"))

	d := public(t, l, "GPU-1")
	assert.Equal(t, "GPU-0 GPU-1", ids(l), "it keeps its place")
	assert.Equal(t, "GPU_IS_LOST", d.Error)
	assert.Equal(t, at(2), d.Heard, "that it is lost is news, not silence")
	assert.Zero(t, d.Means().Len())
	_, ok := d.Value("temperature", 0)
	assert.False(t, ok)
	for _, metric := range []string{"temperature", "power_draw"} {
		assert.True(t, d.MayHave(metric), "%s was known", metric)
		reason, failed := d.Failure(metric)
		assert.True(t, failed)
		assert.Equal(t, "GPU_IS_LOST", reason)
	}
	assert.False(t, d.MayHave("sm_activity"), "it never had this one")
	assert.EqualValues(t, 2, l.Node().LeftOut, "one for each metric that is not there")

	say(t, s, 3, gpu(0, values{"temperature": 40}), lost(1, "GPU_IS_LOST"))
	assert.True(t, public(t, l, "GPU-1").MayHave("power_draw"), "known for as long as it is lost")

	say(t, s, 4, gpu(0, values{"temperature": 40}), gpu(1, values{"temperature": 60, "power_draw": 100}))
	assert.Empty(t, public(t, l, "GPU-1").Error)
	assert.Equal(t, 55.0, value(t, l, "GPU-1", "temperature", 15*time.Second), "its history goes on")

	say(t, s, 5, lost(2, "GPU_IS_LOST"))
	d = public(t, l, "GPU-2")
	assert.True(t, d.MayHave("sm_activity"), "a device that was never read may have anything")
}

func TestFailedMetric(t *testing.T) {
	l := newLocal()
	s := l.Connect()
	say(t, s, 1, gpu(0, values{"temperature": 40, "power_draw": 300}))
	failing := gpu(0, values{"temperature": 40})
	failing.Failed = map[string]string{"power_draw": "UNKNOWN"}
	say(t, s, 2, failing)
	d := public(t, l, "GPU-0")
	_, ok := d.Value("power_draw", 15*time.Second)
	assert.False(t, ok, "a value that cannot be read now is not told from memory")
	reason, failed := d.Failure("power_draw")
	assert.True(t, failed)
	assert.Equal(t, "UNKNOWN", reason)
	_, failed = d.Failure("temperature")
	assert.False(t, failed)
	assert.EqualValues(t, 1, l.Node().LeftOut)

	say(t, s, 3, gpu(0, values{"temperature": 40, "power_draw": 100}))
	assert.Equal(t, 200.0, value(t, l, "GPU-0", "power_draw", 15*time.Second), "failing keeps the history")
	say(t, s, 4, gpu(0, values{"temperature": 40}))
	assert.False(t, public(t, l, "GPU-0").MayHave("power_draw"))
	say(t, s, 5, gpu(0, values{"temperature": 40, "power_draw": 50}))
	assert.Equal(t, 50.0, value(t, l, "GPU-0", "power_draw", 15*time.Second), "absence ends it")
}

func TestWholeSampleError(t *testing.T) {
	l := newLocal()
	s, acme := l.Connect(), l.Connect()
	require.NoError(t, apply(t, acme, "acme", 1, 1, wear(0, 1)))
	say(t, s, 1, gpu(0, values{"temperature": 40}), gpu(1, nil))
	failed := &snapshot.Sample{Writer: "nvmlsidecar", Elapsed: elapsed(2), Error: "driver not loaded"}
	require.NoError(t, s.Apply(failed, at(2)))
	assert.Equal(t, "ACME-0 GPU-0 GPU-1", ids(l))
	for _, id := range []string{"GPU-0", "GPU-1"} {
		assert.Equal(t, "driver not loaded", public(t, l, id).Error)
		assert.Equal(t, at(2), public(t, l, id).Heard)
	}
	assert.Empty(t, public(t, l, "ACME-0").Error)
	assert.Equal(t, "driver not loaded", l.Node().Writers[1].Error)

	say(t, s, 3, gpu(0, values{"temperature": 50}), gpu(1, nil))
	assert.Equal(t, 45.0, value(t, l, "GPU-0", "temperature", 15*time.Second))
	assert.Empty(t, l.Node().Writers[1].Error)
}

// Published state never changes: whoever holds a Node may read it for ever.
func TestNodeIsImmutable(t *testing.T) {
	l := newLocal()
	s := l.Connect()
	say(t, s, 1, gpu(0, values{"temperature": 40}))
	old := l.Node()
	say(t, s, 2, gpu(0, values{"temperature": 90}))
	say(t, s, 3, lost(0, "GPU_IS_LOST"))
	say(t, s, 4)
	require.Len(t, old.Devices, 1)
	v, ok := old.Devices[0].Value("temperature", time.Minute)
	assert.True(t, ok)
	assert.Equal(t, 40.0, v)
	assert.Empty(t, old.Devices[0].Error)
	_, ok = old.Devices[0].Value("temperature", time.Second)
	assert.False(t, ok, "no such window")
}
