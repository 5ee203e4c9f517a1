// Package attribution says which pod holds which part of a node's devices: it
// knows the ids that device plugins and DRA drivers give them, and shares a
// device between the pods that hold it. It is pure: it must not know where the
// ids come from, what a metric is, or what time it is.
package attribution

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"gpuscaler/shared/snapshot"
)

// Device is a device, or an instance of one, as its reader reports it.
type Device struct {
	ID string
	// Parent is the ID of the device that it is an instance of, or "".
	Parent string
	// File is the name of its device file, of an instance its parent's: "nvidia0".
	File string
	// Instance is the number of the GPU instance within Parent.
	Instance int
}

// Pod names a pod of the node.
type Pod struct{ Namespace, Name string }

// Share is a pod's part in one device.
type Share struct {
	// Device is the ID of what it holds, GPU that of the physical device: the
	// same if it holds that.
	Device, GPU string
	// Holders is how many pods hold Device, GPUHolders how many hold GPU or an
	// instance of it; both count this one. The parts of all holders are equal, so
	// that they add up to the device.
	Holders, GPUHolders int
	// Containers are those of the pod that hold it, in the kubelet's order. Read-only.
	Containers []string
}

// Container is the pod's first that holds it, or "".
func (s *Share) Container() string {
	if len(s.Containers) == 0 {
		return ""
	}
	return s.Containers[0]
}

// Holding is all that one pod holds.
type Holding struct {
	// Shares are ordered as the node's devices are, each device once.
	Shares []Share
	// Unknown are the ids that are no device that is known, sorted.
	Unknown []string
}

// Claims is what the API server says of resource claims (DRA).
type Claims struct {
	// IDs are those of the devices that ResourceSlices name; the keys have no claim.
	IDs map[snapshot.ClaimedDevice]string
	// Admin says of each device of a claim whether it is for administrative access: a monitor
	// has it so, beside the pods to which it is allocated
	// (https://kubernetes.io/docs/concepts/scheduling-eviction/dynamic-resource-allocation/#admin-access).
	// A device that is not in it is not known, unless Unreadable.
	Admin map[Allocated]bool
	// Unreadable says that claims may not be read. Then none is for administrative access.
	Unreadable bool
}

// Allocated is a device that a claim of a namespace has.
type Allocated struct {
	Namespace string
	Device    snapshot.ClaimedDevice
}

// IsAdmin says whether a device is for administrative access, and whether that is known.
func (c *Claims) IsAdmin(a Allocated) (admin, known bool) {
	if a.Device.Claim == "" {
		return false, true
	}
	admin, known = c.Admin[a]
	return admin, known || c.Unreadable
}

// Match finds what each pod holds. devices are in node order. Pods that hold
// nothing are not in the answer.
func Match(devices []Device, a *snapshot.Allocation, claims *Claims) map[Pod]Holding {
	node := index(devices)
	held := make(map[Pod]*set)
	of := func(c *snapshot.Container) *set {
		pod := Pod{c.Namespace, c.Pod}
		if held[pod] == nil {
			held[pod] = &set{devices: map[int][]string{}}
		}
		return held[pod]
	}
	for i := range a.Containers {
		c := &a.Containers[i]
		for _, p := range c.Plugin {
			for _, id := range p.IDs {
				of(c).add(node.plugin(id), id, c.Name)
			}
		}
		for _, d := range c.Claimed {
			at := -1
			admin, known := claims.IsAdmin(Allocated{c.Namespace, d})
			if admin {
				continue
			}
			if known {
				at = node.claimed(d, claims)
			}
			of(c).add(at, d.Driver+"/"+d.Pool+"/"+d.Device, c.Name)
		}
	}
	return share(node, held)
}

// set is what one pod holds, by position in the node's devices, and the
// containers that hold it.
type set struct {
	devices map[int][]string
	unknown []string
}

func (s *set) add(device int, id, container string) {
	switch {
	case device >= 0:
		names := s.devices[device]
		if container != "" && !slices.Contains(names, container) {
			names = append(names, container)
		}
		s.devices[device] = names
	case !slices.Contains(s.unknown, id):
		s.unknown = append(s.unknown, id)
	}
}

// share counts who else holds each device.
func share(node *node, held map[Pod]*set) map[Pod]Holding {
	holders := make([]int, len(node.devices))
	gpuHolders := make(map[string]int)
	for _, s := range held {
		gpus := make(map[string]bool)
		for d := range s.devices {
			holders[d]++
			gpus[node.devices[d].gpu()] = true
		}
		for gpu := range gpus {
			gpuHolders[gpu]++
		}
	}
	all := make(map[Pod]Holding, len(held))
	for pod, s := range held {
		h := Holding{Unknown: s.unknown}
		slices.Sort(h.Unknown)
		for d := range node.devices {
			if containers, ok := s.devices[d]; ok {
				gpu := node.devices[d].gpu()
				s := Share{Device: node.devices[d].ID, GPU: gpu, Holders: holders[d], GPUHolders: gpuHolders[gpu], Containers: containers}
				h.Shares = append(h.Shares, s)
			}
		}
		if len(h.Shares) > 0 { // beside GPUs that are read, a PCI address is a NIC's
			h.Unknown = slices.DeleteFunc(h.Unknown, pciID.MatchString)
		}
		if len(h.Shares)+len(h.Unknown) > 0 {
			all[pod] = h
		}
	}
	return all
}

func (d *Device) gpu() string { return cmp.Or(d.Parent, d.ID) }

// node finds devices by the ids that others have for them.
type node struct {
	devices []Device
	byID    map[string]int
	byFile  map[file]int
}

// file is how GKE's device plugin names devices: by the device file, and the
// number of the instance or -1.
type file struct {
	name     string
	instance int
}

func index(devices []Device) *node {
	n := &node{devices: devices, byID: make(map[string]int, len(devices)), byFile: make(map[file]int, len(devices))}
	for i, d := range devices {
		n.byID[d.ID] = i
		switch {
		case d.File == "":
		case d.Parent != "":
			n.byFile[file{d.File, d.Instance}] = i
		default:
			n.byFile[file{d.File, -1}] = i
		}
	}
	return n
}

// plugin is the device of a device plugin's id, or -1. NVIDIA's plugin has UUIDs,
// for a replica with "::" and its number; GKE's has "nvidia0", "nvidia0/gi1" for
// an instance, and either with "/vgpu2" for a replica.
func (n *node) plugin(id string) int {
	id, _, _ = strings.Cut(id, "::")
	if i, ok := n.byID[id]; ok {
		return i
	}
	if f, ok := parseFile(id); ok {
		if i, ok := n.byFile[f]; ok {
			return i
		}
	}
	return -1
}

func parseFile(id string) (f file, ok bool) {
	name, rest, more := strings.Cut(id, "/")
	f = file{name, -1}
	if more && strings.HasPrefix(rest, "gi") {
		var instance string
		instance, rest, more = strings.Cut(rest, "/")
		if f.instance, ok = numbered(instance, "gi"); !ok {
			return f, false
		}
	}
	if !more {
		return f, true
	}
	_, ok = numbered(rest, "vgpu")
	return f, ok
}

// numbered reads 1 from "gi1" for "gi".
func numbered(s, prefix string) (n int, ok bool) {
	digits, ok := strings.CutPrefix(s, prefix)
	if !ok {
		return 0, false
	}
	v, err := strconv.ParseUint(digits, 10, 16)
	return int(v), err == nil
}

// claimed is the device of a claim, or -1: a DRA driver's slice says which.
func (n *node) claimed(d snapshot.ClaimedDevice, claims *Claims) int {
	if id, ok := claims.IDs[d.InSlice()]; ok {
		if i, ok := n.byID[id]; ok {
			return i
		}
	}
	return -1
}
