// Package fleet keeps what is known of the GPUs: it merges the samples of all
// writers into one immutable picture of the node, with window means computed
// where the samples arrive, and says how old it is. It knows no trigger, no
// KEDA and no transport.
package fleet

import (
	"fmt"
	"time"

	"gpuscaler/scaler/window"
)

// Node is everything known of one node at one moment. All of it is read-only.
type Node struct {
	// Name is the node's name, for people.
	Name string
	// Devices are ordered by vendor, index, physical before instance, and
	// instance. A device that cannot be read keeps its place.
	Devices []*Device
	// Writers are the connections that speak now, in order of arrival.
	Writers []Writer
	// Heard is when the newest sample of any writer was taken; zero when none
	// ever came.
	Heard time.Time
	// Pods are the node's own that have not ended, with what they hold; ordered by
	// namespace and name. HoldersOnly: those that hold nothing are left out.
	Pods        []*Pod
	HoldersOnly bool
	// Strangers are namespace/name of pods that hold devices, as the kubelet says,
	// and that the API server has not told of. Sorted.
	Strangers []string
	// Allocated is when the kubelet was last heard of which pods hold what; zero
	// when never.
	Allocated time.Time
	// Claims are the resource claims of its pods. ClaimsUnknown says that one is for a
	// device that is not known, or has not been read.
	Claims        []Claim
	ClaimsUnknown bool
	// PodsKnown says that the API server has told of the node's pods.
	PodsKnown bool
	// LeftOut counts the readings that were missing since the start: one for
	// each sample and metric that a device is known to have and that could not
	// be read, and one for a device of which nothing is known.
	LeftOut uint64

	// Boot is a number that is another one each time that the node's scaler starts; 0
	// where its version does not say.
	Boot uint64
	// Completed: its scaler has completed the windows itself, with what a peer recalled.
	Completed bool

	// young are the means of the devices of pods that began within the longest window,
	// of what was read since then: by UID, in the order of the pod's shares.
	young map[string][]Readings
	byUID map[string]*Pod
	gone  map[string]time.Time // pods that were here, by UID

	engines map[EngineKey]*Engine
}

// Pod is one of the node's by its UID, or nil.
func (n *Node) Pod(uid string) *Pod { return n.byUID[uid] }

// Had says whether a pod was here and is no more.
func (n *Node) Had(uid string) bool {
	if len(n.gone) == 0 { // mostly
		return false
	}
	_, gone := n.gone[uid]
	return gone
}

// Writer is one connected writer. Read-only.
type Writer struct {
	Name, Version string
	// Heard is when its newest sample was taken.
	Heard time.Time
	// Error is why it could read nothing at all, or "".
	Error string
	// Allocates: it reads the kubelet, and no devices.
	Allocates bool
	// Refused is how many devices it may not open.
	Refused int
}

// Device is one device with the means of its metrics. Read-only.
type Device struct {
	ID, Vendor, Model, File, Parent, Profile string
	Index, Instance                          int
	MemoryTotalMiB                           float64
	// Heard is when its newest reading was taken.
	Heard time.Time
	// Error is why nothing of it can be read, or "".
	Error string
	// Totals are its integrals over time, HasTotal which of them there are. Peers do not
	// tell of them.
	Totals   Totals
	HasTotal [len(Integrated)]bool
	// Health is how it is otherwise; nil of peers' devices.
	Health *Health
	// Blind is the part of the energy that was used while nothing was read.
	Blind int64

	// Motion is what the last five minutes say of the device's memory and work.
	Motion Motion

	means  Readings
	last   *Readings // of a device that cannot be read: the last there were, or nil
	failed map[string]string
}

// Motion is what the last window.Longest of a device's readings say: whether its memory
// in use follows a load. Read-only.
type Motion struct {
	// Known: there are readings of its memory for all of that time; WorkKnown: of its
	// gpu_utilization, too.
	Known, WorkKnown bool
	// Worked: a 15 s mean of its gpu_utilization was above 5 %.
	Worked bool
	// Minutes is in how many of the last window.Minutes the memory in use moved by 1 %
	// of the device's memory, or more.
	Minutes uint8
}

// Young are the means of a pod's device, of what was read since the pod began (see
// Pod.Begin); ok is false for pods that began longer ago than the longest window, and
// where the node does not say.
func (n *Node) Young(p *Pod, device string) (r Readings, ok bool) {
	if len(n.young) == 0 { // mostly
		return r, false
	}
	of, ok := n.young[p.UID]
	if !ok {
		return r, false
	}
	for i := range p.Shares {
		if p.Shares[i].Device == device && i < len(of) {
			return of[i], true
		}
	}
	return r, false
}

// YoungPods are the pods for which Young is known, with the means in the order of
// their shares.
func (n *Node) YoungPods() map[string][]Readings { return n.young }

// Device is one by its ID, or nil.
func (n *Node) Device(id string) *Device {
	for _, d := range n.Devices {
		if d.ID == id {
			return d
		}
	}
	return nil
}

// Value is the mean of a metric over one of window.Windows. ok is false when
// the last reading had no such value: see Failure.
func (d *Device) Value(metric string, w time.Duration) (v float64, ok bool) {
	m, ok := d.means.Get(metric)
	if !ok {
		return 0, false
	}
	i := window.Index(w)
	if i < 0 {
		return 0, false
	}
	return m[i], true
}

// Readings are the means with how much of their windows they cover.
func (d *Device) Readings() Readings { return d.means }

// Last is the last mean that a metric had, over one of window.Windows, also of a device
// that cannot be read any more.
func (d *Device) Last(metric string, w time.Duration) (v float64, ok bool) {
	if v, _, ok = d.means.Mean(metric, w); ok {
		return v, true
	}
	if d.last == nil {
		return 0, false
	}
	v, _, ok = d.last.Mean(metric, w)
	return v, ok
}

// Means are the means of all metrics that the last reading had.
func (d *Device) Means() Readings { return d.means }

// Failure says why a metric that the device has could not be read last time,
// or that the whole device could not be.
func (d *Device) Failure(metric string) (reason string, failed bool) {
	if reason, failed = d.failed[metric]; failed {
		return reason, true
	}
	return d.Error, d.Error != ""
}

// FullName is the product name as NVML says it, of an instance with its
// profile: "NVIDIA H200 MIG 1g.18gb".
func (d *Device) FullName() string {
	if d.Parent == "" || d.Profile == "" {
		return d.Model
	}
	return d.Model + " MIG " + d.Profile
}

// leftOut is how many readings the device's last sample lacks.
func (d *Device) leftOut() uint64 {
	if d.Error != "" && len(d.failed) == 0 {
		return 1
	}
	return uint64(len(d.failed))
}

// Has says whether the device is known to have the metric, readable now or not.
func (d *Device) Has(metric string) bool {
	if _, ok := d.means.Get(metric); ok {
		return true
	}
	_, ok := d.failed[metric]
	return ok
}

// MayHave is Has, or that the device could never be read and may have any.
func (d *Device) MayHave(metric string) bool {
	return d.Has(metric) || (d.Error != "" && len(d.failed) == 0)
}

// String names the device as people know it: "GPU 3" or "GPU 3 MIG 1g.18gb/7".
func (d *Device) String() string {
	name := fmt.Sprintf("GPU %d", d.Index)
	if d.Vendor != "nvidia" {
		name = fmt.Sprintf("%s device %d", d.Vendor, d.Index)
	}
	if d.Parent != "" {
		name += fmt.Sprintf(" MIG %s/%d", d.Profile, d.Instance)
	}
	return name
}

// Long is String with the model: "GPU 3 (NVIDIA H200)".
func (d *Device) Long() string {
	if d.Model == "" {
		return d.String()
	}
	return d.String() + " (" + d.Model + ")"
}

// Ready says why none of the node's data can be used at now, or nil: nothing
// heard yet, every reader silent for staleAfter, or no device readable. One
// device that is fresh suffices: what the others are missed for, each answer
// says itself.
func (n *Node) Ready(now time.Time, staleAfter time.Duration) error {
	if n.Heard.IsZero() {
		return fmt.Errorf("node %s: nothing heard yet from any reader", n.Name)
	}
	for _, d := range n.Devices {
		if d.Error == "" && now.Sub(d.Heard) <= staleAfter {
			return nil
		}
	}
	if age := now.Sub(n.Heard); age > staleAfter {
		return fmt.Errorf("node %s: nothing heard for %s", n.Name, Age(age))
	}
	for _, d := range n.Devices {
		if d.Error != "" {
			return fmt.Errorf("node %s: %s: %s", n.Name, d, d.Error)
		}
	}
	for _, w := range n.Writers {
		switch {
		case w.Error != "" && !w.Allocates:
			return fmt.Errorf("node %s: %s: %s", n.Name, w.Name, w.Error)
		case w.Refused > 0 && len(n.Devices) == 0:
			return fmt.Errorf("node %s: no devices, and %d that %s may not open", n.Name, w.Refused, w.Name)
		}
	}
	if len(n.Devices) == 0 {
		return fmt.Errorf("node %s: no devices", n.Name)
	}
	return fmt.Errorf("node %s: %s: nothing heard for %s", n.Name, n.Devices[0], Age(now.Sub(n.Devices[0].Heard)))
}

// Age rounds an age for people, up, so that it never reads as less than a
// limit it exceeds: to tenths of a second, or to seconds from a minute on.
func Age(d time.Duration) time.Duration {
	unit := 100 * time.Millisecond
	if d >= time.Minute {
		unit = time.Second
	}
	return (d + unit - 1).Truncate(unit)
}
