package exporter

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"gpuscaler/shared/snapshot"
)

func TestHealth(t *testing.T) {
	l := newLab(t)
	a := snapshot.Device{
		ID: "GPU-a", Vendor: "nvidia", Model: "H200", States: map[string]bool{snapshot.RowRemapPending: true, snapshot.RowRemapFailed: false},
		Counters: map[string]float64{"ecc_corrected_errors": 7, "ecc_uncorrected_errors": 1, "xid_errors": 4, "xid_13": 2, "xid_79": 1},
	}
	snapshot.Throttled(a.States, 0x40)
	old := snapshot.Device{ID: "GPU-old", Vendor: "nvidia", Index: 1, Values: map[string]float64{"temperature": 40}}
	l.say(58*time.Second, a, old)
	l.say(59*time.Second, a, old)
	check := func(want map[string]float64) {
		t.Helper()
		all := l.families()
		for _, family := range []string{"throttled", "throttled_seconds_total", "row_remap_pending", "row_remap_failed", "ecc_errors_total", "xid_errors_total", "xids_total"} {
			f := all["gpuscaler_gpu_"+family]
			_, series := sum(f, "uuid", "GPU-old")
			assert.Zero(t, series, "what a device does not tell of is no zero: %s", family)
			for _, label := range []string{"hw_thermal", "sw_power_cap", "corrected", "uncorrected", "application", "device", "79"} {
				for _, name := range []string{"reason", "type", "cause", "xid"} {
					if n, series := sum(f, "uuid", "GPU-a", "node", "node-1", name, label); series > 0 {
						assert.InDelta(t, want[family+" "+label], n, 1e-6, "%s %s", family, label)
						delete(want, family+" "+label)
					}
				}
			}
			if n, series := sum(f, "uuid", "GPU-a"); series == 1 {
				if wanted, ok := want[family]; ok {
					assert.InDelta(t, wanted, n, 0, family)
					delete(want, family)
				}
			}
		}
		assert.Empty(t, want, "not there")
	}
	check(map[string]float64{
		"throttled hw_thermal": 1, "throttled sw_power_cap": 0, "throttled_seconds_total hw_thermal": 1, "throttled_seconds_total sw_power_cap": 0,
		"row_remap_pending": 1, "row_remap_failed": 0, "ecc_errors_total corrected": 7, "ecc_errors_total uncorrected": 1,
		"xid_errors_total application": 2, "xid_errors_total device": 2, "xids_total 79": 1,
	})

	a.States, a.Error = nil, "GPU_IS_LOST"
	a.Counters = map[string]float64{"xid_errors": 5, "xid_13": 2, "xid_79": 2}
	l.say(60*time.Second, a, old)
	check(map[string]float64{ // its last word, and no state
		"throttled_seconds_total hw_thermal": 1, "throttled_seconds_total sw_power_cap": 0, "ecc_errors_total corrected": 7, "ecc_errors_total uncorrected": 1,
		"xid_errors_total application": 2, "xid_errors_total device": 3, "xids_total 79": 2,
	})
}
