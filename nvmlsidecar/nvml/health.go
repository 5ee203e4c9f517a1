package nvml

import (
	"maps"
	"slices"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"gpuscaler/shared/snapshot"
)

// Not being able to read any of this is no failure of a metric: what the device
// does not tell is absent.

// readClocks says what holds the clocks down. The function had another name
// before driver 535.
func (d *Driver) readClocks(h nvml.Device, r *reading) {
	var bits uint64
	ret := nvml.ERROR_FUNCTION_NOT_FOUND
	switch {
	case d.has("nvmlDeviceGetCurrentClocksEventReasons"):
		bits, ret = h.GetCurrentClocksEventReasons()
	case d.has("nvmlDeviceGetCurrentClocksThrottleReasons"):
		bits, ret = h.GetCurrentClocksThrottleReasons()
	}
	if r.told(ret) {
		snapshot.Throttled(r.device.States, bits)
	}
}

// health are the fields with errors of the memory: ECC over the device's life,
// and rows that were to be replaced.
var health = []struct {
	id             uint32
	counter, state string
}{
	{nvml.FI_DEV_ECC_SBE_AGG_TOTAL, snapshot.ECCCorrected, ""},
	{nvml.FI_DEV_ECC_DBE_AGG_TOTAL, snapshot.ECCUncorrected, ""},
	{nvml.FI_DEV_REMAPPED_PENDING, "", snapshot.RowRemapPending},
	{nvml.FI_DEV_REMAPPED_FAILURE, "", snapshot.RowRemapFailed},
}

// readMemoryHealth takes over what readFields has asked for.
func readMemoryHealth(fields []nvml.FieldValue, r *reading) {
	for i, h := range health {
		if !r.told(nvml.Return(fields[i].NvmlReturn)) { //nolint:gosec // NVML's own code
			continue
		}
		v, ok := whole(&fields[i])
		switch {
		case !ok || v > maxCounter:
		case h.counter != "":
			r.device.Counters[h.counter] = v
		default:
			r.device.States[h.state] = v != 0
		}
	}
}

// told says whether a call has given anything, and takes note of a lost device.
func (r *reading) told(ret nvml.Return) bool {
	if lost(ret) {
		r.gone = name(ret)
	}
	return ret == nvml.SUCCESS
}

// heeded are the events that listen asks for, where a GPU has them.
const heeded = nvml.EventTypeXidCriticalError | nvml.EventMigConfigChange

// listen makes the driver report XIDs and changes of the MIG layout from now on. It changes
// nothing on the GPUs. What happened while the driver was closed is not reported.
func (d *Driver) listen() {
	for _, symbol := range []string{"nvmlEventSetCreate", "nvmlEventSetFree", "nvmlDeviceGetSupportedEventTypes", "nvmlDeviceRegisterEvents"} {
		if !d.has(symbol) {
			return
		}
	}
	if !d.has("nvmlEventSetWait_v2") && !d.has("nvmlEventSetWait") {
		return
	}
	// A GPU that cannot be registered leaves the set in no known state.
	refused := map[int]bool{}
	for again := true; again; {
		set, ret := d.lib.EventSetCreate()
		if ret != nvml.SUCCESS {
			d.log.Info("no XIDs will be told of", "nvmlEventSetCreate", name(ret))
			return
		}
		d.events, again = set, false
		for _, g := range d.gpus {
			if g.handle == nil || refused[g.index] {
				continue
			}
			if again = !d.listenTo(g); again {
				refused[g.index] = true
				d.deaf()
				break
			}
		}
	}
}

// listenTo adds one GPU to the set; false when that has failed.
func (d *Driver) listenTo(g *gpu) bool {
	types, ret := g.handle.GetSupportedEventTypes()
	if types &= heeded; ret != nvml.SUCCESS || types == 0 {
		return true // without it
	}
	if ret := g.handle.RegisterEvents(types, d.events); ret != nvml.SUCCESS {
		d.log.Info("no XIDs will be told of", "gpu", g.index, "nvmlDeviceRegisterEvents", name(ret))
		return false
	}
	if types&nvml.EventTypeXidCriticalError != 0 && d.xids[g.identity.uuid] == nil {
		d.xids[g.identity.uuid] = map[string]float64{snapshot.XIDErrors: 0}
	}
	return true
}

// deaf undoes listen. What has happened until now is heard: the GPU that falls off
// the bus is the one for which the driver is about to be reopened.
func (d *Driver) deaf() {
	if d.events == nil {
		return
	}
	d.hear()
	if ret := d.events.Free(); ret != nvml.SUCCESS {
		d.log.Debug("nvmlEventSetFree", "error", name(ret))
	}
	d.events = nil
}

// maxEvents are taken in one reading; a GPU that is in trouble can make many.
const maxEvents = 256

// hear counts the XIDs since it was called last. They are logged: the kernel's
// log, which has them too, is out of reach for most.
func (d *Driver) hear() {
	if d.events == nil {
		return
	}
	failures := 0
	for range maxEvents {
		event, ret := d.events.Wait(1) // ms; the driver keeps them until then
		switch {
		case ret == nvml.ERROR_TIMEOUT:
			return
		case ret != nvml.SUCCESS: // of a lost GPU; the others' may come after it
			if failures++; failures > len(d.gpus) {
				return
			}
			continue
		}
		d.heed(&event)
	}
}

// heed takes note of an event. Events are matched by UUID: nvml.h does not say that the handle
// in an event is the one that GPUs are known by. A lost GPU has no UUID any more.
func (d *Driver) heed(event *nvml.EventData) {
	id, ret := event.Device.GetUUID()
	at := slices.IndexFunc(d.gpus, func(g *gpu) bool {
		if ret == nvml.SUCCESS {
			return g.identity.uuid == snapshot.Text(id)
		}
		return g.handle != nil && g.handle == event.Device
	})
	if event.EventType&nvml.EventMigConfigChange != 0 {
		d.log.Info("the MIG layout has changed", "id", id)
		d.container.changed = time.Now()
		return
	}
	if at < 0 || event.EventType&nvml.EventTypeXidCriticalError == 0 {
		return
	}
	if g := d.gpus[at]; d.xids[g.identity.uuid] != nil {
		snapshot.AddXID(d.xids[g.identity.uuid], event.EventData)
		d.log.Warn("XID", "gpu", g.index, "id", g.identity.uuid, "xid", event.EventData)
	}
}

// addXIDs adds what a GPU has had so far, whether or not it can be read.
func (d *Driver) addXIDs(device *snapshot.Device) {
	counts := d.xids[device.ID]
	if len(counts) == 0 {
		return
	}
	if device.Counters == nil {
		device.Counters = map[string]float64{}
	}
	maps.Copy(device.Counters, counts)
}
