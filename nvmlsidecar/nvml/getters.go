package nvml

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"gpuscaler/shared/snapshot"
)

const (
	mib = 1 << 20
	// maxCounter and maxMiB are what a sample may carry; one number beyond its
	// range makes the whole sample void.
	maxCounter = 1 << 62
	maxMiB     = 1e9
)

// getter is a fast call that fills in metrics of a whole GPU.
type getter struct {
	symbol string
	read   func(nvml.Device, *reading)
}

var getters = []getter{
	{"nvmlDeviceGetUtilizationRates", func(h nvml.Device, r *reading) {
		u, ret := h.GetUtilizationRates()
		r.value("gpu_utilization", float64(u.Gpu), ret)
		r.value("memory_utilization", float64(u.Memory), ret)
	}},
	{"nvmlDeviceGetPowerUsage", func(h nvml.Device, r *reading) {
		milliwatts, ret := h.GetPowerUsage()
		r.value("power_draw", float64(milliwatts)/1000, ret)
	}},
	{"nvmlDeviceGetTotalEnergyConsumption", func(h nvml.Device, r *reading) {
		// A failing energy counter costs nothing: power has its own getter.
		if millijoules, ret := h.GetTotalEnergyConsumption(); ret == nvml.SUCCESS {
			r.device.Counters["energy_joules"] = float64(millijoules) / 1000
		}
	}},
	{"nvmlDeviceGetFieldValues", readFields},
	{"nvmlDeviceGetEncoderUtilization", func(h nvml.Device, r *reading) {
		percent, _, ret := h.GetEncoderUtilization()
		r.value("encoder_utilization", float64(percent), ret)
	}},
	{"nvmlDeviceGetDecoderUtilization", func(h nvml.Device, r *reading) {
		percent, _, ret := h.GetDecoderUtilization()
		r.value("decoder_utilization", float64(percent), ret)
	}},
}

// allLinks is the scope of a field of NVLink that asks for the sum.
const allLinks = math.MaxUint32

// readFields reads the data counters of all NVLinks together, in KiB, and the
// memory's errors, in one call.
func readFields(h nvml.Device, r *reading) {
	fields := []nvml.FieldValue{
		{FieldId: nvml.FI_DEV_NVLINK_THROUGHPUT_DATA_TX, ScopeId: allLinks},
		{FieldId: nvml.FI_DEV_NVLINK_THROUGHPUT_DATA_RX, ScopeId: allLinks},
	}
	for _, f := range health {
		fields = append(fields, nvml.FieldValue{FieldId: f.id})
	}
	ret := h.GetFieldValues(fields)
	if ret == nvml.SUCCESS {
		readMemoryHealth(fields[len(fields)-len(health):], r)
	}
	for i, metric := range []string{"nvlink_tx_mbps", "nvlink_rx_mbps"} {
		m, _ := snapshot.Lookup(metric)
		fieldRet := ret
		if ret == nvml.SUCCESS {
			fieldRet = nvml.Return(fields[i].NvmlReturn) //nolint:gosec // NVML's own code
		}
		if fieldRet == nvml.SUCCESS {
			bytes := float64(binary.NativeEndian.Uint64(fields[i].Value[:])) * 1024
			if bytes > maxCounter {
				r.device.Failed[metric] = fmt.Sprintf("a counter of %g bytes makes no sense", bytes)
				continue
			}
			r.device.Counters[m.Counter.Name] = bytes
			continue
		}
		r.failure(metric, fieldRet)
	}
}

// readTemperature reads the sensor by the call that nvml.h deprecates, or by the one that
// replaces it where the driver no longer has the former.
func (d *Driver) readTemperature(h nvml.Device, r *reading) {
	ret := nvml.ERROR_FUNCTION_NOT_FOUND
	celsius := 0.0
	if d.has("nvmlDeviceGetTemperature") {
		var v uint32
		v, ret = h.GetTemperature(nvml.TEMPERATURE_GPU)
		celsius = float64(v)
	}
	if absent(ret) && d.has("nvmlDeviceGetTemperatureV") {
		var t nvml.Temperature
		t, ret = h.GetTemperatureV().V1()
		celsius = float64(t.Temperature)
	}
	r.value("temperature", celsius, ret)
}

// readMemory prefers version 2: version 1 counts what firmware and ECC reserve
// as used. Of a GPU in MIG mode a user without rights may not know it.
func (d *Driver) readMemory(h nvml.Device, r *reading, inMIGMode bool) {
	var used, total uint64
	ret := nvml.ERROR_FUNCTION_NOT_FOUND
	if d.has("nvmlDeviceGetMemoryInfo_v2") {
		var m nvml.Memory_v2
		m, ret = h.GetMemoryInfo_v2()
		used, total = m.Used, m.Total
		if reserved := float64(m.Reserved) / mib; ret == nvml.SUCCESS && reserved <= maxMiB {
			r.device.MemoryReservedMiB = reserved
		}
	}
	if absent(ret) && d.has("nvmlDeviceGetMemoryInfo") {
		var m nvml.Memory
		m, ret = h.GetMemoryInfo()
		used, total = m.Used, m.Total
	}
	if inMIGMode && ret == nvml.ERROR_NO_PERMISSION {
		return
	}
	r.value("memory_used_mib", float64(used)/mib, ret)
	if float64(total)/mib > maxMiB {
		r.device.Failed["memory_used_percent"] = fmt.Sprintf("a total of %d bytes makes no sense", total)
		return
	}
	r.device.MemoryTotalMiB = float64(total) / mib
	if percent, ok := snapshot.UsedPercent(float64(used), float64(total)); ok || ret != nvml.SUCCESS {
		r.value("memory_used_percent", percent, ret)
	}
}

// divideMemory gives a compute instance its part of the memory, which NVML gives as the GPU
// instance's: the parts add up to it.
func (r *reading) divideMemory(sharers int) {
	if sharers < 2 {
		return
	}
	n := float64(sharers)
	r.device.MemoryTotalMiB /= n
	r.device.MemoryReservedMiB /= n
	if used, ok := r.device.Values["memory_used_mib"]; ok {
		r.device.Values["memory_used_mib"] = used / n
	}
}

// reading collects what the getters say of one device.
type reading struct {
	device snapshot.Device
	gone   string // why the device as a whole cannot be read, or ""
}

func newReading(d snapshot.Device) *reading {
	d.Values = map[string]float64{}
	d.Counters = map[string]float64{}
	d.Failed = map[string]string{}
	d.States = map[string]bool{}
	return &reading{device: d}
}

// value takes over a metric, unless it could not be read or is out of its
// range (drivers do report 4,294,967 W now and then).
func (r *reading) value(metric string, v float64, ret nvml.Return) {
	if ret != nvml.SUCCESS {
		r.failure(metric, ret)
		return
	}
	m, _ := snapshot.Lookup(metric)
	if err := m.Check(v); err != nil {
		r.device.Failed[metric] = err.Error()
		return
	}
	r.device.Values[metric] = v
}

// failure tells an absent metric from a failing one and from a lost device.
func (r *reading) failure(metric string, ret nvml.Return) {
	switch {
	case absent(ret):
	case lost(ret):
		r.gone = name(ret)
	default:
		r.device.Failed[metric] = name(ret)
	}
}

// lost says that the device as a whole cannot be read.
func lost(ret nvml.Return) bool {
	switch ret {
	case nvml.ERROR_GPU_IS_LOST, nvml.ERROR_RESET_REQUIRED, nvml.ERROR_GPU_NOT_FOUND, nvml.ERROR_UNINITIALIZED, nvml.ERROR_DRIVER_NOT_LOADED:
		return true
	default:
		return false
	}
}

// whole is a field that is a whole number, however wide.
func whole(f *nvml.FieldValue) (float64, bool) {
	switch nvml.ValueType(f.ValueType) { //nolint:gosec // NVML's own code
	case nvml.VALUE_TYPE_UNSIGNED_INT:
		return float64(binary.NativeEndian.Uint32(f.Value[:])), true
	case nvml.VALUE_TYPE_UNSIGNED_LONG, nvml.VALUE_TYPE_UNSIGNED_LONG_LONG:
		return float64(binary.NativeEndian.Uint64(f.Value[:])), true
	default:
		return 0, false
	}
}

// absent says that a device does not have what was asked for, in whatever way
// drivers of different ages say so.
func absent(ret nvml.Return) bool {
	switch ret {
	case nvml.ERROR_NOT_SUPPORTED, nvml.ERROR_FUNCTION_NOT_FOUND, nvml.ERROR_ARGUMENT_VERSION_MISMATCH, nvml.ERROR_DEPRECATED:
		return true
	default:
		return false
	}
}

// lost is the device without any value, in its place.
func (r *reading) lost(why string) snapshot.Device {
	d := r.device
	d.Values, d.Counters, d.States, d.Failed, d.Processes = nil, nil, nil, nil, nil
	d.Error = why
	return d
}
