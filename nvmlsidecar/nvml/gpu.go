package nvml

import (
	"fmt"
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
	activity  *activity
	instances map[string]*activity // of its MIG instances, by uuid
	slow      slowValues
}

func (g *gpu) free() {
	g.activity.free()
	for _, a := range g.instances {
		a.free()
	}
}

// enumerate finds the GPU at an index. A lost one keeps its place, under the
// identity that was last seen there.
func (d *Driver) enumerate(index int) *gpu {
	g := &gpu{index: index, instances: map[string]*activity{}}
	handle, ret := d.lib.DeviceGetHandleByIndex(index)
	if ret == nvml.SUCCESS {
		var uuid, model string
		if uuid, ret = handle.GetUUID(); ret == nvml.SUCCESS {
			model, _ = handle.GetName()
			g.handle = handle
			g.identity = identity{text(uuid), text(model)}
			d.known[index] = g.identity
			return g
		}
	}
	g.lost = name(ret)
	g.identity = d.known[index]
	if g.identity.uuid == "" {
		g.identity = identity{uuid: fmt.Sprintf("GPU-at-index-%d", index)}
	}
	d.log.Warn("a GPU cannot be opened", "index", index, "error", g.lost)
	return g
}

// readGPU reads one GPU and its MIG instances.
func (d *Driver) readGPU(g *gpu, now time.Time) []snapshot.Device {
	r := newReading(snapshot.Device{ID: g.identity.uuid, Vendor: "nvidia", Model: g.identity.model, Index: g.index})
	if g.handle == nil {
		d.reopen(g, g.lost)
		return []snapshot.Device{r.lost(g.lost)}
	}
	partitioned := d.partitioned(g)
	for _, get := range getters {
		if d.has(get.symbol) {
			get.read(g.handle, r)
		}
	}
	d.readMemory(g.handle, r)
	d.readProcesses(g.handle, r)
	if !partitioned {
		d.readActivity(&g.activity, g, -1, now, r)
	}
	g.slow.report(r, now)
	if r.gone != "" {
		d.reopen(g, r.gone)
		return []snapshot.Device{r.lost(r.gone)}
	}
	devices := []snapshot.Device{r.device}
	if partitioned {
		devices = append(devices, d.readInstances(g, now)...)
	}
	return devices
}

// reopen asks for a new Init, which is how a GPU that was reset comes back.
func (d *Driver) reopen(g *gpu, why string) {
	d.trouble = fmt.Sprintf("GPU %d: %s", g.index, why)
}

// partitioned says whether the GPU is in MIG mode now.
func (d *Driver) partitioned(g *gpu) bool {
	if !d.has("nvmlDeviceGetMigMode") || !d.has("nvmlDeviceGetMigDeviceHandleByIndex") || !d.has("nvmlDeviceGetMaxMigDeviceCount") {
		return false
	}
	mode, _, ret := g.handle.GetMigMode()
	return ret == nvml.SUCCESS && mode == nvml.DEVICE_MIG_ENABLE
}

// readInstances reads the MIG instances that exist at this moment: their
// handles are asked for each time, because a layout changes without notice.
func (d *Driver) readInstances(g *gpu, now time.Time) []snapshot.Device {
	var devices []snapshot.Device
	present := map[string]bool{}
	n, _ := g.handle.GetMaxMigDeviceCount()
	for i := range n {
		handle, ret := g.handle.GetMigDeviceHandleByIndex(i)
		if ret != nvml.SUCCESS {
			continue // no instance at this place
		}
		uuid, ret := handle.GetUUID()
		if ret != nvml.SUCCESS {
			continue // destroyed since
		}
		uuid = text(uuid)
		present[uuid] = true
		devices = append(devices, d.readInstance(g, handle, uuid, now))
	}
	for uuid, a := range g.instances {
		if !present[uuid] {
			a.free()
			delete(g.instances, uuid)
		}
	}
	return devices
}

func (d *Driver) readInstance(g *gpu, handle nvml.Device, uuid string, now time.Time) snapshot.Device {
	r := newReading(snapshot.Device{
		ID: uuid, Vendor: "nvidia", Model: g.identity.model, Index: g.index, Parent: g.identity.uuid,
	})
	if full, ret := handle.GetName(); ret == nvml.SUCCESS {
		// "NVIDIA H200 MIG 1g.18gb"
		if _, profile, ok := strings.Cut(text(full), " MIG "); ok {
			r.device.Profile = profile
		}
	}
	d.readMemory(handle, r)
	d.readProcesses(handle, r)
	if d.has("nvmlDeviceGetGpuInstanceId") {
		if id, ret := handle.GetGpuInstanceId(); ret == nvml.SUCCESS {
			r.device.Instance = id
			a := g.instances[uuid]
			d.readActivity(&a, g, id, now, r)
			if a != nil {
				g.instances[uuid] = a
			}
		}
	}
	if r.gone != "" {
		return r.lost(r.gone)
	}
	return r.device
}
