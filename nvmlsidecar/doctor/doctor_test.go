package doctor

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/nvmlsidecar/nvml"
	"gpuscaler/shared/snapshot"
)

// good is a driver with one GPU of which everything works.
func good() *nvml.Examination {
	return &nvml.Examination{
		Library: "libnvidia-ml.so.1", Init: success, Driver: "580.95.05", NVML: "13.580.95.05",
		GPUs: []nvml.ExaminedGPU{{
			Handle: success, ID: "GPU-a", Model: "NVIDIA H200", Persistence: "on", MIG: "off", Streaming: "on", Events: "xid, mig",
			Calls: []nvml.Call{{Function: "nvmlDeviceGetUtilizationRates", Code: success}},
		}},
		First: 2 * time.Second, Second: 3 * time.Millisecond,
		Sample: &snapshot.Sample{Devices: []snapshot.Device{{
			ID: "GPU-a", Values: map[string]float64{"gpu_utilization": 75, "memory_used_mib": 1000, "temperature": 50, "power_draw": 300.04},
		}}},
	}
}

func around() *Around {
	return &Around{UID: 65533, Files: map[string]string{"/dev/nvidiactl": "", "/dev/nvidia0": ""}}
}

// TestExamine: each fault has its line, and only those with which nothing can be read fail.
func TestExamine(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*nvml.Examination, *Around)
		works  bool
		line   Line
	}{
		"all is well": {func(*nvml.Examination, *Around) {}, true, Line{OK, "sample", "1 devices in 3ms; the first one took 2s", ""}},
		"no library": {func(x *nvml.Examination, _ *Around) {
			x.LoadError, x.Init = "libnvidia-ml.so.1: cannot open shared object file", "LIBRARY_NOT_FOUND"
		}, false, Line{Fail, "library", "libnvidia-ml.so.1: cannot open shared object file", remedies["LIBRARY_NOT_FOUND"]}},
		"no driver":     {func(x *nvml.Examination, _ *Around) { x.Init = "DRIVER_NOT_LOADED" }, false, Line{Fail, "nvmlInit", "DRIVER_NOT_LOADED", remedies["DRIVER_NOT_LOADED"]}},
		"another error": {func(x *nvml.Examination, _ *Around) { x.Init = "TIMEOUT" }, false, Line{Fail, "nvmlInit", "TIMEOUT", ""}},
		"a closed file": {func(_ *nvml.Examination, a *Around) { a.Files["/dev/nvidia0"] = "open /dev/nvidia0: permission denied" }, true,
			Line{Warn, "device files", "open /dev/nvidia0: permission denied", "give the process the group of the files (supplementalGroups), or let the container runtime add them"}},
		"no GPU": {func(x *nvml.Examination, _ *Around) { x.GPUs, x.Sample = nil, &snapshot.Sample{} }, false,
			Line{Fail, "GPUs", "the driver counts none", "check lspci and the kernel's log (dmesg) for the driver's messages"}},
		"another's GPU": {func(x *nvml.Examination, _ *Around) {
			x.GPUs = append(x.GPUs, nvml.ExaminedGPU{Index: 1, Handle: "NO_PERMISSION"})
		}, true, Line{Note, "GPU 1", "not for this process (NO_PERMISSION)", ""}},
		"only others' GPUs": {func(x *nvml.Examination, _ *Around) { x.GPUs = []nvml.ExaminedGPU{{Handle: "NO_PERMISSION"}} }, false,
			Line{Fail, "GPUs", "none of 1 can be read", "see the lines above"}},
		"a lost GPU": {func(x *nvml.Examination, _ *Around) {
			x.GPUs = append(x.GPUs, nvml.ExaminedGPU{Index: 1, Handle: "GPU_IS_LOST"})
		}, true, Line{Warn, "GPU 1", "GPU_IS_LOST", "see the kernel's log for its XIDs; nvidia-smi -r resets it once no process has it open"}},
		"an absent call": {func(x *nvml.Examination, _ *Around) {
			x.GPUs[0].Calls = append(x.GPUs[0].Calls, nvml.Call{Function: "nvmlDeviceGetMemoryInfo_v2", Code: nvml.Absent})
		}, true, Line{Note, "GPU 0 absent", "nvmlDeviceGetMemoryInfo_v2: absent", ""}},
		"a failing call": {func(x *nvml.Examination, _ *Around) {
			x.GPUs[0].Calls = append(x.GPUs[0].Calls, nvml.Call{Function: "nvmlDeviceGetPowerUsage", Code: "NO_PERMISSION"})
		}, true, Line{Warn, "GPU 0 failing", "nvmlDeviceGetPowerUsage: NO_PERMISSION", "a metric that fails is missing, and no 0; NO_PERMISSION means that only root may read it"}},
		"GPM off": {func(x *nvml.Examination, _ *Around) { x.GPUs[0].Streaming = "off" }, true,
			Line{Warn, "GPU 0 GPM", "its streaming is off, so a figure of 0 is no reading", "switch it on by nvmlGpmSetStreamingEnabled, as root"}},
		"no persistence": {func(x *nvml.Examination, _ *Around) { x.GPUs[0].Persistence = "off" }, true,
			Line{Note, "GPU 0 persistence", "off", "while the sidecar runs the GPU stays initialized, which takes power; nvidia-persistenced has it so always, and starts workloads faster"}},
		"no events": {func(x *nvml.Examination, _ *Around) { x.GPUs[0].Events = "NO_PERMISSION" }, true, Line{Note, "GPU 0 events", "NO_PERMISSION: XIDs are not counted", ""}},
		"slow":      {func(x *nvml.Examination, _ *Around) { x.Second = time.Second }, true, Line{Warn, "sample", "1 devices in 1s; the first one took 2s", "readings come late: raise --interval"}},
		"no sample": {func(x *nvml.Examination, _ *Around) { x.Sample, x.SampleError = nil, "GPUs take too long" }, false, Line{Fail, "sample", "GPUs take too long", "see the lines above"}},
		"a failing metric": {func(x *nvml.Examination, _ *Around) {
			x.Sample.Devices[0].Failed = map[string]string{"sm_activity": "TIMEOUT"}
		}, true, Line{Warn, "metrics of GPU 0", "sm_activity failed: TIMEOUT", ""}},
		"metrics":       {func(*nvml.Examination, *Around) {}, true, Line{OK, "metrics of GPU 0", "gpu_utilization 75, memory_used_mib 1000, power_draw 300, temperature 50", ""}},
		"no nvidia-smi": {func(*nvml.Examination, *Around) {}, true, Line{Note, "nvidia-smi", "not installed: readings were not compared", ""}},
		"the same": {func(_ *nvml.Examination, a *Around) {
			a.SMI = map[string]SMI{"GPU-a": {80, 1000, 51, math.NaN()}, "GPU-b": {}}
		}, true, Line{OK, "nvidia-smi", "3 figures compared", ""}},
		"another figure": {func(_ *nvml.Examination, a *Around) { a.SMI = map[string]SMI{"GPU-a": {80, 70000, 51, 310}} }, true,
			Line{Warn, "nvidia-smi", "GPU 0: memory_used_mib is 1000 here and 70000 there", "run it again under a steady load; if it stays, report it with the versions above"}},
	} {
		x, a := good(), around()
		c.change(x, a)
		r := Examine(x, a)
		assert.Equal(t, c.works, r.Works, name)
		assert.Contains(t, r.Lines, c.line, name)
	}
}

func TestParseSMI(t *testing.T) {
	all, err := ParseSMI("GPU-a, 75, 1024, 50, 300.55\nGPU-b, [N/A], 0, 40, [Not Supported]\n")
	require.NoError(t, err)
	assert.Equal(t, SMI{75, 1024, 50, 300.55}, all["GPU-a"])
	assert.True(t, math.IsNaN(all["GPU-b"].Utilization))
	assert.InDelta(t, 40, all["GPU-b"].Temperature, 0)
	_, err = ParseSMI("No devices were found\n")
	assert.ErrorContains(t, err, "nvidia-smi: ")
}
