package fleet

import (
	"log/slog"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/shared/snapshot"
)

func TestHealth(t *testing.T) {
	start := time.Now()
	l := NewLocal("node-1", 10*time.Second, slog.New(slog.DiscardHandler), start)
	reader := l.Connect()
	say := func(second int, d snapshot.Device) *Health {
		d.ID, d.Vendor = "GPU-a", "nvidia"
		at := time.Duration(second) * time.Second
		require.NoError(t, reader.Apply(&snapshot.Sample{Writer: "w", Elapsed: at, Devices: []snapshot.Device{d}}, start.Add(at)))
		return l.node.Load().Device("GPU-a").Health
	}
	throttled := func(bits uint64) map[string]bool {
		states := map[string]bool{}
		snapshot.Throttled(states, bits)
		return states
	}
	seconds := func(h *Health) (s [5]float64) {
		for i, units := range h.Throttled {
			s[i] = float64(units) / Fine
		}
		return s
	}
	h := say(1, snapshot.Device{Values: map[string]float64{"temperature": 40}})
	assert.Empty(t, h.States)
	assert.Empty(t, h.Errors)
	assert.False(t, h.HasThrottled, "it does not tell of any")

	// A reading stands for the time since the one before.
	h = say(2, snapshot.Device{States: throttled(0x4), Counters: map[string]float64{
		"energy_joules": 1, "ecc_corrected_errors": 2, "ecc_uncorrected_errors": 0, "xid_errors": 0, "x_other": 5,
	}})
	assert.True(t, h.HasThrottled)
	assert.Equal(t, [5]float64{}, seconds(h))
	assert.Equal(t, map[string]float64{"ecc_corrected_errors": 2, "ecc_uncorrected_errors": 0, "xid_errors": 0}, h.Errors)
	h = say(4, snapshot.Device{States: throttled(0x4 | 0x40 | 0x1)})
	assert.Equal(t, [5]float64{2, 0, 0, 2, 0}, seconds(h))
	h = say(5, snapshot.Device{States: throttled(0)})
	assert.Equal(t, [5]float64{2, 0, 0, 2, 0}, seconds(h))
	assert.Empty(t, h.Errors, "it tells of them no more")

	// Lost with an XID: that counts, what it told before stays, and the time is not
	// throttled time.
	say(6, snapshot.Device{States: throttled(0x8), Counters: map[string]float64{"ecc_uncorrected_errors": 1, "xid_errors": 0}})
	h = say(7, snapshot.Device{Error: "GPU_IS_LOST", Counters: map[string]float64{"xid_errors": 1, "xid_79": 1}})
	assert.Empty(t, h.States)
	assert.Equal(t, map[string]float64{"ecc_uncorrected_errors": 1, "xid_errors": 1, "xid_79": 1}, h.Errors)
	assert.Equal(t, [5]float64{2, 1, 0, 2, 0}, seconds(h))
	h = say(60, snapshot.Device{States: throttled(0x8)})
	assert.Equal(t, [5]float64{2, 1, 0, 2, 0}, seconds(h), "nothing is known of a gap")
	h = say(61, snapshot.Device{States: throttled(0x8)})
	assert.Equal(t, [5]float64{2, 2, 0, 2, 0}, seconds(h))
}
