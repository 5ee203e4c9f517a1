package main

import (
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/shared/fixture"
	"gpuscaler/shared/snapshot"
)

func load(t *testing.T, name string) *fixture.Fixture {
	t.Helper()
	if !strings.Contains(name, "/") {
		name = filepath.Join("..", "testdata", name)
	}
	f, err := fixture.Load(name)
	require.NoError(t, err)
	return f
}

// same compares what was played with what was read: through NVML's units,
// which are milliwatts, millijoules, bytes and KiB.
func same(t *testing.T, want, got []snapshot.Device) {
	t.Helper()
	require.Len(t, got, len(want))
	for i := range want {
		w, g := want[i], got[i]
		assert.Equal(t, w.ID, g.ID)
		assert.Equal(t, "nvidia", g.Vendor)
		assert.Equal(t, w.Index, g.Index)
		assert.Equal(t, w.Parent, g.Parent)
		assert.Equal(t, w.Instance, g.Instance)
		assert.Equal(t, w.Profile, g.Profile)
		assert.Equal(t, w.Model, g.Model)
		assert.InDelta(t, w.MemoryTotalMiB, g.MemoryTotalMiB, 1e-3)
		assert.InDelta(t, w.MemoryReservedMiB, g.MemoryReservedMiB, 1e-3)
		assert.Equal(t, w.Error, g.Error)
		assert.Equal(t, slices.Sorted(maps.Keys(w.Failed)), slices.Sorted(maps.Keys(g.Failed)), "failures of %s", w.ID)
		assert.Equal(t, slices.Sorted(maps.Keys(w.Values)), slices.Sorted(maps.Keys(g.Values)), "values of %s", w.ID)
		for metric, v := range w.Values {
			assert.InDelta(t, v, g.Values[metric], 1e-3, "%s of %s", metric, w.ID)
		}
		assert.Equal(t, slices.Sorted(maps.Keys(w.Counters)), slices.Sorted(maps.Keys(g.Counters)), "counters of %s", w.ID)
		for counter, v := range w.Counters {
			within := 1024.0
			if counter == "energy_joules" {
				within = 1e-3
			}
			assert.InDelta(t, v, g.Counters[counter], within, "%s of %s", counter, w.ID)
		}
		assert.Empty(t, g.Processes, "nobody uses them, and some drivers write past their end")
	}
}

// TestReadsWhatIsPlayed: every metric of every kind of GPU, and nothing that
// the GPU does not have.
func TestReadsWhatIsPlayed(t *testing.T) {
	t.Parallel()
	gpm := []string{"sm_activity", "sm_occupancy", "tensor_activity", "dram_activity"}
	for _, c := range []struct {
		fixture, at         string
		sample, device      int
		values, counters    []string
		lacks, lacksCounter []string
	}{
		{fixture: "h100x8-uneven.csv", at: "time 3", sample: 3, device: 7,
			values: append([]string{"gpu_utilization", "memory_utilization", "memory_used_percent", "memory_used_mib", "temperature",
				"power_draw", "pcie_tx_kbps", "pcie_rx_kbps", "encoder_utilization", "decoder_utilization"}, gpm...),
			counters: []string{"energy_joules", "nvlink_tx_bytes", "nvlink_rx_bytes"}},
		{fixture: "h200-llm.csv", at: "time 20", sample: 20, values: gpm,
			counters: []string{"energy_joules"}, lacksCounter: []string{"nvlink_tx_bytes", "nvlink_rx_bytes"}},
		{fixture: "t4.csv", at: "time 5", sample: 5, values: []string{"gpu_utilization", "encoder_utilization", "pcie_rx_kbps"},
			lacks: gpm, lacksCounter: []string{"energy_joules", "nvlink_tx_bytes", "nvlink_rx_bytes"}},
		{fixture: "h200-mig.csv", at: "time 0", values: []string{"temperature", "power_draw", "memory_used_percent"},
			lacks: append([]string{"gpu_utilization"}, gpm...)},
		{fixture: "h200-mig.csv", at: "time 80", sample: 80, device: 2, values: append([]string{"gpu_utilization", "memory_used_mib"}, gpm...),
			lacks: []string{"temperature", "power_draw", "pcie_tx_kbps"}, lacksCounter: []string{"energy_joules"}},
		{fixture: "hundred.csv", at: "time 1", sample: 1, device: 99, values: []string{"gpu_utilization"}, lacks: []string{"pcie_tx_kbps"}},
	} {
		t.Run(c.fixture+" "+c.at, func(t *testing.T) {
			t.Parallel()
			run := start(t, setup{fixture: c.fixture, faults: []string{c.at}, args: []string{"--interval", "300ms"}})
			want := load(t, c.fixture).Samples[c.sample].Devices
			got := run.wait(15*time.Second, "all readings", complete)
			assert.Equal(t, "nvmlsidecar", got.Writer)
			assert.Equal(t, "v-test", got.Version)
			same(t, want, got.Devices)
			// The fixture itself must show what this is about.
			d := got.Devices[c.device]
			for _, metric := range c.values {
				assert.Contains(t, d.Values, metric)
			}
			for _, metric := range c.lacks {
				assert.NotContains(t, d.Values, metric)
			}
			for _, counter := range c.counters {
				assert.Contains(t, d.Counters, counter)
			}
			for _, counter := range c.lacksCounter {
				assert.NotContains(t, d.Counters, counter)
			}
			run.terminate()
		})
	}
}

// TestMemoryOfAnOldDriver: version 1 counts what is reserved as used.
func TestMemoryOfAnOldDriver(t *testing.T) {
	t.Parallel()
	want := load(t, "h200-llm.csv").Samples[0].Devices[0]
	reserved, total := want.MemoryReservedMiB, want.MemoryTotalMiB
	require.Positive(t, reserved)
	used := want.Values["memory_used_mib"] + reserved
	run := start(t, setup{fixture: "h200-llm.csv", faults: []string{"time 0"}, absent: []string{"nvmlDeviceGetMemoryInfo_v2"}})
	d := run.wait(10*time.Second, "a GPU", healthy(1)).Devices[0]
	assert.InDelta(t, used, d.Values["memory_used_mib"], 1e-3)
	assert.InDelta(t, 100*used/total, d.Values["memory_used_percent"], 1e-3)
	assert.InDelta(t, total, d.MemoryTotalMiB, 1e-3)
	assert.Zero(t, d.MemoryReservedMiB)
}

// optional are the functions that a driver may lack, and what is missing then.
var optional = map[string][]string{
	"nvmlInit_v2":                               nil,
	"nvmlDeviceGetCount_v2":                     nil,
	"nvmlDeviceGetHandleByIndex_v2":             nil,
	"nvmlDeviceGetMemoryInfo_v2":                nil,
	"nvmlDeviceGetMemoryInfo":                   nil,
	"nvmlDeviceGetMigMode":                      nil,
	"nvmlDeviceGetMigDeviceHandleByIndex":       nil,
	"nvmlDeviceGetMaxMigDeviceCount":            nil,
	"nvmlDeviceGetGpuInstanceId":                nil,
	"nvmlDeviceGetUtilizationRates":             {"gpu_utilization", "memory_utilization"},
	"nvmlDeviceGetTemperature":                  nil,
	"nvmlDeviceGetTemperatureV":                 nil,
	"nvmlDeviceGetPowerUsage":                   {"power_draw"},
	"nvmlDeviceGetTotalEnergyConsumption":       {"energy_joules"},
	"nvmlDeviceGetFieldValues":                  {"nvlink_tx_bytes", "nvlink_rx_bytes", "ecc_corrected_errors", "ecc_uncorrected_errors"},
	"nvmlDeviceGetEncoderUtilization":           {"encoder_utilization"},
	"nvmlDeviceGetDecoderUtilization":           {"decoder_utilization"},
	"nvmlDeviceGetPcieThroughput":               {"pcie_tx_kbps", "pcie_rx_kbps"},
	"nvmlDeviceGetCurrentClocksEventReasons":    nil,
	"nvmlDeviceGetCurrentClocksThrottleReasons": nil,
	"nvmlEventSetCreate":                        {"xid_errors"},
	"nvmlEventSetFree":                          {"xid_errors"},
	"nvmlDeviceGetSupportedEventTypes":          {"xid_errors"},
	"nvmlDeviceRegisterEvents":                  {"xid_errors"},
	"nvmlEventSetWait_v2":                       nil,
	"nvmlEventSetWait":                          nil,
	"nvmlGpmQueryDeviceSupport":                 gpmMetrics,
	"nvmlGpmQueryIfStreamingEnabled":            nil,
	"nvmlGpmSampleAlloc":                        gpmMetrics,
	"nvmlGpmSampleFree":                         gpmMetrics,
	"nvmlGpmSampleGet":                          gpmMetrics,
	"nvmlGpmMigSampleGet":                       gpmMetrics,
	"nvmlGpmMetricsGet":                         gpmMetrics,
}

var gpmMetrics = []string{"sm_activity", "sm_occupancy", "tensor_activity", "dram_activity"}

// TestOldDrivers: calling a function that is not there would end the process
// with "symbol lookup error".
func TestOldDrivers(t *testing.T) {
	t.Parallel()
	played := load(t, "h100x8-uneven.csv").Samples[0].Devices[0]
	sets := map[string][]string{"all at once": slices.Collect(maps.Keys(optional))}
	for name := range optional {
		sets[name] = []string{name}
	}
	for name, absent := range sets {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// One reading of a node in MIG mode too: it calls more functions.
			mig := start(t, setup{fixture: "h200-mig.csv", absent: absent, no: true, args: []string{"--once", "--interval", "200ms"}})
			run := start(t, setup{fixture: "h100x8-uneven.csv", faults: []string{"time 0"}, absent: absent, args: []string{"--interval", "400ms"}})
			got := run.wait(15*time.Second, "eight GPUs", healthy(8))
			want := slices.Collect(maps.Keys(played.Values))
			want = slices.AppendSeq(want, maps.Keys(played.Counters))
			missing := map[string]bool{}
			for _, function := range absent {
				for _, metric := range optional[function] {
					missing[metric] = true
				}
			}
			if len(absent) > 1 { // both calls for memory, and for the temperature
				missing["memory_used_mib"], missing["memory_used_percent"] = true, true
				missing["temperature"] = true
			}
			want = slices.DeleteFunc(want, func(metric string) bool { return missing[metric] })
			for _, d := range got.Devices {
				have := slices.Collect(maps.Keys(d.Values))
				have = slices.AppendSeq(have, maps.Keys(d.Counters))
				assert.ElementsMatch(t, want, have)
			}
			assert.NotEmpty(t, got.Devices[7].ID)
			run.terminate()
			assert.Equal(t, 0, mig.end(10*time.Second), mig.log.String())
		})
	}
}
