package fleet

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
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
	// Ready: it is ready now. WasReady: it is, or has been at some time. Pending: its
	// containers have not all begun. Terminating: it is about to end.
	Ready, WasReady, Pending, Terminating bool
	// Plain: it asks for no device, neither by a resource of a device plugin nor by a
	// resource claim. Peers do not say.
	Plain bool
	// Leader: it is the leader of Group, the LeaderWorkerSet's group that it belongs to,
	// "name/index" or "".
	Leader bool
	Group  string
	// FirstReady is when it first became ready, as far as is known; zero: never, or not
	// known. Changed is when it last became ready, or not ready; zero: never.
	FirstReady, Changed time.Time
	// Sharer names what gives it a part of a GPU that the kubelet does not list; "" for
	// none. Peers do not say.
	Sharer string
	// IP is its address, "" before it has one. Ports are those that its containers
	// declare. Peers do not say.
	IP    string
	Ports []Port
	// Seen is when this scaler's watch first listed it, in seconds since 1970; 0 for pods
	// of other nodes.
	Seen int64
	// Created is when the API server made it, Started when its node took it; zero
	// before.
	Created, Started time.Time
	// Holding is what it holds, of a pod of this node.
	attribution.Holding
}

// Set is the name of the LeaderWorkerSet that the pod belongs to, or "".
func (p *Pod) Set() string {
	name, _, _ := strings.Cut(p.Group, "/")
	return name
}

// Port is one that a container declares.
type Port struct {
	Container, Name string
	Number          int
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
	ended      map[attribution.Pod]bool
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
	claimed       []Claim
	claimsUnknown bool // for a device that is not known
}

// SetPods takes over all pods of the node that have not ended; what they hold is
// not looked at. ended are the names of those that have: kubelets before 1.34 go
// on listing what such a pod held, and it holds nothing. Where a pod that has not
// ended has the name of one that has, the name is that of the former.
func (l *Local) SetPods(all []Pod, now time.Time, ended ...attribution.Pod) {
	slices.SortFunc(all, func(a, b Pod) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pods.gone = l.pods.departed(all, now)
	l.pods.ended = l.pods.over(all, ended)
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

// over are the pods that have ended. One that is deleted thereafter stays one while
// the kubelet's last answer lists it: that is from before.
func (p *pods) over(all []Pod, ended []attribution.Pod) map[attribution.Pod]bool {
	over := make(map[attribution.Pod]bool, len(ended))
	for _, pod := range ended {
		over[pod] = true
	}
	if p.allocation != nil {
		for i := range p.allocation.Containers {
			if pod := podOf(&p.allocation.Containers[i]); p.ended[pod] {
				over[pod] = true
			}
		}
	}
	for i := range all {
		delete(over, attribution.Pod{Namespace: all[i].Namespace, Name: all[i].Name})
	}
	return over
}

// held is what the kubelet lists, without the pods that have ended.
func (p *pods) held() *snapshot.Allocation {
	if p.allocation == nil || len(p.ended) == 0 {
		return p.allocation
	}
	held := &snapshot.Allocation{Containers: make([]snapshot.Container, 0, len(p.allocation.Containers))}
	for i := range p.allocation.Containers {
		if c := &p.allocation.Containers[i]; !p.ended[podOf(c)] {
			held.Containers = append(held.Containers, *c)
		}
	}
	return held
}

func podOf(c *snapshot.Container) attribution.Pod {
	return attribution.Pod{Namespace: c.Namespace, Name: c.Pod}
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
		held := p.held()
		p.changed, p.devices, p.public = false, devices, p.match(devices, held)
		p.byUID = index(p.public)
		p.lookAtClaims(held)
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

// Claim is a resource claim (DRA) of one of the node's pods.
type Claim struct {
	Namespace, Name string
	// Unread says that it has a device of which it has not been read whether it is for
	// administrative access.
	Unread bool
}

func (p *pods) lookAtClaims(held *snapshot.Allocation) {
	p.claimed, p.claimsUnknown = nil, false
	if held == nil {
		return
	}
	for i := range held.Containers {
		c := &held.Containers[i]
		for _, d := range c.Claimed {
			held := attribution.Allocated{Namespace: c.Namespace, Device: d}
			admin, known := p.claims.IsAdmin(held)
			_, read := p.claims.Admin[held]
			p.claim(Claim{c.Namespace, d.Claim, d.Claim != "" && !read})
			is := func(device attribution.Device) bool { return device.ID == p.claims.IDs[d.InSlice()] }
			p.claimsUnknown = p.claimsUnknown || !known || !admin && !slices.ContainsFunc(p.devices, is)
		}
	}
}

// claim adds a claim, of which there may be several devices.
func (p *pods) claim(c Claim) {
	i := slices.IndexFunc(p.claimed, func(have Claim) bool { return have.Namespace == c.Namespace && have.Name == c.Name })
	if i < 0 {
		p.claimed = append(p.claimed, c)
		return
	}
	p.claimed[i].Unread = p.claimed[i].Unread || c.Unread
}

func (p *pods) match(devices []attribution.Device, held *snapshot.Allocation) []*Pod {
	var holdings map[attribution.Pod]attribution.Holding
	if held != nil {
		holdings = attribution.Match(devices, held, &p.claims)
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
