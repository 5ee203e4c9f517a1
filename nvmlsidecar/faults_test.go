package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/nvmlsidecar/fakenvml"
	"gpuscaler/shared/snapshot"
)

// promised is how soon a reloaded driver, another count of GPUs or another layout has to
// show; recovered is the same for a GPU that was lost for a few seconds: the longer it was, the
// longer is the pause until the driver is reopened.
const (
	promised  = 10 * time.Second
	recovered = 40 * time.Second
)

func failing(reason string) func(*snapshot.Sample) bool {
	return func(s *snapshot.Sample) bool { return strings.Contains(s.Error, reason) }
}

func TestLibraryMissing(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), fakenvml.Name)
	run := start(t, setup{fixture: "one-75.csv", library: path, args: []string{"--interval", "200ms"}})
	for range 3 { // for ever: outside of a container the library may come
		got := run.wait(5*time.Second, "the reason", failing("LIBRARY_NOT_FOUND"))
		assert.Empty(t, got.Devices)
	}
	library, err := os.ReadFile(built.library)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path+".new", library, 0o700))
	require.NoError(t, os.Rename(path+".new", path))
	run.wait(promised, "a GPU", healthy(1))
	run.terminate()
}

func TestDriverNotLoaded(t *testing.T) {
	t.Parallel()
	run := start(t, setup{fixture: "one-75.csv", faults: []string{"init DRIVER_NOT_LOADED"}, args: []string{"--interval", "200ms"}})
	for range 8 {
		run.wait(5*time.Second, "the reason", failing("DRIVER_NOT_LOADED"))
	}
	run.faults()
	run.wait(promised, "a GPU", healthy(1))
	assert.Equal(t, 1, strings.Count(run.log.String(), "level=WARN msg=\"NVML cannot be opened\""), "said once")
	run.terminate()
}

// TestOutdatedLibrary: a process cannot load another library in place of one
// that it has called into.
func TestOutdatedLibrary(t *testing.T) {
	t.Parallel()
	run := start(t, setup{fixture: "one-75.csv", args: []string{"--interval", "500ms"}})
	run.wait(5*time.Second, "a GPU", healthy(1))
	// Not for long: the library may only be ahead of the kernel's driver.
	run.faults("init LIB_RM_VERSION_MISMATCH", "reload 1")
	run.wait(promised, "the reason", failing("LIB_RM_VERSION_MISMATCH"))
	run.faults("reload 1")
	run.wait(promised, "a GPU", healthy(1))
	run.faults("init LIB_RM_VERSION_MISMATCH", "reload 2")
	run.wait(promised, "the reason", failing("LIB_RM_VERSION_MISMATCH"))
	require.Equal(t, 1, run.end(25*time.Second))
	assert.Contains(t, run.log.String(), "nvmlsidecar: the NVML library does not fit the kernel driver")
}

func TestDriverReloaded(t *testing.T) {
	t.Parallel()
	run := start(t, setup{fixture: "h200-mig.csv", faults: []string{"time 0"}, args: []string{"--interval", "200ms"}})
	run.wait(5*time.Second, "all readings", healthy(5))
	for _, token := range []string{"reload 1", "reload 2"} {
		run.faults("time 80", token)
		got := run.settle(promised, "the readings of another time", func(s *snapshot.Sample) bool {
			return complete(s) && len(s.Devices) == 4
		})
		same(t, load(t, "h200-mig.csv").Samples[80].Devices, got.Devices)
		run.faults("time 0", token)
		run.wait(promised, "all readings", healthy(5))
	}
	run.alive()
	run.terminate()
}

// TestGPULost plays a recording in which GPU 2 is lost from 60 s on.
func TestGPULost(t *testing.T) {
	t.Parallel()
	played := load(t, "gpu-lost.csv")
	run := start(t, setup{fixture: "gpu-lost.csv", faults: []string{"time 0"}, args: []string{"--interval", "200ms"}})
	run.wait(5*time.Second, "all readings", healthy(4))
	run.faults("time 100")
	lost := func(s *snapshot.Sample) bool { return len(s.Devices) == 4 && s.Devices[2].Error == "GPU_IS_LOST" }
	first := run.wait(promised, "a lost GPU", lost)
	// Long enough for NVML to be reopened in between: the others must not notice.
	var last arrival
	for last = first; last.at.Sub(first.at) < 6*time.Second; {
		last = run.wait(time.Second, "any", func(*snapshot.Sample) bool { return true })
		require.True(t, lost(last.Sample), "%+v", last)
	}
	same(t, played.Samples[100].Devices, last.Devices)
	require.Contains(t, run.log.String(), "reopening NVML")
	for _, s := range run.all() {
		if s.at.Before(first.at) {
			continue
		}
		for _, i := range []int{0, 1, 3} {
			assert.Contains(t, s.Devices[i].Values, "pcie_tx_kbps", "%v", s.Elapsed)
			assert.Contains(t, s.Devices[i].Values, "sm_activity", "%v", s.Elapsed)
		}
	}
	run.faults("time 0")
	got := run.settle(recovered, "a recovered GPU", healthy(4))
	same(t, played.Samples[0].Devices, got.Devices)
	assert.Equal(t, 1, strings.Count(run.log.String(), "level=WARN msg=\"reopening NVML\""), "said once")
	run.terminate()
}

// TestLostInstances: one by itself, and all of a lost GPU.
func TestLostInstances(t *testing.T) {
	t.Parallel()
	run := start(t, setup{fixture: "h200-mig.csv", faults: []string{"time 0"}, args: []string{"--interval", "200ms"}})
	whole := run.wait(5*time.Second, "all readings", healthy(5))
	instance := whole.Devices[1]
	run.faults("time 0", fmt.Sprintf("error nvmlGpmMigSampleGet 0/%d GPU_IS_LOST", instance.Instance))
	got := run.wait(promised, "a lost instance", func(s *snapshot.Sample) bool { return s.Devices[1].Error != "" })
	assert.Equal(t, "GPU_IS_LOST", got.Devices[1].Error)
	assert.Equal(t, instance.Profile, got.Devices[1].Profile)
	assert.Empty(t, got.Devices[0].Error)
	assert.Empty(t, got.Devices[2].Error)
	run.faults("time 0")
	run.wait(promised, "all readings", healthy(5))
	run.faults("time 0", "lost 0")
	run.wait(promised, "a lost GPU", func(s *snapshot.Sample) bool { return s.Devices[0].Error == "GPU_IS_LOST" })
	for range 30 { // also after NVML was reopened
		got = run.wait(promised, "any", func(*snapshot.Sample) bool { return true })
		require.Len(t, got.Devices, 5)
		for i, d := range got.Devices[:4] {
			assert.Equal(t, "GPU_IS_LOST", d.Error)
			assert.Equal(t, whole.Devices[i].ID, d.ID)
			assert.Equal(t, whole.Devices[i].Parent, d.Parent)
			assert.Equal(t, whole.Devices[i].Profile, d.Profile)
		}
		assert.Empty(t, got.Devices[4].Error, "the other GPU")
	}
	require.Contains(t, run.log.String(), "reopening NVML")
	run.faults("time 0")
	run.wait(recovered, "all readings", healthy(5))
	run.terminate()
}

// TestLostFromTheStart: without ever having told its name, and later under the
// name of a GPU that has moved to another place meanwhile.
func TestLostFromTheStart(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "moving.csv")
	require.NoError(t, os.WriteFile(path, []byte(`# gpuscaler fixture v1
t,index,id,model,gpu_utilization,error
0,0,GPU-a,A,1,GPU_IS_LOST
0,1,GPU-b,B,2,
1,0,GPU-a,A,1,
1,1,GPU-b,B,2,
2,1,GPU-b,B,2,
3,0,GPU-a,A,1,GPU_IS_LOST
3,1,GPU-b,B,2,
`), 0o600))
	ids := func(want ...string) func(*snapshot.Sample) bool {
		return func(s *snapshot.Sample) bool {
			return slices.EqualFunc(want, s.Devices, func(id string, d snapshot.Device) bool { return d.ID == id })
		}
	}
	run := start(t, setup{fixture: path, faults: []string{"time 0"}, args: []string{"--interval", "100ms"}})
	got := run.wait(5*time.Second, "an unknown GPU", ids("GPU-at-index-0", "GPU-b"))
	assert.Equal(t, "GPU_IS_LOST", got.Devices[0].Error)
	run.faults("time 1")
	run.wait(promised, "both GPUs", ids("GPU-a", "GPU-b"))
	run.faults("time 2")
	run.wait(promised, "one GPU", ids("GPU-b"))
	run.faults("time 3")
	got = run.wait(promised, "an unknown GPU beside the one that was in its place", ids("GPU-at-index-0", "GPU-b"))
	assert.Equal(t, "GPU_IS_LOST", got.Devices[0].Error)
	run.terminate()
}

func TestCountChanges(t *testing.T) {
	t.Parallel()
	run := start(t, setup{fixture: "h100x8-uneven.csv", args: []string{"--interval", "300ms"}})
	run.wait(10*time.Second, "eight GPUs", healthy(8))
	run.faults("count 3")
	run.wait(promised, "three GPUs", healthy(3))
	run.faults("count 0")
	run.wait(promised, "no GPU, which is no error", func(s *snapshot.Sample) bool { return s.Error == "" && len(s.Devices) == 0 })
	run.faults()
	run.wait(promised, "eight GPUs", healthy(8))
	run.terminate()
}

func TestMIGLayoutChanges(t *testing.T) {
	t.Parallel()
	played := load(t, "h200-mig.csv")
	run := start(t, setup{fixture: "h200-mig.csv", faults: []string{"time 0"}, args: []string{"--interval", "200ms"}})
	for _, second := range []int{0, 76, 80, 0} {
		run.faults(fmt.Sprintf("time %d", second))
		want := played.Samples[second].Devices
		got := run.settle(promised, "another layout", func(s *snapshot.Sample) bool {
			return complete(s) && slices.EqualFunc(want, s.Devices, func(a, b snapshot.Device) bool { return a.ID == b.ID })
		})
		same(t, want, got.Devices)
	}
	// What has no instances in the recording has no activity either: it is there
	// for the moment in which it gets some.
	run.faults("time 0", "migoff 0", "set 0 gpu_utilization 50", "set 0 sm_activity 40", "set 0 sm_occupancy 1",
		"set 0 tensor_activity 2", "set 0 dram_activity 3", "set 0 memory_utilization 4")
	got := run.wait(promised, "two whole GPUs", healthy(2))
	assert.InDelta(t, 50, got.Devices[0].Values["gpu_utilization"], 1e-9)
	assert.InDelta(t, 40, got.Devices[0].Values["sm_activity"], 1e-9)
	run.faults("time 0")
	got = run.settle(promised, "instances", healthy(5))
	same(t, played.Samples[0].Devices, got.Devices)
	run.terminate()
}

// TestModeUntold: instances must not vanish because a getter fails.
func TestModeUntold(t *testing.T) {
	t.Parallel()
	run := start(t, setup{fixture: "h200-mig.csv", faults: []string{"time 0"}, args: []string{"--interval", "100ms"}})
	run.wait(5*time.Second, "all readings", healthy(5))
	run.faults("time 0", "error nvmlDeviceGetMigMode 0 UNKNOWN")
	for range 5 {
		run.wait(time.Second, "all devices", func(s *snapshot.Sample) bool { return len(s.Devices) == 5 })
	}
	require.Len(t, run.all()[len(run.all())-1].Devices, 5)
}

// TestInstancesUntold: an instance that cannot be found is not gone. Its GPU
// must not answer in its place.
func TestInstancesUntold(t *testing.T) {
	t.Parallel()
	run := start(t, setup{fixture: "h200-mig.csv", faults: []string{"time 0"}, args: []string{"--interval", "100ms"}})
	run.wait(5*time.Second, "all readings", healthy(5))
	for fault, reason := range map[string]string{
		"error nvmlDeviceGetMaxMigDeviceCount 0 TIMEOUT":          "nvmlDeviceGetMaxMigDeviceCount: TIMEOUT",
		"error nvmlDeviceGetMigDeviceHandleByIndex 0 UNKNOWN":     "MIG instance 0: UNKNOWN",
		"error nvmlDeviceGetUUID 0/5 INSUFFICIENT_RESOURCES":      "MIG instance 1: INSUFFICIENT_RESOURCES",
		"error nvmlDeviceGetMigDeviceHandleByIndex 0 GPU_IS_LOST": "MIG instance 0: GPU_IS_LOST",
	} {
		run.faults("time 0", fault)
		got := run.wait(promised, reason, func(s *snapshot.Sample) bool {
			return len(s.Devices) == 5 && s.Devices[1].Error == reason
		})
		assert.Empty(t, got.Devices[0].Error, "the GPU's own sensors go on")
		assert.Contains(t, got.Devices[0].Values, "temperature")
		for _, instance := range got.Devices[1:4] {
			assert.Equal(t, reason, instance.Error)
			assert.NotEmpty(t, instance.Parent)
			assert.Empty(t, instance.Values)
		}
		assert.Contains(t, got.Devices[4].Values, "gpu_utilization", "the other GPU goes on")
		run.faults("time 0")
		run.wait(promised, "all readings", healthy(5))
	}
	run.terminate()
}

// TestFailingGetters: each costs its own metrics and nothing else.
func TestFailingGetters(t *testing.T) {
	t.Parallel()
	run := start(t, setup{fixture: "h100x8-uneven.csv", faults: []string{"time 0"}, args: []string{"--interval", "400ms"}})
	before := run.wait(10*time.Second, "all readings", healthy(8))
	for function, metrics := range map[string][]string{
		"nvmlDeviceGetPowerUsage":       {"power_draw"},
		"nvmlDeviceGetUtilizationRates": {"gpu_utilization", "memory_utilization"},
		"nvmlDeviceGetTemperature":      {"temperature"},
		"nvmlDeviceGetMemoryInfo_v2":    {"memory_used_mib", "memory_used_percent"},
		"nvmlDeviceGetFieldValues":      {"nvlink_tx_mbps", "nvlink_rx_mbps"},
		"nvmlDeviceGetPcieThroughput":   {"pcie_tx_kbps", "pcie_rx_kbps"},
		"nvmlGpmSampleGet":              gpmMetrics,
		"nvmlGpmMetricsGet":             gpmMetrics,
	} {
		run.faults("time 0", "error "+function+" 1 TIMEOUT")
		got := run.wait(promised, "a failure of "+function, func(s *snapshot.Sample) bool {
			return len(s.Devices[1].Failed) == len(metrics) && s.Devices[1].Failed[metrics[0]] == "TIMEOUT"
		})
		for _, metric := range metrics {
			assert.Equal(t, "TIMEOUT", got.Devices[1].Failed[metric])
			assert.NotContains(t, got.Devices[1].Values, metric)
		}
		all := len(before.Devices[1].Values) + len(before.Devices[1].Counters)
		if function == "nvmlDeviceGetFieldValues" {
			all -= 2 // the ECC errors, which are no metrics
		}
		assert.Equal(t, all, len(got.Devices[1].Values)+len(got.Devices[1].Counters)+len(metrics), function)
		assert.Empty(t, got.Devices[0].Failed)
		assert.Empty(t, got.Devices[1].Error)
		assert.Empty(t, got.Devices[2].Failed)
		run.faults("time 0", "error "+function+" 1 NOT_SUPPORTED")
		got = run.wait(promised, "no failure of "+function, healthy(8))
		for _, metric := range metrics {
			if function != "nvmlDeviceGetMemoryInfo_v2" && function != "nvmlDeviceGetTemperature" { // another call steps in
				assert.NotContains(t, got.Devices[1].Values, metric)
			}
		}
		run.faults("time 0")
		run.wait(promised, "all readings", func(s *snapshot.Sample) bool {
			return complete(s) && len(s.Devices[1].Values) == len(before.Devices[1].Values)
		})
	}
	// A GPU of which nothing can be read is one whose driver needs reopening.
	assert.NotContains(t, run.log.String(), "nothing of it can be read")
	run.terminate()
}

// TestImpossibleNumbers: one of them would make the whole message void.
func TestImpossibleNumbers(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ column, value, failed string }{
		{"gpu_utilization", "4294967295", "gpu_utilization"},
		{"power_draw", "4294967", "power_draw"},
		{"temperature", "4294967295", "temperature"},
		{"memory_used_mib", "1e12", "memory_used_mib"},
		{"memory_used_mib", "143772", "memory_used_percent"},
		{"memory_total_mib", "1e12", "memory_used_percent"},
		{"memory_reserved_mib", "1e12", ""},
		{"nvlink_tx_bytes", "9e18", "nvlink_tx_mbps"},
		{"energy_joules", "9e18", ""},
		{"encoder_utilization", "101", "encoder_utilization"},
		{"sm_activity", "-1", "sm_activity"},
		{"sm_activity", "1e30", ""},
	} {
		t.Run(c.column+" "+c.value, func(t *testing.T) {
			t.Parallel()
			run := start(t, setup{fixture: "h200-llm.csv", faults: []string{"set 0 " + c.column + " " + c.value}, args: []string{"--interval", "150ms"}})
			got := run.wait(5*time.Second, "settled readings", func(s *snapshot.Sample) bool {
				return len(s.Devices) == 1 && s.Devices[0].Failed["sm_occupancy"] == "" && s.Devices[0].Failed["pcie_tx_kbps"] == ""
			}).Devices[0]
			if c.failed == "" {
				assert.Empty(t, got.Failed)
			} else {
				assert.Contains(t, got.Failed, c.failed)
				assert.NotContains(t, got.Values, c.failed)
			}
			assert.Contains(t, got.Values, "memory_utilization")
			assert.NotContains(t, run.log.String(), "sample not sent")
		})
	}
}
