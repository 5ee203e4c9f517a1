package fleet

import "time"

// Describe is a device as a peer tells of it: with the means of its metrics, and
// why others cannot be read.
func (d Device) Describe(means Readings, failed map[string]string) *Device {
	d.means, d.failed = means, failed
	return &d
}

// WithYoung is the node with the means of its young pods: see Node.Young. It takes over
// the map.
func (n Node) WithYoung(means map[string][]Readings) *Node {
	n.young = means
	return &n
}

// WithEngines is the node with the engines of its pods that are read: see Node.Engine.
// It takes over the map.
func (n Node) WithEngines(all map[EngineKey]*Engine) *Node {
	n.engines = all
	return &n
}

// Failed are the metrics that could not be read last time, and why.
func (d *Device) Failed() map[string]string { return d.failed }

// Gone are the UIDs of pods that were here and are no more, at most so many, of
// those that went after a time.
func (n *Node) Gone(since time.Time, most int) (uids []string) {
	for uid, at := range n.gone {
		if at.After(since) && len(uids) < most {
			uids = append(uids, uid)
		}
	}
	return uids
}

// Pods is what a peer tells of its node's pods, of those that hold devices: to be
// shared by the nodes that it is told of in until it changes.
type Pods struct {
	list  []*Pod
	byUID map[string]*Pod
	gone  map[string]time.Time
	other []string
}

// NewPods are pods that hold devices, the UIDs of those that have gone, and those
// that are strangers (see Node).
func NewPods(list []*Pod, gone, strangers []string) *Pods {
	p := &Pods{list: list, byUID: index(list), other: strangers, gone: make(map[string]time.Time, len(gone))}
	for _, uid := range gone {
		p.gone[uid] = time.Time{}
	}
	return p
}

// At is the pod at a position, or nil.
func (p *Pods) At(i int) *Pod {
	if i < 0 || i >= len(p.list) {
		return nil
	}
	return p.list[i]
}

// With is the node with these pods.
func (n Node) With(p *Pods) *Node {
	n.Pods, n.byUID, n.gone, n.Strangers, n.HoldersOnly = p.list, p.byUID, p.gone, p.other, true
	return &n
}
