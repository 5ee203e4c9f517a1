package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/shared/snapshot"
)

// states are those of GPU 1.
func states(want map[string]bool) func(*snapshot.Sample) bool {
	return func(s *snapshot.Sample) bool {
		for name, on := range want {
			if has, told := s.Devices[1].States[name]; !told || has != on {
				return false
			}
		}
		return len(s.Devices) == 8 && len(s.Devices[0].States) == len(snapshot.Throttles)+2
	}
}

func TestStates(t *testing.T) {
	t.Parallel()
	run := start(t, setup{fixture: "h100x8-uneven.csv", faults: []string{"time 0"}, args: []string{"--interval", "200ms"}})
	run.wait(10*time.Second, "nothing wrong", states(map[string]bool{"throttled_hw_thermal": false, "row_remap_pending": false}))
	run.faults("time 0", "set 1 clock_events 72", "set 1 rows_failed 1", "set 1 ecc_uncorrected_errors 5")
	got := run.wait(promised, "too hot", states(map[string]bool{
		"throttled_hw_thermal": true, "throttled_hw_slowdown": true, "throttled_sw_power_cap": false, "row_remap_failed": true,
	}))
	assert.InDelta(t, 5, got.Devices[1].Counters[snapshot.ECCUncorrected], 0)
	assert.InDelta(t, 0, got.Devices[0].Counters[snapshot.ECCUncorrected], 0)
	assert.False(t, got.Devices[0].States["throttled_hw_thermal"])
	// Idle clocks and those that somebody has set are no throttling.
	run.faults("time 0", "set 1 clock_events 3")
	run.wait(promised, "idle", states(map[string]bool{"throttled_hw_thermal": false, "throttled_sw_power_cap": false}))
	// What cannot be told, for whatever reason, is left out, and costs no metric.
	for _, why := range []string{"-", "!NO_PERMISSION", "!UNKNOWN"} {
		run.faults("time 0", "set 1 clock_events "+why, "set 1 rows_failed "+why, "set 1 ecc_uncorrected_errors "+why)
		got = run.wait(promised, "nothing told", func(s *snapshot.Sample) bool {
			_, told := s.Devices[1].States["throttled_hw_thermal"]
			return !told
		})
		assert.Equal(t, map[string]bool{"row_remap_pending": false}, got.Devices[1].States, why)
		assert.NotContains(t, got.Devices[1].Counters, snapshot.ECCUncorrected)
		assert.Empty(t, got.Devices[1].Failed)
	}
	run.faults("time 0", "error nvmlDeviceGetCurrentClocksEventReasons 1 GPU_IS_LOST")
	run.wait(promised, "a lost GPU", func(s *snapshot.Sample) bool { return s.Devices[1].Error == "GPU_IS_LOST" })
	run.terminate()
}

// TestThrottleReasons: the function's name before driver 535.
func TestThrottleReasons(t *testing.T) {
	t.Parallel()
	run := start(t, setup{
		fixture: "h100x8-uneven.csv", absent: []string{"nvmlDeviceGetCurrentClocksEventReasons"},
		faults: []string{"time 0", "set 1 clock_events 128"}, args: []string{"--interval", "200ms"},
	})
	run.wait(10*time.Second, "the power brake", states(map[string]bool{"throttled_hw_power_brake": true, "throttled_hw_thermal": false}))
	run.terminate()
}

// TestXIDOfALoss: the driver tells of it after a reading has found the GPU lost, and
// just before it is opened anew.
func TestXIDOfALoss(t *testing.T) {
	t.Parallel()
	run := start(t, setup{fixture: "h100x8-uneven.csv", faults: []string{"time 0"}, args: []string{"--interval", "1s"}})
	// Then the driver is reopened at once: it was opened some time ago.
	run.wait(10*time.Second, "all readings, for a while", func(s *snapshot.Sample) bool { return healthy(8)(s) && s.Elapsed > 5*time.Second })
	run.faults("time 0", "lost 1")
	run.wait(promised, "a lost GPU", func(s *snapshot.Sample) bool { return s.Devices[1].Error == "GPU_IS_LOST" })
	run.faults("time 0", "lost 1", "xid 1 79", "xid 2 94")
	got := run.wait(promised, "its XID", func(s *snapshot.Sample) bool { return s.Devices[1].Counters["xid_79"] == 1 })
	assert.InDelta(t, 1, got.Devices[2].Counters["xid_94"], 0, "those of others are heard, too")
	run.wait(promised, "it is still lost", func(s *snapshot.Sample) bool {
		return strings.Contains(run.log.String(), "reopening NVML") && s.Devices[1].Error != "" && s.Devices[1].Counters["xid_79"] == 1
	})
	run.terminate()
}

// TestXIDsRefused: one GPU that cannot be listened to costs the others nothing.
func TestXIDsRefused(t *testing.T) {
	t.Parallel()
	run := start(t, setup{
		fixture: "h100x8-uneven.csv", faults: []string{"time 0", "error nvmlDeviceRegisterEvents 1 UNKNOWN"}, args: []string{"--interval", "200ms"},
	})
	got := run.wait(10*time.Second, "all readings", healthy(8))
	assert.NotContains(t, got.Devices[1].Counters, snapshot.XIDErrors, "no 0 of what it does not tell")
	run.faults("time 0", "xid 0 31", "xid 7 31")
	run.wait(promised, "the others'", func(s *snapshot.Sample) bool {
		return s.Devices[0].Counters["xid_31"] == 1 && s.Devices[7].Counters["xid_31"] == 1
	})
	run.terminate()
}

// TestXIDs: each is counted once, of its GPU, also when that is lost with it, and
// over a reopening of the driver.
func TestXIDs(t *testing.T) {
	t.Parallel()
	for _, absent := range []string{"", "nvmlEventSetWait_v2"} {
		run := start(t, setup{fixture: "h100x8-uneven.csv", faults: []string{"time 0"}, absent: strings.Fields(absent), args: []string{"--interval", "200ms"}})
		counts := func(gpu int, want map[string]float64) func(*snapshot.Sample) bool {
			return func(s *snapshot.Sample) bool {
				for name, n := range want {
					if has, told := s.Devices[gpu].Counters[name]; !told || has != n {
						return false
					}
				}
				return true
			}
		}
		run.wait(10*time.Second, "none yet", counts(1, map[string]float64{"xid_errors": 0}))
		three := []string{"time 0", "xid 1 13", "xid 1 13", "xid 2 31"}
		run.faults(three...)
		run.wait(promised, "two", counts(1, map[string]float64{"xid_errors": 2, "xid_13": 2}))
		run.wait(promised, "one", counts(2, map[string]float64{"xid_errors": 1, "xid_31": 1}))
		run.faults(append(three, "xid 1 79", "lost 1")...)
		run.wait(promised, "its last", func(s *snapshot.Sample) bool {
			return s.Devices[1].Error == "GPU_IS_LOST" && counts(1, map[string]float64{"xid_errors": 3, "xid_13": 2, "xid_79": 1})(s)
		})
		run.wait(promised, "only its own", counts(0, map[string]float64{"xid_errors": 0}))
		run.faults(append(three, "xid 1 79")...)
		after := run.settle(promised, "it is back", func(s *snapshot.Sample) bool { return s.Devices[1].Error == "" })
		assert.InDelta(t, 3, after.Devices[1].Counters["xid_errors"], 0)
		assert.Contains(t, run.log.String(), "level=WARN msg=XID gpu=1 id="+after.Devices[1].ID+" xid=79")
		run.terminate()
	}
}

// TestGPMStreamingOff: any client can switch it off, and a 0 of then is no reading.
func TestGPMStreamingOff(t *testing.T) {
	t.Parallel()
	run := start(t, setup{fixture: "h100x8-uneven.csv", faults: []string{"time 0", "gpmoff 0"}, args: []string{"--interval", "200ms"}})
	got := run.wait(10*time.Second, "failures of the first GPU", func(s *snapshot.Sample) bool {
		return len(s.Devices) == 8 && strings.Contains(s.Devices[0].Failed["sm_activity"], "streaming is off") && s.Devices[1].Failed["sm_activity"] == ""
	})
	for _, metric := range gpmMetrics {
		assert.Equal(t, "GPM streaming is off on this GPU", got.Devices[0].Failed[metric])
		assert.NotContains(t, got.Devices[0].Values, metric)
		assert.Contains(t, got.Devices[1].Values, metric)
		assert.Contains(t, got.Devices[7].Values, metric, "an idle GPU's 0 is one")
	}
	assert.Contains(t, got.Devices[0].Values, "gpu_utilization")
	run.faults("time 0")
	run.wait(promised, "all readings", healthy(8))
	run.terminate()
}

// TestMemoryOfMIGParent: a user without rights may not know it, which is no failure.
func TestMemoryOfMIGParent(t *testing.T) {
	t.Parallel()
	run := start(t, setup{fixture: "h200-mig.csv", faults: []string{
		"time 0", "error nvmlDeviceGetMemoryInfo_v2 0 NO_PERMISSION", "error nvmlDeviceGetMemoryInfo_v2 1 NO_PERMISSION",
	}, args: []string{"--interval", "200ms"}})
	got := run.wait(10*time.Second, "all devices", func(s *snapshot.Sample) bool {
		return len(s.Devices) == 5 && len(s.Devices[0].Failed) == 0 && len(s.Devices[4].Failed) == 2
	})
	assert.NotContains(t, got.Devices[0].Values, "memory_used_mib")
	assert.Contains(t, got.Devices[1].Values, "memory_used_mib", "an instance's own")
	assert.Equal(t, "NO_PERMISSION", got.Devices[4].Failed["memory_used_mib"], "of a GPU in no MIG mode it is one")
	run.terminate()
}

// TestComputeInstances: of three that share a GPU instance each has figures of its own where the
// driver gives them, and the memory, which is the GPU instance's, is there once.
func TestComputeInstances(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "ci.csv")
	require.NoError(t, os.WriteFile(path, []byte(`# gpuscaler fixture v1
t,index,id,parent,instance,profile,model,memory_total_mib,memory_used_mib,gpu_utilization,sm_activity
0,0,GPU-a,,,,NVIDIA H200,143771,60000,,
0,0,MIG-1,GPU-a,1,1c.3g.71gb,,72000,30000,90,45
0,0,MIG-2,GPU-a,1,2c.3g.71gb,,72000,30000,10,5
0,0,MIG-3,GPU-a,2,3g.71gb,,72000,9000,50,20
`), 0o600))
	run := start(t, setup{fixture: path, args: []string{"--interval", "200ms"}})
	settled := func(first, second float64) func(*snapshot.Sample) bool {
		return func(s *snapshot.Sample) bool {
			return len(s.Devices) == 4 && s.Devices[1].Values["gpu_utilization"] == first && s.Devices[2].Values["gpu_utilization"] == second
		}
	}
	got := run.wait(5*time.Second, "figures of each", settled(90, 10))
	used, total := 0.0, 0.0
	for _, d := range got.Devices[1:] {
		used, total = used+d.Values["memory_used_mib"], total+d.MemoryTotalMiB
		assert.InDelta(t, 100*d.Values["memory_used_mib"]/d.MemoryTotalMiB, d.Values["memory_used_percent"], 1e-6)
	}
	assert.InDelta(t, 39000, used, 1e-3)
	assert.InDelta(t, 144000, total, 1e-3)
	assert.InDelta(t, 50, got.Devices[3].Values["gpu_utilization"], 1e-9)
	// An older driver has figures of the GPU instance alone.
	run.faults("error nvmlGpmSampleGet MIG-1 INVALID_ARGUMENT", "error nvmlGpmSampleGet MIG-2 INVALID_ARGUMENT")
	run.wait(promised, "the GPU instance's for both", settled(90, 90))
	run.terminate()
}
