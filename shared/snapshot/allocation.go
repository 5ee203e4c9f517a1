package snapshot

import "fmt"

// Limits on one Allocation. A node has 110 pods, 500 at most; a GPU has up to
// some hundred replicas when it is shared.
const (
	MaxContainers = 1024 // that hold devices
	MaxHeld       = 4096 // devices that they hold, and resources, all together
)

// Allocation is which containers of a node hold which devices, all of them.
// Read-only.
type Allocation struct {
	Containers []Container
}

// Container is one container that holds devices. Read-only.
type Container struct {
	Namespace, Pod, Name string
	// Plugin are devices that a device plugin has, by resource.
	Plugin []PluginDevices
	// Claimed are devices of resource claims (DRA).
	Claimed []ClaimedDevice
}

// PluginDevices are devices of one resource, by the ids that its device plugin
// gave them.
type PluginDevices struct {
	// Resource is "nvidia.com/gpu", "nvidia.com/mig-1g.18gb".
	Resource string
	IDs      []string
}

// ClaimedDevice is one device as the ResourceSlice of its driver names it.
type ClaimedDevice struct {
	Driver, Pool, Device string
	// Claim is the name of the ResourceClaim, which is in the pod's namespace; "" where the
	// reader does not give it.
	Claim string
}

// InSlice is the device alone, whatever claim it is allocated to.
func (d ClaimedDevice) InSlice() ClaimedDevice {
	d.Claim = ""
	return d
}

func (a *Allocation) validate() error {
	if a == nil {
		return nil
	}
	if len(a.Containers) > MaxContainers {
		return fmt.Errorf("%d containers, at most %d are allowed", len(a.Containers), MaxContainers)
	}
	held := 0
	for i := range a.Containers {
		c := &a.Containers[i]
		if err := c.validate(); err != nil {
			return fmt.Errorf("container %d (%q): %w", i, cut(c.Name), err)
		}
		held += len(c.Claimed)
		for _, p := range c.Plugin {
			held += 1 + len(p.IDs)
		}
	}
	if held > MaxHeld {
		return fmt.Errorf("%d devices and resources held, at most %d are allowed", held, MaxHeld)
	}
	return nil
}

func (c *Container) validate() error {
	if c.Namespace == "" || c.Pod == "" {
		return fmt.Errorf("namespace and pod must not be empty")
	}
	if err := texts(c.Namespace, c.Pod, c.Name); err != nil {
		return err
	}
	for _, p := range c.Plugin {
		if err := texts(p.Resource); err != nil {
			return err
		}
		if err := texts(p.IDs...); err != nil {
			return err
		}
	}
	for _, d := range c.Claimed {
		if err := texts(d.Driver, d.Pool, d.Device, d.Claim); err != nil {
			return err
		}
	}
	return nil
}
