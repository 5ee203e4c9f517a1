package nvml

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"gpuscaler/shared/snapshot"
)

// gpu is one physical GPU between an Init and the next Shutdown.
type gpu struct {
	index     int
	handle    nvml.Device // nil when the GPU was lost from the start
	identity  identity
	lost      string // why it cannot be read at all, or ""
	mig       bool   // is in MIG mode, as far as was last known
	activity  activity
	instances map[string]*activity // of its MIG instances, by uuid
	kept      *kept
}

func (g *gpu) free() {
	g.activity.free()
	for _, a := range g.instances {
		a.free()
	}
}

// enumerate finds the GPU at an index. A lost one keeps its place, under the
// identity that was last seen there; one that this process may not open is nil.
func (d *Driver) enumerate(index int) *gpu {
	g := &gpu{index: index, instances: map[string]*activity{}}
	handle, ret := d.lib.DeviceGetHandleByIndex(index)
	if ret == nvml.SUCCESS {
		var uuid, model string
		if uuid, ret = handle.GetUUID(); ret == nvml.SUCCESS {
			model, _ = handle.GetName()
			g.handle = handle
			g.identity = identity{snapshot.Text(uuid), snapshot.Text(model), deviceFile(handle)}
			g.kept = d.keptFor(g.identity.uuid)
			if d.slowSymbol {
				g.kept.expect("pcie_tx_kbps", "pcie_rx_kbps")
			}
			return g
		}
	}
	if ret == nvml.ERROR_NO_PERMISSION {
		return nil
	}
	g.lost = name(ret)
	return g
}

// identify gives lost GPUs the identity that was last seen at their index,
// unless another GPU has moved up since: two devices of one id would make the
// whole sample void.
func (d *Driver) identify() {
	present := map[string]bool{}
	for _, g := range d.gpus {
		if g.handle != nil {
			d.known[g.index] = g.identity
			present[g.identity.uuid] = true
		}
	}
	for _, g := range d.gpus {
		if g.handle != nil {
			continue
		}
		g.identity = d.known[g.index]
		if g.identity.uuid == "" || present[g.identity.uuid] {
			g.identity = identity{uuid: fmt.Sprintf("GPU-at-index-%d", g.index)}
		}
		present[g.identity.uuid] = true
	}
}

// deviceFile is the name of a GPU's file in /dev, or "": its minor number need not
// be its index.
func deviceFile(handle nvml.Device) string {
	minor, ret := handle.GetMinorNumber()
	if ret != nvml.SUCCESS {
		return ""
	}
	return fmt.Sprintf("nvidia%d", minor)
}

// readGPU reads one GPU and its MIG instances.
func (d *Driver) readGPU(g *gpu, now time.Time) []snapshot.Device {
	r := newReading(snapshot.Device{ID: g.identity.uuid, Vendor: "nvidia", Model: g.identity.model, File: g.identity.file, Index: g.index})
	if g.handle == nil {
		return d.lose(g, r, g.lost)
	}
	d.readMode(g)
	for _, get := range getters {
		if r.gone == "" && d.has(get.symbol) {
			get.read(g.handle, r)
		}
	}
	if r.gone == "" {
		d.readTemperature(g.handle, r)
		d.readClocks(g.handle, r)
		d.readMemory(g.handle, r, g.mig)
	}
	if r.gone == "" && !g.mig {
		d.readActivity(&g.activity, g, nil, g.kept)
	}
	g.kept.report(r, now)
	if r.gone != "" {
		return d.lose(g, r, r.gone)
	}
	if len(r.device.Values) == 0 && len(r.device.Failed) > 0 {
		d.reopen(g, "nothing of it can be read")
	}
	d.addXIDs(&r.device)
	var instances []snapshot.Device
	if g.mig {
		var err error
		if instances, err = d.readInstances(g, now); err != nil {
			// An instance that cannot be found is not one that is gone: without
			// it, its GPU would stand in with figures of its own.
			if len(d.instances[r.device.ID]) == 0 {
				return d.lose(g, r, err.Error())
			}
			return append([]snapshot.Device{r.device}, d.loseInstances(g, err.Error())...)
		}
		d.container.layout(g.identity.uuid, len(instances), now)
	} else {
		d.container.layout(g.identity.uuid, -1, now)
	}
	d.instances[r.device.ID] = instances
	return append([]snapshot.Device{r.device}, instances...)
}

// lose reports a GPU that cannot be read, and with it the instances that it
// had: they too keep their places.
func (d *Driver) lose(g *gpu, r *reading, why string) []snapshot.Device {
	gpu := r.lost(why)
	d.addXIDs(&gpu)
	return append([]snapshot.Device{gpu}, d.loseInstances(g, why)...)
}

// loseInstances reports the instances that the GPU had last as unreadable.
func (d *Driver) loseInstances(g *gpu, why string) []snapshot.Device {
	d.reopen(g, why)
	var devices []snapshot.Device
	for _, instance := range d.instances[g.identity.uuid] {
		devices = append(devices, (&reading{device: instance}).lost(why))
	}
	return devices
}

// reopen asks for a new Init, which is how a GPU that was reset comes back.
func (d *Driver) reopen(g *gpu, why string) {
	d.trouble = fmt.Sprintf("GPU %d: %s", g.index, why)
}

// readMode finds out whether the GPU is in MIG mode now. When it cannot be
// told, the mode is what it was.
func (d *Driver) readMode(g *gpu) {
	if !d.has("nvmlDeviceGetMigMode") || !d.has("nvmlDeviceGetMigDeviceHandleByIndex") || !d.has("nvmlDeviceGetMaxMigDeviceCount") {
		return
	}
	mode, _, ret := g.handle.GetMigMode()
	if ret == nvml.SUCCESS {
		g.mig = mode == nvml.DEVICE_MIG_ENABLE
	}
	if g.mig {
		// A GPU in MIG mode has no activity of its own.
		g.activity.at = time.Time{}
		g.kept.forget(gpmDevice)
	}
}

// readInstances reads the MIG instances that exist at this moment: their
// handles are asked for each time, because a layout changes without notice. The
// error says that they could not be found out.
func (d *Driver) readInstances(g *gpu, now time.Time) ([]snapshot.Device, error) {
	var found []instance
	n, ret := g.handle.GetMaxMigDeviceCount()
	if ret != nvml.SUCCESS && !vacant(ret) {
		return nil, fmt.Errorf("nvmlDeviceGetMaxMigDeviceCount: %s", name(ret))
	}
	for i := range n {
		handle, ret := g.handle.GetMigDeviceHandleByIndex(i)
		if vacant(ret) || ret == nvml.ERROR_NO_PERMISSION { // or it is not for this process
			continue
		}
		var uuid string
		if ret == nvml.SUCCESS {
			if uuid, ret = handle.GetUUID(); vacant(ret) {
				continue // destroyed since
			}
		}
		if ret != nvml.SUCCESS {
			return nil, fmt.Errorf("MIG instance %d: %s", i, name(ret))
		}
		found = append(found, d.instance(handle, snapshot.Text(uuid)))
	}
	sharers := map[int]int{}
	for _, i := range found {
		sharers[i.gpuInstance]++
	}
	var devices []snapshot.Device
	for _, i := range found {
		if i.sharers = 1; i.gpuInstance >= 0 {
			i.sharers = sharers[i.gpuInstance]
		}
		devices = append(devices, d.readInstance(g, i, now))
	}
	for uuid, a := range g.instances {
		if !slices.ContainsFunc(found, func(i instance) bool { return i.uuid == uuid }) {
			a.free()
			delete(g.instances, uuid)
		}
	}
	return devices, nil
}

// instance is a MIG device: a compute instance, mostly the only one of its GPU instance.
type instance struct {
	handle nvml.Device
	uuid   string
	// gpuInstance is the number of the GPU instance, -1 where the driver does not give it.
	gpuInstance int
	// sharers is how many compute instances the GPU instance has.
	sharers int
}

func (d *Driver) instance(handle nvml.Device, uuid string) instance {
	i := instance{handle: handle, uuid: uuid, gpuInstance: -1}
	if d.has("nvmlDeviceGetGpuInstanceId") {
		if id, ret := handle.GetGpuInstanceId(); ret == nvml.SUCCESS {
			i.gpuInstance = id
		}
	}
	return i
}

// vacant says that there is no instance, as drivers say it.
func vacant(ret nvml.Return) bool {
	return ret == nvml.ERROR_NOT_FOUND || ret == nvml.ERROR_INVALID_ARGUMENT || absent(ret)
}

func (d *Driver) readInstance(g *gpu, i instance, now time.Time) snapshot.Device {
	r := newReading(snapshot.Device{
		ID: i.uuid, Vendor: "nvidia", Model: g.identity.model, File: g.identity.file, Index: g.index, Parent: g.identity.uuid,
	})
	if full, ret := i.handle.GetName(); ret == nvml.SUCCESS {
		// "NVIDIA H200 MIG 1g.18gb"
		if _, profile, ok := strings.Cut(snapshot.Text(full), " MIG "); ok {
			r.device.Profile = profile
		}
	}
	d.readMemory(i.handle, r, false)
	r.divideMemory(i.sharers)
	if i.gpuInstance >= 0 {
		r.device.Instance = i.gpuInstance
		a := g.instances[i.uuid]
		if a == nil {
			a = &activity{}
			g.instances[i.uuid] = a
		}
		k := d.keptFor(i.uuid)
		d.readActivity(a, g, &i, k)
		k.report(r, now)
	}
	if r.gone != "" {
		return r.lost(r.gone)
	}
	return r.device
}
