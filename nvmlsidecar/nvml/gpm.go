package nvml

import (
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
	if a == nil {
		return
	}
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

// readActivity reads the GPM figures of a GPU, or of one of its GPU instances
// if instance is not negative, into r. The first reading of a device only
// begins an interval.
func (d *Driver) readActivity(state **activity, g *gpu, instance int, now time.Time, r *reading) {
	a := *state
	if a == nil {
		a = d.newActivity(g)
		*state = a
	}
	if a.unsupported || now.Sub(a.at) < gpmInterval {
		return
	}
	metrics := gpmDevice
	var ret nvml.Return
	if instance >= 0 {
		metrics = gpmInstance
		ret = g.handle.GpmMigSampleGet(instance, a.current)
	} else {
		ret = g.handle.GpmSampleGet(a.current)
	}
	if ret == nvml.SUCCESS && !a.at.IsZero() {
		ret = d.readGPM(a, metrics, r)
	}
	if ret != nvml.SUCCESS {
		for _, m := range metrics {
			r.failure(m.metric, ret)
		}
		a.at = time.Time{} // the next reading begins a new interval
		return
	}
	if a.at.IsZero() {
		for _, m := range metrics {
			r.device.Failed[m.metric] = "one reading so far; activity needs two"
		}
	}
	a.previous, a.current, a.at = a.current, a.previous, now
}

// newActivity allocates the two samples, if the GPU has GPM at all.
func (d *Driver) newActivity(g *gpu) *activity {
	for _, symbol := range []string{
		"nvmlGpmQueryDeviceSupport", "nvmlGpmSampleAlloc", "nvmlGpmSampleFree", "nvmlGpmSampleGet",
		"nvmlGpmMigSampleGet", "nvmlGpmMetricsGet",
	} {
		if !d.has(symbol) {
			return &activity{unsupported: true}
		}
	}
	support, ret := g.handle.GpmQueryDeviceSupport()
	if ret != nvml.SUCCESS || support.IsSupportedDevice == 0 {
		return &activity{unsupported: true}
	}
	a := &activity{}
	var first, second nvml.Return
	a.previous, first = d.lib.GpmSampleAlloc()
	a.current, second = d.lib.GpmSampleAlloc()
	if first != nvml.SUCCESS || second != nvml.SUCCESS {
		d.log.Warn("GPM is out of memory", "gpu", g.index)
		return &activity{unsupported: true}
	}
	return a
}

func (d *Driver) readGPM(a *activity, metrics []gpmMetric, r *reading) nvml.Return {
	request := nvml.GpmMetricsGetType{NumMetrics: uint32(len(metrics)), Sample1: a.previous, Sample2: a.current} //nolint:gosec // five
	for i, m := range metrics {
		request.Metrics[i].MetricId = uint32(m.id) //nolint:gosec // an enum
	}
	if ret := d.lib.GpmMetricsGet(&request); ret != nvml.SUCCESS {
		return ret
	}
	for i, m := range metrics {
		// Rounding makes 100.0001 of a full chip.
		v := min(request.Metrics[i].Value, 100)
		r.value(m.metric, v, nvml.Return(request.Metrics[i].NvmlReturn)) //nolint:gosec // NVML's own code
	}
	return nvml.SUCCESS
}
