package nvml

import (
	"errors"
	"fmt"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"gpuscaler/shared/snapshot"
)

// Examination is what a driver lets this process do, call by call.
type Examination struct {
	// Library is where it was looked for; LoadError is the dynamic linker's reason, or "".
	Library, LoadError string
	// Init is how nvmlInit ended: "SUCCESS", or the return code.
	Init string
	// Driver and NVML are versions, "" where they are not known.
	Driver, NVML string
	// GPUs are those that the driver counts.
	GPUs []ExaminedGPU
	// First and Second are how long two samples took: the first prepares what takes long.
	First, Second time.Duration
	// Sample is the second, nil where there is none; SampleError is why.
	Sample      *snapshot.Sample
	SampleError string
}

// ExaminedGPU is one GPU that the driver counts.
type ExaminedGPU struct {
	Index int
	// Handle is how nvmlDeviceGetHandleByIndex ended; the rest is empty unless "SUCCESS".
	Handle           string
	ID, Model, File  string
	Persistence, MIG string // "on", "off", or the return code
	Streaming        string // of GPM: "on", "off", "" without GPM, or the return code
	Events           string // those of XIDs and MIG layouts: "xid, mig"
	Calls            []Call
}

// Call is a call of NVML and how it ended: "SUCCESS", the return code, or "absent" where the
// driver lacks the function.
type Call struct{ Function, Code string }

// Absent is the code of a function that the driver lacks.
const Absent = "absent"

// Examine asks a driver for everything that Read asks for, once, and takes two samples. It must
// be the only user of the driver. It changes nothing.
func (d *Driver) Examine() *Examination {
	x := &Examination{Library: d.path, LoadError: whyNotLoaded(d.path)}
	if x.LoadError != "" {
		x.Init = name(nvml.ERROR_LIBRARY_NOT_FOUND)
		return x
	}
	ret := d.lib.Init()
	if x.Init = code(ret); ret != nvml.SUCCESS {
		return x
	}
	x.Driver, _ = d.lib.SystemGetDriverVersion()
	x.NVML, _ = d.lib.SystemGetNVMLVersion()
	n, _ := d.lib.DeviceGetCount()
	for i := range n {
		x.GPUs = append(x.GPUs, d.examine(i))
	}
	_ = d.lib.Shutdown() // Read opens it anew
	d.sampleTwice(x)
	return x
}

func (d *Driver) sampleTwice(x *Examination) {
	for _, took := range []*time.Duration{&x.First, &x.Second} {
		began := time.Now()
		s, err := d.Read(began)
		*took = time.Since(began)
		if err == nil && s.Error != "" {
			err = errors.New(s.Error)
		}
		if err != nil {
			x.SampleError = err.Error()
			return
		}
		x.Sample = s
		d.readSlowOnce()
		time.Sleep(2 * gpmInterval)
	}
	if s, err := d.Read(time.Now()); err == nil && s.Error == "" { // with the activity between the two
		x.Sample = s
	}
}

func (d *Driver) readSlowOnce() {
	for i := 0; d.readSlowGPU(i); i++ {
	}
}

func (d *Driver) examine(index int) ExaminedGPU {
	x := ExaminedGPU{Index: index}
	h, ret := d.lib.DeviceGetHandleByIndex(index)
	if x.Handle = code(ret); ret != nvml.SUCCESS {
		return x
	}
	id, _ := h.GetUUID()
	model, _ := h.GetName()
	x.ID, x.Model, x.File = snapshot.Text(id), snapshot.Text(model), deviceFile(h)
	for _, c := range calls {
		x.Calls = append(x.Calls, Call{c.function, d.call(c.function, func() nvml.Return { return c.make(h) })})
	}
	x.Persistence = d.state("nvmlDeviceGetPersistenceMode", func() (uint32, nvml.Return) {
		s, ret := h.GetPersistenceMode()
		return uint32(s), ret //nolint:gosec // an enum
	})
	x.MIG = d.state("nvmlDeviceGetMigMode", func() (uint32, nvml.Return) {
		s, _, ret := h.GetMigMode()
		return uint32(s), ret //nolint:gosec // an enum
	})
	if support, ret := d.gpmSupport(h); ret == nvml.SUCCESS && support {
		x.Streaming = d.state("nvmlGpmQueryIfStreamingEnabled", h.GpmQueryIfStreamingEnabled)
	}
	x.Events = d.call("nvmlDeviceGetSupportedEventTypes", func() nvml.Return { return nvml.SUCCESS })
	if x.Events == code(nvml.SUCCESS) {
		types, ret := h.GetSupportedEventTypes()
		switch xid, mig := types&nvml.EventTypeXidCriticalError != 0, types&nvml.EventMigConfigChange != 0; {
		case ret != nvml.SUCCESS:
			x.Events = name(ret)
		case xid && mig:
			x.Events = "xid, mig"
		case xid:
			x.Events = "xid"
		case mig:
			x.Events = "mig"
		default:
			x.Events = "none"
		}
	}
	return x
}

func (d *Driver) gpmSupport(h nvml.Device) (bool, nvml.Return) {
	if !d.has("nvmlGpmQueryDeviceSupport") {
		return false, nvml.ERROR_FUNCTION_NOT_FOUND
	}
	support, ret := h.GpmQueryDeviceSupport()
	return support.IsSupportedDevice != 0, ret
}

// call makes a call of a function, if the driver has it.
func (d *Driver) call(function string, make func() nvml.Return) string {
	if !d.has(function) {
		return Absent
	}
	return code(make())
}

// state is call for a mode that is on or off.
func (d *Driver) state(function string, get func() (uint32, nvml.Return)) string {
	if !d.has(function) {
		return Absent
	}
	v, ret := get()
	switch {
	case ret != nvml.SUCCESS:
		return name(ret)
	case v == uint32(nvml.FEATURE_DISABLED):
		return "off"
	}
	return "on"
}

func code(ret nvml.Return) string {
	if ret == nvml.SUCCESS {
		return "SUCCESS"
	}
	return name(ret)
}

// calls are those of Read that are about one GPU and have a return code of their own.
var calls = []struct {
	function string
	make     func(nvml.Device) nvml.Return
}{
	{"nvmlDeviceGetUtilizationRates", func(h nvml.Device) nvml.Return { _, ret := h.GetUtilizationRates(); return ret }},
	{"nvmlDeviceGetMemoryInfo_v2", func(h nvml.Device) nvml.Return { _, ret := h.GetMemoryInfo_v2(); return ret }},
	{"nvmlDeviceGetMemoryInfo", func(h nvml.Device) nvml.Return { _, ret := h.GetMemoryInfo(); return ret }},
	{"nvmlDeviceGetTemperature", func(h nvml.Device) nvml.Return { _, ret := h.GetTemperature(nvml.TEMPERATURE_GPU); return ret }},
	{"nvmlDeviceGetTemperatureV", func(h nvml.Device) nvml.Return { _, ret := h.GetTemperatureV().V1(); return ret }},
	{"nvmlDeviceGetPowerUsage", func(h nvml.Device) nvml.Return { _, ret := h.GetPowerUsage(); return ret }},
	{"nvmlDeviceGetTotalEnergyConsumption", func(h nvml.Device) nvml.Return { _, ret := h.GetTotalEnergyConsumption(); return ret }},
	{"nvmlDeviceGetPcieThroughput", func(h nvml.Device) nvml.Return { _, ret := h.GetPcieThroughput(nvml.PCIE_UTIL_TX_BYTES); return ret }},
	{"nvmlDeviceGetEncoderUtilization", func(h nvml.Device) nvml.Return { _, _, ret := h.GetEncoderUtilization(); return ret }},
	{"nvmlDeviceGetDecoderUtilization", func(h nvml.Device) nvml.Return { _, _, ret := h.GetDecoderUtilization(); return ret }},
	{"nvmlDeviceGetFieldValues", func(h nvml.Device) nvml.Return { return field(h, nvml.FI_DEV_NVLINK_THROUGHPUT_DATA_TX) }},
	{"nvmlDeviceGetCurrentClocksEventReasons", func(h nvml.Device) nvml.Return { _, ret := h.GetCurrentClocksEventReasons(); return ret }},
	{"nvmlDeviceGetCurrentClocksThrottleReasons", func(h nvml.Device) nvml.Return { _, ret := h.GetCurrentClocksThrottleReasons(); return ret }},
}

// field is how the reading of one field ended.
func field(h nvml.Device, id uint32) nvml.Return {
	f := []nvml.FieldValue{{FieldId: id, ScopeId: allLinks}}
	if ret := h.GetFieldValues(f); ret != nvml.SUCCESS {
		return ret
	}
	return nvml.Return(f[0].NvmlReturn) //nolint:gosec // NVML's own code
}

// String is the function and its code.
func (c Call) String() string { return fmt.Sprintf("%s: %s", c.Function, c.Code) }
