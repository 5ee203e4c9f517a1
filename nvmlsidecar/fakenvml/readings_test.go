package fakenvml

import (
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/stretchr/testify/require"
)

const (
	mib = 1 << 20

	gpuA = "GPU-00000000-0000-0000-0000-00000000000a"
	gpuB = "GPU-00000000-0000-0000-0000-00000000000b"
	mig1 = "MIG-00000000-0000-0000-0000-000000000001"
	mig2 = "MIG-00000000-0000-0000-0000-000000000002"
	mig3 = "MIG-00000000-0000-0000-0000-000000000003"
)

func TestGetters(t *testing.T) {
	l := start(t)
	if l == nil {
		return
	}
	l.init()
	d := l.gpu(0)
	got(t, gpuA)(d.GetUUID())
	got(t, "NVIDIA H200")(d.GetName())
	got(t, 0)(d.GetIndex())
	got(t, 1)(l.gpu(1).GetIndex())
	got(t, 2)(l.gpu(2).GetMinorNumber())
	got(t, nvml.Utilization{Gpu: 37, Memory: 12})(d.GetUtilizationRates())
	got(t, uint32(54))(d.GetTemperature(nvml.TEMPERATURE_GPU))
	got(t, uint32(412500))(d.GetPowerUsage())
	got(t, uint64(1000000))(d.GetTotalEnergyConsumption())
	for want, get := range map[uint32]func() (uint32, uint32, nvml.Return){3: d.GetEncoderUtilization, 4: d.GetDecoderUtilization} {
		v, period, ret := get()
		require.Equal(t, nvml.SUCCESS, ret)
		require.Equal(t, want, v)
		require.NotZero(t, period)
	}
	begun := time.Now()
	got(t, uint32(1500))(d.GetPcieThroughput(nvml.PCIE_UTIL_TX_BYTES))
	require.GreaterOrEqual(t, time.Since(begun), 20*time.Millisecond)
	got(t, uint32(2500))(d.GetPcieThroughput(nvml.PCIE_UTIL_RX_BYTES))

	// The same handle each time, by either way.
	byUUID, ret := l.DeviceGetHandleByUUID(gpuA)
	require.Equal(t, nvml.SUCCESS, ret)
	require.Equal(t, d, byUUID)
	require.Equal(t, d, l.gpu(0))
	fails[nvml.Device](t, nvml.ERROR_NOT_FOUND)(l.DeviceGetHandleByUUID("GPU-x"))
	fails[nvml.Device](t, nvml.ERROR_INVALID_ARGUMENT)(l.DeviceGetHandleByIndex(3))

	// What an older board does not have, or cannot tell now.
	old := l.gpu(2)
	fails[uint64](t, nvml.ERROR_NOT_SUPPORTED)(old.GetTotalEnergyConsumption())
	fails[uint32](t, nvml.ERROR_NOT_SUPPORTED)(old.GetPcieThroughput(nvml.PCIE_UTIL_TX_BYTES))
	got(t, uint32(65000))(old.GetPowerUsage())
	l.set("time 1")
	fails[uint32](t, nvml.ERROR_UNKNOWN)(old.GetPowerUsage())
	l.set("time 3")
	fails[uint32](t, nvml.ERROR_GPU_IS_LOST)(old.GetPowerUsage())
	fails[string](t, nvml.ERROR_GPU_IS_LOST)(old.GetUUID())
	fails[nvml.Device](t, nvml.ERROR_GPU_IS_LOST)(l.DeviceGetHandleByIndex(2))
	got(t, 3)(l.DeviceGetCount())
}

func TestMemory(t *testing.T) {
	l := start(t)
	if l == nil {
		return
	}
	l.init()
	got(t, nvml.Memory{Total: 143771 * mib, Used: (70512 + 624) * mib, Free: (143771 - 70512 - 624) * mib})(l.gpu(0).GetMemoryInfo())
	m, ret := l.gpu(0).GetMemoryInfo_v2()
	require.Equal(t, nvml.SUCCESS, ret)
	m.Version = 0
	require.Equal(t, nvml.Memory_v2{Total: 143771 * mib, Reserved: 624 * mib, Used: 70512 * mib, Free: (143771 - 70512 - 624) * mib}, m)
	got(t, nvml.Memory{Total: 16384 * mib, Used: 1000 * mib, Free: 15384 * mib})(l.mig(1, 0).GetMemoryInfo())
}

func TestNVLink(t *testing.T) {
	l := start(t)
	if l == nil {
		return
	}
	l.init("time 1")
	const tx, rx = nvml.FI_DEV_NVLINK_THROUGHPUT_DATA_TX, nvml.FI_DEV_NVLINK_THROUGHPUT_DATA_RX
	fields := []nvml.FieldValue{
		{FieldId: tx, ScopeId: math.MaxUint32}, {FieldId: rx, ScopeId: math.MaxUint32},
		{FieldId: tx, ScopeId: 0}, {FieldId: tx, ScopeId: 1}, {FieldId: nvml.FI_DEV_MEMORY_TEMP},
	}
	require.Equal(t, nvml.SUCCESS, l.gpu(0).GetFieldValues(fields))
	for i, want := range []uint64{30720, 10240, 30720, 0} { // KiB
		require.Zero(t, fields[i].NvmlReturn)
		require.EqualValues(t, nvml.VALUE_TYPE_UNSIGNED_LONG_LONG, fields[i].ValueType)
		require.InDelta(t, time.Now().UnixMicro(), fields[i].Timestamp, 60e6)
		require.Equal(t, want, leUint64(fields[i].Value))
	}
	require.EqualValues(t, nvml.ERROR_NOT_SUPPORTED, fields[4].NvmlReturn)
	require.Equal(t, nvml.SUCCESS, l.gpu(2).GetFieldValues(fields))
	require.EqualValues(t, nvml.ERROR_NOT_SUPPORTED, fields[0].NvmlReturn)
}

func leUint64(b [8]byte) (v uint64) {
	for i := range b {
		v |= uint64(b[i]) << (8 * i)
	}
	return v
}

func TestMIG(t *testing.T) {
	l := start(t)
	if l == nil {
		return
	}
	l.init()
	gpu := l.gpu(1)
	current, pending, ret := gpu.GetMigMode()
	require.Equal(t, [3]int{1, 1, int(nvml.SUCCESS)}, [3]int{current, pending, int(ret)})
	_, _, ret = l.gpu(0).GetMigMode()
	require.Equal(t, nvml.ERROR_NOT_SUPPORTED, ret)
	got(t, 7)(gpu.GetMaxMigDeviceCount())
	got(t, 0)(l.gpu(0).GetMaxMigDeviceCount())
	fails[nvml.Device](t, nvml.ERROR_NOT_FOUND)(gpu.GetMigDeviceHandleByIndex(2))
	fails[nvml.Device](t, nvml.ERROR_NOT_SUPPORTED)(l.gpu(0).GetMigDeviceHandleByIndex(0))

	first, second := l.mig(1, 0), l.mig(1, 1)
	got(t, mig1)(first.GetUUID())
	got(t, "NVIDIA H200 MIG 3g.71gb")(second.GetName())
	got(t, true)(first.IsMigDeviceHandle())
	got(t, false)(gpu.IsMigDeviceHandle())
	got(t, gpu)(first.GetDeviceHandleFromMigDeviceHandle())
	fails[nvml.Device](t, nvml.ERROR_INVALID_ARGUMENT)(gpu.GetDeviceHandleFromMigDeviceHandle())
	got(t, 3)(second.GetGpuInstanceId())
	got(t, 0)(second.GetComputeInstanceId())
	fails[int](t, nvml.ERROR_NOT_SUPPORTED)(gpu.GetGpuInstanceId())
	got(t, 1)(second.GetIndex())
	got(t, nvml.DeviceAttributes{GpuInstanceSliceCount: 3, ComputeInstanceSliceCount: 3, MemorySizeMB: 71680})(second.GetAttributes())
	fails[nvml.DeviceAttributes](t, nvml.ERROR_NOT_SUPPORTED)(gpu.GetAttributes())
	fails[nvml.Utilization](t, nvml.ERROR_NOT_SUPPORTED)(gpu.GetUtilizationRates())
	fails[nvml.Utilization](t, nvml.ERROR_NOT_SUPPORTED)(first.GetUtilizationRates())
	fails[uint32](t, nvml.ERROR_NOT_SUPPORTED)(first.GetPowerUsage())
	got(t, uint32(200000))(gpu.GetPowerUsage())

	// The layout changes: one instance goes, one comes, one moves up.
	l.set("time 2")
	fails[string](t, nvml.ERROR_NOT_FOUND)(first.GetUUID())
	fails[nvml.Device](t, nvml.ERROR_NOT_FOUND)(l.DeviceGetHandleByUUID(mig1))
	got(t, mig2)(l.mig(1, 0).GetUUID())
	require.Equal(t, second, l.mig(1, 0))
	got(t, 0)(second.GetIndex())
	got(t, mig3)(l.mig(1, 1).GetUUID())
	// And back, with the next pass, to the handle that it had.
	l.set("time 4")
	got(t, mig1)(first.GetUUID())
}

func TestProcesses(t *testing.T) {
	l := start(t)
	if l == nil {
		return
	}
	l.init()
	info := func(pid uint32, used uint64, gpuInstance, computeInstance uint32) nvml.ProcessInfo {
		return nvml.ProcessInfo{Pid: pid, UsedGpuMemory: used * mib, GpuInstanceId: gpuInstance, ComputeInstanceId: computeInstance}
	}
	const none = math.MaxUint32
	got(t, []nvml.ProcessInfo{info(4711, 70000, none, none), info(4712, 512, none, none)})(l.gpu(0).GetComputeRunningProcesses())
	// 5001 and 5003 are listed with the GPU too, but run on the instances.
	got(t, []nvml.ProcessInfo{info(5001, 1000, 1, 0), info(5003, 3000, 3, 0)})(l.gpu(1).GetComputeRunningProcesses())
	got(t, []nvml.ProcessInfo{info(5003, 3000, 3, 0)})(l.mig(1, 1).GetComputeRunningProcesses())
	got(t, []nvml.ProcessInfo{})(l.gpu(2).GetComputeRunningProcesses())
	got(t, []nvml.ProcessInfo{})(l.gpu(0).GetGraphicsRunningProcesses())
}

func TestProcessesOfAnOlderDriver(t *testing.T) {
	l := start(t, "FAKENVML_ABSENT=nvmlDeviceGetComputeRunningProcesses_v2,nvmlDeviceGetComputeRunningProcesses_v3")
	if l == nil {
		return
	}
	l.init()
	infos, ret := l.gpu(1).GetComputeRunningProcesses()
	require.Equal(t, nvml.SUCCESS, ret)
	require.Len(t, infos, 2)
	require.Equal(t, uint32(5001), infos[0].Pid)
	require.Equal(t, uint64(1000*mib), infos[0].UsedGpuMemory)
}

var gpmIDs = []nvml.GpmMetricId{
	nvml.GPM_METRIC_GRAPHICS_UTIL, nvml.GPM_METRIC_SM_UTIL, nvml.GPM_METRIC_SM_OCCUPANCY,
	nvml.GPM_METRIC_ANY_TENSOR_UTIL, nvml.GPM_METRIC_DRAM_BW_UTIL,
	nvml.GPM_METRIC_NVLINK_TOTAL_TX_PER_SEC, nvml.GPM_METRIC_NVLINK_TOTAL_RX_PER_SEC,
	nvml.GPM_METRIC_INTEGER_UTIL,
}

// gpm takes two samples a second of fixture time apart and returns the metrics
// between them, -1 for one that is not supported.
func (l *lab) gpm(take func(nvml.GpmSample) nvml.Return) []float64 {
	l.t.Helper()
	get := nvml.GpmMetricsGetType{NumMetrics: uint32(len(gpmIDs))}
	for i, sample := range []*nvml.GpmSample{&get.Sample1, &get.Sample2} {
		l.set(fmt.Sprintf("time %d", i))
		s, ret := l.GpmSampleAlloc()
		require.Equal(l.t, nvml.SUCCESS, ret)
		defer func() { require.Equal(l.t, nvml.SUCCESS, s.Free()) }()
		require.Equal(l.t, nvml.SUCCESS, take(s))
		*sample = s
	}
	for i, id := range gpmIDs {
		get.Metrics[i].MetricId = uint32(id)
	}
	beyond := &get.Metrics[len(gpmIDs)]
	beyond.NvmlReturn = 77
	require.Equal(l.t, nvml.SUCCESS, l.GpmMetricsGet(&get))
	require.EqualValues(l.t, 77, beyond.NvmlReturn, "written beyond NumMetrics")
	var values []float64
	for _, m := range get.Metrics[:len(gpmIDs)] {
		if m.NvmlReturn != 0 {
			require.EqualValues(l.t, nvml.ERROR_NOT_SUPPORTED, m.NvmlReturn)
			m.Value = -1
		}
		values = append(values, m.Value)
	}
	return values
}

func TestGPM(t *testing.T) {
	l := start(t)
	if l == nil {
		return
	}
	l.init()
	supported := func(d nvml.Device) bool {
		s, ret := d.GpmQueryDeviceSupport()
		require.Equal(t, nvml.SUCCESS, ret)
		return s.IsSupportedDevice == 1
	}
	require.True(t, supported(l.gpu(0)))
	require.True(t, supported(l.gpu(1)))
	require.True(t, supported(l.mig(1, 0)))
	require.False(t, supported(l.gpu(2)))

	require.Equal(t, []float64{38, 31.5, 20.25, 10, 15.5, 20, 5, -1}, l.gpm(l.gpu(0).GpmSampleGet))
	onInstance := []float64{63.5, 43, -1, -1, 7, -1, -1, -1}
	parent := l.gpu(1)
	require.Equal(t, onInstance, l.gpm(func(s nvml.GpmSample) nvml.Return { return parent.GpmMigSampleGet(3, s) }))
	require.Equal(t, onInstance, l.gpm(l.mig(1, 1).GpmSampleGet))

	a, _ := l.GpmSampleAlloc()
	b, _ := l.GpmSampleAlloc()
	get := nvml.GpmMetricsGetType{NumMetrics: 1, Sample1: a, Sample2: b}
	require.Equal(t, nvml.ERROR_INVALID_ARGUMENT, l.GpmMetricsGet(&get), "nothing sampled yet")
	require.Equal(t, nvml.ERROR_NOT_SUPPORTED, l.gpu(2).GpmSampleGet(a))
	require.Equal(t, nvml.ERROR_NOT_FOUND, parent.GpmMigSampleGet(5, a))
	require.Equal(t, nvml.ERROR_INVALID_ARGUMENT, l.mig(1, 0).GpmMigSampleGet(1, a))
	require.Equal(t, nvml.SUCCESS, l.gpu(0).GpmSampleGet(a))
	require.Equal(t, nvml.SUCCESS, parent.GpmSampleGet(b))
	require.Equal(t, nvml.ERROR_INVALID_ARGUMENT, l.GpmMetricsGet(&get), "two devices")
	get.Sample2 = a
	require.Equal(t, nvml.ERROR_INVALID_ARGUMENT, l.GpmMetricsGet(&get), "one instant")
	require.Equal(t, nvml.SUCCESS, l.gpu(0).GpmSampleGet(b))
	get.Sample2, get.NumMetrics = b, 0
	require.Equal(t, nvml.ERROR_INVALID_ARGUMENT, l.GpmMetricsGet(&get), "no metrics")
}

func TestCounters(t *testing.T) {
	l := start(t)
	if l == nil {
		return
	}
	l.init()
	// 400 J/s within a pass, between its samples, and on into the next pass.
	for _, at := range []float64{0, 0.25, 1, 2.5, 3, 3.5, 4, 4.75, 40, 41.125} {
		l.set(fmt.Sprintf("time %v", at))
		got(t, uint64(1000000+at*400000))(l.gpu(0).GetTotalEnergyConsumption())
	}
}

func TestClockRuns(t *testing.T) {
	l := start(t, "FAKENVML_SPEED=100")
	if l == nil {
		return
	}
	require.Equal(t, nvml.SUCCESS, l.Init())
	read := func() uint64 {
		v, ret := l.gpu(0).GetTotalEnergyConsumption()
		require.Equal(t, nvml.SUCCESS, ret)
		return v
	}
	before := read()
	time.Sleep(200 * time.Millisecond)
	grown := float64(read()-before) / 1000
	require.GreaterOrEqual(t, grown, 0.2*100*400-1)
	require.Less(t, grown, 100*0.2*100*400.0, "a machine so slow would be in trouble")
}
