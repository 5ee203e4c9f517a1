package fakenvml

import (
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/stretchr/testify/require"
)

func TestControlFile(t *testing.T) {
	if os.Getenv(childVar) != "" {
		t.Skip("needs no driver")
	}
	dir := t.TempDir()
	c := NewControl(filepath.Join(dir, "control"))
	require.NoError(t, c.Set("lost 0", "count 1"))
	text, err := os.ReadFile(c.Path())
	require.NoError(t, err)
	require.Equal(t, "lost 0\ncount 1\n", string(text))
	require.NoError(t, c.Set())
	left, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, left, 1, "leftovers")
	require.Error(t, NewControl(filepath.Join(dir, "none", "control")).Set())
}

func TestControlInit(t *testing.T) {
	l := start(t)
	if l == nil {
		return
	}
	for _, c := range []struct {
		name string
		want nvml.Return
	}{
		{"DRIVER_NOT_LOADED", nvml.ERROR_DRIVER_NOT_LOADED},
		{"LIB_RM_VERSION_MISMATCH", nvml.ERROR_LIB_RM_VERSION_MISMATCH},
		{"NVML_ERROR_UNKNOWN", nvml.ERROR_UNKNOWN},
		{"17", nvml.ERROR_OPERATING_SYSTEM},
	} {
		l.set("init " + c.name)
		require.Equal(t, c.want, l.Init())
		fails[int](t, nvml.ERROR_UNINITIALIZED)(l.DeviceGetCount())
	}
	l.set()
	require.Equal(t, nvml.SUCCESS, l.Init())
}

func TestControlError(t *testing.T) {
	l := start(t)
	if l == nil {
		return
	}
	l.init()
	gpu0, gpu1, first, second := l.gpu(0), l.gpu(1), l.mig(1, 0), l.mig(1, 1)
	l.set("error nvmlDeviceGetPowerUsage 1 UNKNOWN", "error nvmlDeviceGetUUID 1/3 TIMEOUT",
		"error nvmlDeviceGetName "+mig1+" NOT_SUPPORTED", "error nvmlDeviceGetHandleByIndex_v2 2 NO_PERMISSION",
		"error nvmlDeviceGetCount_v2 * 42 # for all")
	fails[uint32](t, nvml.ERROR_UNKNOWN)(gpu1.GetPowerUsage())
	got(t, uint32(412500))(gpu0.GetPowerUsage())
	fails[string](t, nvml.ERROR_TIMEOUT)(second.GetUUID())
	got(t, mig1)(first.GetUUID())
	got(t, gpuB)(gpu1.GetUUID())
	fails[string](t, nvml.ERROR_NOT_SUPPORTED)(first.GetName())
	fails[nvml.Device](t, nvml.ERROR_NO_PERMISSION)(l.DeviceGetHandleByIndex(2))
	fails[int](t, nvml.Return(42))(l.DeviceGetCount())
	require.NoError(t, os.Remove(l.control.Path()))
	got(t, 3)(l.DeviceGetCount())
	fails[uint32](t, nvml.SUCCESS)(gpu1.GetPowerUsage())
}

func TestControlLost(t *testing.T) {
	l := start(t)
	if l == nil {
		return
	}
	l.init()
	gpu0, gpu1, first, second := l.gpu(0), l.gpu(1), l.mig(1, 0), l.mig(1, 1)
	l.set("lost 1")
	fails[string](t, nvml.ERROR_GPU_IS_LOST)(gpu1.GetName())
	fails[string](t, nvml.ERROR_GPU_IS_LOST)(first.GetName())
	fails[nvml.Device](t, nvml.ERROR_GPU_IS_LOST)(l.DeviceGetHandleByIndex(1))
	fails[nvml.Device](t, nvml.ERROR_GPU_IS_LOST)(l.DeviceGetHandleByUUID(gpuB))
	got(t, "NVIDIA H200")(gpu0.GetName())
	got(t, 3)(l.DeviceGetCount())
	l.set("lost 1/1")
	fails[string](t, nvml.ERROR_GPU_IS_LOST)(first.GetUUID())
	got(t, mig2)(second.GetUUID())
	l.set()
	got(t, mig1)(first.GetUUID())
}

func TestControlDelays(t *testing.T) {
	l := start(t)
	if l == nil {
		return
	}
	l.init()
	d := l.gpu(0)
	l.set("hang nvmlDeviceGetPowerUsage 1", "delay nvmlDeviceGetUUID 100")
	begun := time.Now()
	var wg sync.WaitGroup
	wg.Go(func() { got(t, uint32(412500))(d.GetPowerUsage()) })
	time.Sleep(20 * time.Millisecond)
	got(t, uint32(54))(d.GetTemperature(nvml.TEMPERATURE_GPU))
	require.Less(t, time.Since(begun), 900*time.Millisecond, "a hanging call held up another")
	delayed := time.Now()
	got(t, gpuA)(d.GetUUID())
	require.GreaterOrEqual(t, time.Since(delayed), 100*time.Millisecond)
	wg.Wait()
	require.GreaterOrEqual(t, time.Since(begun), time.Second)
}

func TestControlCount(t *testing.T) {
	l := start(t)
	if l == nil {
		return
	}
	l.init()
	gpu0, gpu1, first := l.gpu(0), l.gpu(1), l.mig(1, 0)
	l.set("count 1")
	got(t, 1)(l.DeviceGetCount())
	fails[nvml.Device](t, nvml.ERROR_INVALID_ARGUMENT)(l.DeviceGetHandleByIndex(1))
	fails[string](t, nvml.ERROR_GPU_IS_LOST)(gpu1.GetUUID())
	fails[string](t, nvml.ERROR_NOT_FOUND)(first.GetUUID())
	got(t, gpuA)(gpu0.GetUUID())
	l.set("count 0")
	got(t, 0)(l.DeviceGetCount())
}

func TestControlReload(t *testing.T) {
	l := start(t)
	if l == nil {
		return
	}
	l.init()
	d := l.gpu(0)
	for _, line := range []string{"reload", "reload 1", "reload 2"} {
		l.set(line)
		fails[string](t, nvml.ERROR_UNINITIALIZED)(d.GetUUID())
		fails[int](t, nvml.ERROR_UNINITIALIZED)(l.DeviceGetCount())
		fails[nvml.Device](t, nvml.ERROR_UNINITIALIZED)(l.DeviceGetHandleByIndex(0))
		require.Equal(t, nvml.SUCCESS, l.Init(), "only counts")
		require.Equal(t, nvml.SUCCESS, l.Shutdown())
		fails[string](t, nvml.ERROR_UNINITIALIZED)(d.GetUUID())
		require.Equal(t, nvml.SUCCESS, l.Shutdown())
		require.Equal(t, nvml.SUCCESS, l.Init())
		got(t, gpuA)(l.gpu(0).GetUUID())
		got(t, gpuA)(d.GetUUID())
	}
	l.set()
	got(t, gpuA)(d.GetUUID())
}

func TestControlSet(t *testing.T) {
	l := start(t)
	if l == nil {
		return
	}
	l.init()
	l.set("set 0 power_draw 99.5", "set 1 power_draw -", "set 2 power_draw !TIMEOUT", "set * temperature 1",
		"set 0 energy_joules 5", "set 1/1 memory_used_mib 2", "set 0 gpu_utilization 1", "set 0 gpu_utilization 2")
	got(t, uint32(99500))(l.gpu(0).GetPowerUsage())
	fails[uint32](t, nvml.ERROR_NOT_SUPPORTED)(l.gpu(1).GetPowerUsage())
	fails[uint32](t, nvml.ERROR_TIMEOUT)(l.gpu(2).GetPowerUsage())
	got(t, uint32(1))(l.gpu(2).GetTemperature(nvml.TEMPERATURE_GPU))
	got(t, uint64(5000))(l.gpu(0).GetTotalEnergyConsumption())
	got(t, nvml.Utilization{Gpu: 2, Memory: 12})(l.gpu(0).GetUtilizationRates())
	m, ret := l.mig(1, 0).GetMemoryInfo()
	require.Equal(t, nvml.SUCCESS, ret)
	require.EqualValues(t, 2*mib, m.Used)
}

func TestControlMIGOff(t *testing.T) {
	l := start(t)
	if l == nil {
		return
	}
	l.init()
	gpu, first := l.gpu(1), l.mig(1, 0)
	l.set("migoff 1")
	mode, _, ret := gpu.GetMigMode()
	require.Equal(t, nvml.SUCCESS, ret)
	require.Zero(t, mode)
	got(t, 0)(gpu.GetMaxMigDeviceCount())
	fails[nvml.Device](t, nvml.ERROR_NOT_FOUND)(gpu.GetMigDeviceHandleByIndex(0))
	fails[string](t, nvml.ERROR_NOT_FOUND)(first.GetUUID())
	got(t, nvml.Utilization{Gpu: 50})(gpu.GetUtilizationRates())
	l.set()
	got(t, mig1)(first.GetUUID())
}

// Lines that cannot be meant are said to be, each once, and the rest counts.
func TestControlNonsense(t *testing.T) {
	lines := []string{
		"nonsense", "init", "init SUCCESS", "error nvmlDeviceGetPower 0 UNKNOWN", "error nvmlDeviceGetUUID 9 UNKNOWN",
		"error nvmlDeviceGetUUID 0 ODD", "lost 1/2", "hang nvmlDeviceGetUUID soon", "count 4", "count 1.5",
		"set 0 model x", "set 0 power_draw", "set 0 power_draw x", "time -1", "migoff", "lost 0 1",
	}
	if os.Getenv(childVar) == "" {
		out := runChild(t, t.TempDir())
		for _, line := range lines {
			require.Contains(t, out, "line ignored: "+line+"\n")
		}
		return
	}
	l := start(t)
	l.init(append(lines, "", "  # a comment", "\tset 2  power_draw 7 # another", "lost 1")...)
	got(t, gpuA)(l.gpu(0).GetUUID())
	got(t, uint32(7000))(l.gpu(2).GetPowerUsage())
	fails[nvml.Device](t, nvml.ERROR_GPU_IS_LOST)(l.DeviceGetHandleByIndex(1))
}

// Many threads read while faults come and go; the race detector and the C
// library's own mutex have to cope.
func TestManyThreads(t *testing.T) {
	l := start(t, "FAKENVML_SPEED=1000")
	if l == nil {
		return
	}
	require.Equal(t, nvml.SUCCESS, l.Init())
	gpu := l.gpu(1)
	stop := time.Now().Add(500 * time.Millisecond)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for time.Now().Before(stop) {
				_, _ = gpu.GetComputeRunningProcesses()
				if mig, ret := gpu.GetMigDeviceHandleByIndex(1); ret == nvml.SUCCESS {
					_, _ = mig.GetMemoryInfo_v2()
					_, _ = mig.GetName()
				}
			}
		})
	}
	for time.Now().Before(stop) {
		require.NoError(t, l.control.Set("migoff 1", "set 1 memory_used_mib 7"))
		require.NoError(t, l.control.Set("error nvmlDeviceGetName * UNKNOWN"))
		require.NoError(t, l.control.Set())
	}
	wg.Wait()
	got(t, gpuB)(gpu.GetUUID())
}
