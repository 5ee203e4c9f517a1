package fleet

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"gpuscaler/scaler/attribution"
	"gpuscaler/shared/snapshot"
)

// Pod is one pod. Read-only.
type Pod struct {
	Namespace, Name, UID string
	// Node is where it is; "" while it waits for one.
	Node   string
	Labels map[string]string
	// Owner is what has it made, for people: a Deployment, a Job, or the pod itself.
	// Peers do not tell of it.
	Owner Owner
	// Ready: it is ready now. WasReady: it is, or has been at some time.
	Ready, WasReady bool
	// Terminating: it is about to end.
	Terminating bool
	// Created is when the API server made it, Started when its node took it; zero
	// before.
	Created, Started time.Time
	// Holding is what it holds, of a pod of this node.
	attribution.Holding
}

// Owner names what runs a pod. Read-only.
type Owner struct{ Kind, Name string }

// remembered is how long a pod that has gone is known to have: longer than any
// list of it from before is believed.
const remembered = time.Hour

// pods is what is known of the node's pods, from two sides: the API server says
// what they are, the kubelet what they hold. Guarded by Local.mu.
type pods struct {
	watched    []Pod                // without what they hold
	gone       map[string]time.Time // by UID; replaced, never changed
	known      bool
	allocation *snapshot.Allocation
	allocated  time.Time
	claims     attribution.Claims

	// What public was made of, beside the above.
	changed       bool
	devices       []attribution.Device
	public        []*Pod
	byUID         map[string]*Pod
	strangers     []string
	claimed       bool // some pod has a claim
	claimsUnknown bool // for a device that is not known
}

// SetPods takes over all pods of the node that have not ended; what they hold is
// not looked at.
func (l *Local) SetPods(all []Pod, now time.Time) {
	slices.SortFunc(all, func(a, b Pod) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pods.gone = l.pods.departed(all, now)
	l.pods.watched, l.pods.known, l.pods.changed = all, true, true
	l.publish(now)
}

// departed are the pods that have gone, with those that go now.
func (p *pods) departed(all []Pod, now time.Time) map[string]time.Time {
	gone := make(map[string]time.Time, len(p.gone))
	for uid, at := range p.gone {
		if now.Sub(at) < remembered {
			gone[uid] = at
		}
	}
	for _, before := range p.watched {
		if !slices.ContainsFunc(all, func(pod Pod) bool { return pod.UID == before.UID }) {
			gone[before.UID] = now
		}
	}
	return gone
}

// SetClaims takes over which devices the node's ResourceSlices name.
func (l *Local) SetClaims(claims attribution.Claims, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pods.claims, l.pods.changed = claims, true
	l.publish(now)
}

func (p *pods) allocate(a *snapshot.Allocation, heard time.Time) {
	if !p.allocated.Before(heard) {
		return // of an older reader that is about to go
	}
	p.allocation, p.allocated, p.changed = a, heard, true
}

// attribute gives the node its pods, with what they hold of its devices.
func (p *pods) attribute(n *Node) {
	devices := make([]attribution.Device, len(n.Devices))
	for i, d := range n.Devices {
		devices[i] = attribution.Device{ID: d.ID, Parent: d.Parent, Instance: d.Instance, File: d.file()}
	}
	if p.changed || !slices.Equal(devices, p.devices) {
		p.changed, p.devices, p.public = false, devices, p.match(devices)
		p.byUID = index(p.public)
		p.lookAtClaims()
	}
	n.Strangers = p.strangers
	n.Pods, n.byUID, n.PodsKnown, n.Allocated, n.gone = p.public, p.byUID, p.known, p.allocated, p.gone
	n.Claims, n.ClaimsUnknown = p.claimed, p.claimsUnknown
}

func index(pods []*Pod) map[string]*Pod {
	byUID := make(map[string]*Pod, len(pods))
	for _, p := range pods {
		byUID[p.UID] = p
	}
	return byUID
}

func (p *pods) lookAtClaims() {
	p.claimed, p.claimsUnknown = false, false
	if p.allocation == nil {
		return
	}
	for i := range p.allocation.Containers {
		for _, d := range p.allocation.Containers[i].Claimed {
			known := func(device attribution.Device) bool { return device.ID == p.claims[d] }
			p.claimed = true
			p.claimsUnknown = p.claimsUnknown || !slices.ContainsFunc(p.devices, known)
		}
	}
}

func (p *pods) match(devices []attribution.Device) []*Pod {
	var holdings map[attribution.Pod]attribution.Holding
	if p.allocation != nil {
		holdings = attribution.Match(devices, p.allocation, p.claims)
	}
	public := make([]*Pod, len(p.watched))
	for i, pod := range p.watched {
		name := attribution.Pod{Namespace: pod.Namespace, Name: pod.Name}
		pod.Holding = holdings[name]
		delete(holdings, name)
		public[i] = &pod
	}
	p.strangers = nil
	for name := range holdings {
		p.strangers = append(p.strangers, name.Namespace+"/"+name.Name)
	}
	slices.Sort(p.strangers)
	return public
}

// file is the device's file. Recordings have none: there the index stands for
// the number, which is the same on most nodes.
func (d *Device) file() string {
	if d.File == "" && d.Vendor == "nvidia" {
		return fmt.Sprintf("nvidia%d", d.Index)
	}
	return d.File
}
