package nvml

import (
	"slices"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// gpmInterval is the least time between two GPM samples (nvml.h, nvmlGpmSampleGet).
const gpmInterval = 100 * time.Millisecond

// activity is the GPM state of a GPU or a MIG instance: figures are the
// difference between two samples.
type activity struct {
	previous, current nvml.GpmSample
	at                time.Time // of previous; zero when there is none
	unsupported       bool
}

func (a *activity) free() {
	for _, s := range []nvml.GpmSample{a.previous, a.current} {
		if s != nil {
			_ = s.Free()
		}
	}
	a.previous, a.current = nil, nil
}

// gpmMetric is a figure of GPM and the metric that it is.
type gpmMetric struct {
	id     nvml.GpmMetricId
	metric string
}

var (
	gpmDevice = []gpmMetric{
		{nvml.GPM_METRIC_SM_UTIL, "sm_activity"},
		{nvml.GPM_METRIC_SM_OCCUPANCY, "sm_occupancy"},
		{nvml.GPM_METRIC_ANY_TENSOR_UTIL, "tensor_activity"},
		{nvml.GPM_METRIC_DRAM_BW_UTIL, "dram_activity"},
	}
	// gpmInstance has the utilization too: NVML's own is not supported on a
	// MIG instance, and GPM's graphics utilization has the same definition
	// (the share of time in which any compute or graphics work ran).
	gpmInstance = append([]gpmMetric{{nvml.GPM_METRIC_GRAPHICS_UTIL, "gpu_utilization"}}, gpmDevice...)
)

// readActivity refreshes the GPM figures of a GPU, or of one of its instances if that is
// not nil, in k. The first reading of a device
// only begins an interval, and one that comes too soon changes nothing.
func (d *Driver) readActivity(a *activity, g *gpu, of *instance, k *kept) {
	if a.unsupported || time.Since(a.at) < gpmInterval {
		return
	}
	metrics := gpmDevice
	if of != nil {
		metrics = gpmInstance
	}
	ret := d.prepare(a, g)
	if a.unsupported = absent(ret); a.unsupported {
		return
	}
	began := time.Now()
	if ret == nvml.SUCCESS {
		ret = sampleGPM(a, g, of)
	}
	if ret == nvml.SUCCESS && !a.at.IsZero() {
		ret = d.readGPM(a, g, metrics, k)
	}
	if ret != nvml.SUCCESS {
		for _, m := range metrics {
			k.set(m.metric, keptValue{ret: ret, at: began})
		}
		a.at = time.Time{} // the next reading begins a new interval
		return
	}
	if a.at.IsZero() {
		for _, m := range metrics {
			k.expect(m.metric)
		}
	}
	a.previous, a.current, a.at = a.current, a.previous, began
}

// sampleGPM takes a sample. One of compute instances that share a GPU instance is asked for by its
// own handle, where the driver takes that (nvml.h, nvmlGpmSampleGet); else the figures are the GPU
// instance's, which is shared.
func sampleGPM(a *activity, g *gpu, of *instance) nvml.Return {
	if of == nil {
		return g.handle.GpmSampleGet(a.current)
	}
	if of.sharers > 1 {
		if ret := of.handle.GpmSampleGet(a.current); ret != nvml.ERROR_INVALID_ARGUMENT && !absent(ret) {
			return ret
		}
	}
	return g.handle.GpmMigSampleGet(of.gpuInstance, a.current)
}

// prepare allocates the two samples, if the GPU has GPM at all.
func (d *Driver) prepare(a *activity, g *gpu) nvml.Return {
	if a.previous != nil {
		return nvml.SUCCESS
	}
	for _, symbol := range []string{
		"nvmlGpmQueryDeviceSupport", "nvmlGpmSampleAlloc", "nvmlGpmSampleFree", "nvmlGpmSampleGet",
		"nvmlGpmMigSampleGet", "nvmlGpmMetricsGet",
	} {
		if !d.has(symbol) {
			return nvml.ERROR_FUNCTION_NOT_FOUND
		}
	}
	support, ret := g.handle.GpmQueryDeviceSupport()
	if ret != nvml.SUCCESS {
		return ret
	}
	if support.IsSupportedDevice == 0 {
		return nvml.ERROR_NOT_SUPPORTED
	}
	previous, ret := d.lib.GpmSampleAlloc()
	if ret != nvml.SUCCESS {
		return ret
	}
	current, ret := d.lib.GpmSampleAlloc()
	if ret != nvml.SUCCESS {
		_ = previous.Free()
		return ret
	}
	a.previous, a.current = previous, current
	return nvml.SUCCESS
}

func (d *Driver) readGPM(a *activity, g *gpu, metrics []gpmMetric, k *kept) nvml.Return {
	request := nvml.GpmMetricsGetType{NumMetrics: uint32(len(metrics)), Sample1: a.previous, Sample2: a.current} //nolint:gosec // five
	for i, m := range metrics {
		request.Metrics[i].MetricId = uint32(m.id) //nolint:gosec // an enum
	}
	if ret := d.lib.GpmMetricsGet(&request); ret != nvml.SUCCESS {
		return ret
	}
	now := time.Now()
	got := request.Metrics[:len(metrics)]
	// Any client of the driver can switch the streaming off, with which the buffers read 0.
	off := slices.ContainsFunc(got, func(m nvml.GpmMetric) bool { return m.Value == 0 }) && d.streamingOff(g)
	for i, m := range metrics {
		// Rounding makes 100.0001 of a full chip.
		v := keptValue{value: min(got[i].Value, 100), ret: nvml.Return(got[i].NvmlReturn), at: now} //nolint:gosec // NVML's own code
		if off && v.ret == nvml.SUCCESS && v.value == 0 {
			v.why = "GPM streaming is off on this GPU"
		}
		k.set(m.metric, v)
	}
	return nvml.SUCCESS
}

// streamingOff says whether the driver says that GPM's buffers are not filled.
func (d *Driver) streamingOff(g *gpu) bool {
	if !d.has("nvmlGpmQueryIfStreamingEnabled") {
		return false
	}
	state, ret := g.handle.GpmQueryIfStreamingEnabled()
	return ret == nvml.SUCCESS && state == uint32(nvml.FEATURE_DISABLED)
}
