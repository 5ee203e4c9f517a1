package fleet

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/shared/fixture"
	"gpuscaler/shared/snapshot"
)

// counting is a GPU with counters beside its values.
func counting(v, counters values) snapshot.Device {
	d := gpu(0, v)
	d.Counters = counters
	return d
}

func TestPowerFromTheEnergyCounter(t *testing.T) {
	l := newLocal()
	s := l.Connect()
	// The samples miss a peak that the counter has: 500 W on average, not 100.
	for i := range 5 {
		say(t, s, float64(i), counting(values{"power_draw": 100}, values{"energy_joules": 1000 + 500*float64(i)}))
		if i == 0 {
			assert.Equal(t, 100.0, value(t, l, "GPU-0", "power_draw", 15*time.Second), "one reading of a counter says nothing")
		}
	}
	assert.Equal(t, 100.0, value(t, l, "GPU-0", "power_draw", 0), "the last sample is the driver's own figure")
	for _, w := range []time.Duration{15 * time.Second, time.Minute, 5 * time.Minute} {
		assert.Equal(t, 500.0, value(t, l, "GPU-0", "power_draw", w), w)
	}
}

func TestPowerFromSamples(t *testing.T) {
	for name, counters := range map[string]func(i int) values{
		"no counter":        func(int) values { return nil },
		"a counter at rest": func(int) values { return values{"energy_joules": 7} },
		"a counter at zero": func(int) values { return values{"energy_joules": 0} },
		"a counter that is reset each time": func(i int) values {
			return values{"energy_joules": float64(1000 - i)}
		},
		"a counter that jumps beyond any power": func(i int) values { return values{"energy_joules": 1e9 * float64(i*i)} },
	} {
		l := newLocal()
		s := l.Connect()
		for i := range 5 {
			say(t, s, float64(i), counting(values{"power_draw": float64(100 * i)}, counters(i)))
		}
		assert.Equal(t, 400.0, value(t, l, "GPU-0", "power_draw", 0), name)
		assert.Equal(t, 200.0, value(t, l, "GPU-0", "power_draw", 15*time.Second), name)
	}
}

func TestPowerOfADeviceWithoutSamples(t *testing.T) {
	l := newLocal()
	s := l.Connect()
	for i := range 3 {
		say(t, s, float64(i), counting(nil, values{"energy_joules": float64(i)}))
	}
	assert.False(t, public(t, l, "GPU-0").MayHave("power_draw"), "the counter only refines the metric")
}

func TestFailedPowerIsNotTakenFromTheCounter(t *testing.T) {
	l := newLocal()
	s := l.Connect()
	for i := range 3 {
		d := counting(nil, values{"energy_joules": float64(i)})
		d.Failed = map[string]string{"power_draw": "UNKNOWN"}
		say(t, s, float64(i), d)
	}
	_, ok := public(t, l, "GPU-0").Value("power_draw", 15*time.Second)
	assert.False(t, ok)
}

func TestNVLink(t *testing.T) {
	l := newLocal()
	s := l.Connect()
	nvlink := func(now, tx, rx float64) {
		t.Helper()
		say(t, s, now, counting(nil, values{"nvlink_tx_bytes": tx, "nvlink_rx_bytes": rx}))
	}
	nvlink(1, 9e15, 9e15)
	d := public(t, l, "GPU-0")
	_, ok := d.Value("nvlink_tx_mbps", 0)
	assert.False(t, ok)
	assert.True(t, d.MayHave("nvlink_tx_mbps"), "pending is not unsupported")
	reason, failed := d.Failure("nvlink_tx_mbps")
	assert.True(t, failed)
	assert.Equal(t, "a rate needs two readings", reason)

	nvlink(2, 9e15+50e6, 9e15)
	assert.Equal(t, 50.0, value(t, l, "GPU-0", "nvlink_tx_mbps", 0))
	assert.Equal(t, 0.0, value(t, l, "GPU-0", "nvlink_rx_mbps", 0), "a link at rest stands at 0")
	nvlink(3, 9e15+50e6, 9e15)
	assert.Equal(t, 0.0, value(t, l, "GPU-0", "nvlink_tx_mbps", 0))
	assert.Equal(t, 25.0, value(t, l, "GPU-0", "nvlink_tx_mbps", 15*time.Second))

	// A reset, and a jump that no link can make, begin anew and are never a rate.
	nvlink(4, 100e6, 9e15)
	_, ok = public(t, l, "GPU-0").Value("nvlink_tx_mbps", 15*time.Second)
	assert.False(t, ok)
	assert.Equal(t, 0.0, value(t, l, "GPU-0", "nvlink_rx_mbps", 0), "the other goes on")
	nvlink(5, 4e18, 9e15)
	_, ok = public(t, l, "GPU-0").Value("nvlink_tx_mbps", 15*time.Second)
	assert.False(t, ok)
	nvlink(6, 4e18+1024e6, 9e15)
	assert.Equal(t, 1024.0, value(t, l, "GPU-0", "nvlink_tx_mbps", 15*time.Second))

	// While it cannot be read its history waits.
	failing := counting(nil, values{"nvlink_rx_bytes": 9e15})
	failing.Failed = map[string]string{"nvlink_tx_mbps": "UNKNOWN"}
	say(t, s, 7, failing)
	reason, _ = public(t, l, "GPU-0").Failure("nvlink_tx_mbps")
	assert.Equal(t, "UNKNOWN", reason)
	nvlink(8, 4e18+3*1024e6, 9e15)
	assert.Equal(t, 1024.0, value(t, l, "GPU-0", "nvlink_tx_mbps", 0))

	// Without the counters there is no such metric, and no memory of it.
	say(t, s, 9, gpu(0, values{"temperature": 1}))
	assert.False(t, public(t, l, "GPU-0").MayHave("nvlink_tx_mbps"))
	assert.Equal(t, 2, l.weight)
}

// A recorded node that loses a GPU, from its first sample to its last.
func TestFixtureThatLosesAGPU(t *testing.T) {
	f, err := fixture.Load("../../testdata/gpu-lost.csv")
	require.NoError(t, err)
	l := newLocal()
	s := l.Connect()
	for n := range f.Samples {
		sample := f.At(n)
		require.NoError(t, s.Apply(&sample, epoch.Add(sample.Elapsed)))
		require.Len(t, l.Node().Devices, 4)
		lostNow := n >= 60 && n < 150
		require.Equal(t, lostNow, l.Node().Devices[2].Error != "", "at %d s", n)
		_, readable := l.Node().Devices[1].Value("power_draw", 15*time.Second)
		require.Equal(t, n < 30 || n > 35, readable, "at %d s", n)
		require.NoError(t, l.Node().Ready(epoch.Add(sample.Elapsed), staleAfter))
	}
}

func TestReady(t *testing.T) {
	broken := func(reason string) func(t *testing.T, l *Local) {
		return func(t *testing.T, l *Local) {
			s := l.Connect()
			require.NoError(t, s.Apply(&snapshot.Sample{Writer: "nvmlsidecar", Elapsed: elapsed(1), Error: reason}, at(1)))
		}
	}
	for name, c := range map[string]struct {
		given func(t *testing.T, l *Local)
		now   float64
		want  string
	}{
		"nothing yet": {func(*testing.T, *Local) {}, 1, "node node-1: nothing heard yet from any reader"},
		"fresh":       {func(t *testing.T, l *Local) { say(t, l.Connect(), 1, gpu(0, nil)) }, 11, ""},
		"stale":       {func(t *testing.T, l *Local) { say(t, l.Connect(), 1, gpu(0, nil)) }, 11.1, "node node-1: nothing heard for 10.1s"},
		"stale for long": {func(t *testing.T, l *Local) { say(t, l.Connect(), 1, gpu(0, nil)) }, 91,
			"node node-1: nothing heard for 1m30s"},
		"one of two readers silent": {func(t *testing.T, l *Local) {
			say(t, l.Connect(), 1, gpu(0, nil))
			require.NoError(t, apply(t, l.Connect(), "acme", 1, 20, wear(0, 1)))
		}, 20, ""},
		"all devices silent beside a reader without any": {func(t *testing.T, l *Local) {
			say(t, l.Connect(), 1, gpu(0, nil))
			require.NoError(t, apply(t, l.Connect(), "acme", 1, 20))
		}, 20, "node node-1: GPU 0: nothing heard for 19s"},
		"some lost": {func(t *testing.T, l *Local) { say(t, l.Connect(), 1, lost(0, "GPU_IS_LOST"), gpu(1, nil)) }, 1, ""},
		"all lost": {func(t *testing.T, l *Local) { say(t, l.Connect(), 1, lost(0, "GPU_IS_LOST"), lost(1, "X")) }, 1,
			"node node-1: GPU 0: GPU_IS_LOST"},
		"a reader that can read nothing":             {broken("no driver"), 1, "node node-1: nvmlsidecar: no driver"},
		"a reader that could read nothing, long ago": {broken("no driver"), 30, "node node-1: nothing heard for 29s"},
		"none that it may open": {func(t *testing.T, l *Local) {
			require.NoError(t, l.Connect().Apply(&snapshot.Sample{Writer: "nvmlsidecar", Refused: 2}, at(1)))
		}, 1, "node node-1: no devices, and 2 that nvmlsidecar may not open"},
		"no devices":       {func(t *testing.T, l *Local) { say(t, l.Connect(), 1) }, 1, "node node-1: no devices"},
		"no devices, long": {func(t *testing.T, l *Local) { say(t, l.Connect(), 1) }, 30, "node node-1: nothing heard for 29s"},
		"reader gone": {func(t *testing.T, l *Local) {
			s := l.Connect()
			say(t, s, 1, gpu(0, nil))
			s.Close(at(2))
		}, 12, "node node-1: nothing heard for 11s"},
		"devices of a reader that then failed": {func(t *testing.T, l *Local) {
			s := l.Connect()
			say(t, s, 1, gpu(0, nil))
			require.NoError(t, s.Apply(&snapshot.Sample{Writer: "w", Elapsed: elapsed(2), Error: "driver gone"}, at(2)))
		}, 2, "node node-1: GPU 0: driver gone"},
	} {
		l := newLocal()
		c.given(t, l)
		err := l.Node().Ready(at(c.now), staleAfter)
		if c.want == "" {
			assert.NoError(t, err, name)
		} else {
			assert.EqualError(t, err, c.want, name)
		}
	}
}
