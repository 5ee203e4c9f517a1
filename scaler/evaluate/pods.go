package evaluate

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"gpuscaler/scaler/attribution"
	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/terms"
	"gpuscaler/scaler/trigger"
	"gpuscaler/scaler/window"
)

// place is a pod and the node that it is on; nil where that was never received. The
// node has reported the pod, if known.
type place struct {
	pod   *fleet.Pod
	node  *fleet.Node
	known bool
}

const (
	// soon is how long after a pod's start its node has reported what the pod has: the
	// clocks of nodes and API server differ by less.
	soon = 15 * time.Second
	// listed is how long a list of pods takes at most.
	listed = 10 * time.Second
)

// placed are the workload's pods: those of the own node, which sees them first, and
// those of the API server's list, as their node reports them where it does. The pods of
// a group stand together.
func placed(f Fleet, w *Workload) (all []place) {
	own := f.Own()
	if own != nil {
		for _, p := range own.Pods {
			if w.has(p) {
				all = append(all, place{p, own, true})
			}
		}
	}
	here := len(all)
	all = slices.Grow(all, len(w.Pods))
	listedHere := make([]bool, here)
	for _, p := range w.Pods {
		if own != nil {
			if i := slices.IndexFunc(all[:here], func(at place) bool { return at.pod.UID == p.UID }); i >= 0 {
				all[i].pod, listedHere[i] = newer(all[i].pod, p), true
				continue
			}
			if own.Had(p.UID) {
				continue
			}
		}
		at := place{pod: p}
		if p.Node != "" {
			at.node = f.Node(p.Node)
		}
		if at.node != nil {
			if at.node.Had(p.UID) {
				continue
			}
			if known := at.node.Pod(p.UID); known != nil {
				at.pod, at.known = newer(known, p), true
			} else if at.node.HoldersOnly && at.node.Allocated.After(p.Started.Add(soon)) && !p.Started.IsZero() {
				// It has no device, or its node would have reported it.
				at.known = !slices.Contains(at.node.Strangers, p.Namespace+"/"+p.Name)
			}
		}
		all = append(all, at)
	}
	if len(w.Pods) >= w.Status { // the list has all the replicas that are counted
		all = present(all, listedHere, w.Told)
	}
	if len(w.Sets) > 0 {
		slices.SortStableFunc(all, func(a, b place) int { return cmp.Compare(a.pod.Group, b.pod.Group) })
	}
	return all
}

// present leaves out the pods of the own node, which come first, that a later list lacks:
// they are removed, and the node's watch is dead.
func present(all []place, listedHere []bool, told time.Time) []place {
	gone := func(i int) bool {
		seen := all[i].pod.Seen
		return !listedHere[i] && seen > 0 && told.Sub(time.Unix(seen, 0)) > listed
	}
	n := 0
	for i := range listedHere {
		if !gone(i) {
			all[n] = all[i]
			n++
		}
	}
	return append(all[:n], all[len(listedHere):]...)
}

// newer is a pod as its node reports it, or with the readiness of the API server's list
// where that changed later: a node's watch may be dead.
func newer(node, list *fleet.Pod) *fleet.Pod {
	later := list.Changed.After(node.Changed) || (node.Pending && !list.Pending)
	if !later && (node.Terminating || !list.Terminating) {
		return node
	}
	p := *node
	p.Terminating = node.Terminating || list.Terminating
	if later {
		p.Ready, p.WasReady, p.Changed, p.Pending = list.Ready, node.WasReady || list.WasReady, list.Changed, list.Pending
		if p.FirstReady.IsZero() && !node.WasReady {
			p.FirstReady = list.FirstReady
		}
		if p.Started.IsZero() {
			p.Started = list.Started
		}
	}
	return &p
}

// unattributed says why it is not known what the pod has, or "".
func (p *place) unattributed(now time.Time, limits Limits) string {
	n := p.node
	switch {
	case p.pod.Node == "" && !p.known:
		return "is on no node yet"
	case n == nil:
		return fmt.Sprintf("nothing is heard of its node %s", p.pod.Node)
	case !n.PodsKnown:
		return fmt.Sprintf("node %s: its pods are not known yet from the API server", n.Name)
	case !p.known:
		return fmt.Sprintf("node %s has not told of it yet", n.Name)
	case n.Allocated.IsZero():
		return fmt.Sprintf("node %s: nothing heard yet from the reader of the kubelet (scaler podresources), which knows the GPUs of each pod; without it only scope: node is possible", n.Name)
	}
	if age := now.Sub(n.Allocated); age > limits.AttributionStaleAfter {
		return fmt.Sprintf("node %s: nothing heard from the kubelet for %s, more than %s", n.Name, fleet.Age(age), limits.AttributionStaleAfter)
	}
	return ""
}

// unknown says of ids that no device has what they are, or why none has them.
func (p *podPart) unknown(n *fleet.Node, pod *fleet.Pod) {
	p.reason = fmt.Sprintf("holds %s, which nobody reports", terms.List(pod.Unknown))
	p.mayBeBusy = true
	for _, id := range pod.Unknown {
		if sharer, ok := attribution.Unsupported(pod.Namespace, "", id); ok {
			p.never = &never{sharer, fmt.Sprintf("has %s, which is %s", id, sharer)}
			p.reason = p.never.reason
			return
		}
	}
	for _, w := range n.Writers {
		if w.Error != "" && !w.Allocates {
			p.reason = fmt.Sprintf("holds %s, which nobody reports; node %s: %s: %s", terms.List(pod.Unknown), n.Name, w.Name, w.Error)
		}
	}
}

// part is one device of a pod, and how many pods it is allocated to.
type part struct {
	device *fleet.Device
	share  string // the device that is allocated: an instance of device, or device
	owners int
}

// parts are the devices of a pod that are in the trigger's scope, each once: for an
// instance without the metric its GPU, which then is shared by all owners of a piece of
// it. They are appended to parts.
func (r *reader) parts(n *fleet.Node, pod *fleet.Pod, parts []part) []part {
	t := r.t
	var others bool // of another vendor than the first
	for i := range pod.Shares {
		s := &pod.Shares[i]
		d := n.Device(s.Device)
		if d == nil || (t.GPUModel != "" && !like(d, t.GPUModel)) {
			continue
		}
		if t.Container != "" && !slices.Contains(s.Containers, t.Container) {
			continue
		}
		p := part{d, s.Device, s.Holders}
		if s.GPU != s.Device && !d.Has(t.Metric.Name) {
			if gpu := n.Device(s.GPU); gpu != nil && gpu.Has(t.Metric.Name) {
				p = part{gpu, s.Device, s.GPUHolders}
			}
		}
		if !slices.ContainsFunc(parts, func(have part) bool { return have.device == p.device }) {
			parts = append(parts, p)
			others = others || p.device.Vendor != parts[0].device.Vendor
		}
	}
	if !others {
		return parts
	}
	devices := make([]*fleet.Device, len(parts))
	for i := range parts {
		devices[i] = parts[i].device
	}
	devices = reporting(devices, t)
	return slices.DeleteFunc(parts, func(p part) bool { return !slices.Contains(devices, p.device) })
}

// filled says whether there are enough readings for a window.
type filled int

const (
	enough    filled = iota
	tooYoung         // the pod has not been there for long enough
	restarted        // its scaler has not
)

// read is the pod's part of the metric, and whether there are enough readings for its
// window, or why there is no value now. The window does not reach back beyond begin.
func (p *part) read(t *trigger.Trigger, n *fleet.Node, pod *fleet.Pod, begin, now time.Time, staleAfter time.Duration) (v float64, state filled, reason string) {
	if age := now.Sub(p.device.Heard); age > staleAfter {
		return 0, enough, fmt.Sprintf("%s: nothing heard for %s, more than %s", p.device.Long(), fleet.Age(age), staleAfter)
	}
	v, covered, ok := p.mean(t, n, pod, begin)
	if !ok {
		if reason, failed := p.device.Failure(t.Metric.Name); failed {
			return 0, enough, fmt.Sprintf("%s: %s", p.device.Long(), reason)
		}
		return 0, enough, fmt.Sprintf("%s has no %s", p.device.Long(), t.Metric.Name)
	}
	if t.Metric.Divides() {
		v /= float64(p.owners)
	}
	need := min(t.Window, settle)
	if covered >= need {
		return v, enough, ""
	}
	if _, all, _ := p.device.Readings().Mean(t.Metric.Name, t.Window); all >= need {
		return v, tooYoung, ""
	}
	return v, restarted, ""
}

// mean is the metric over the trigger's window, as far as that lies after begin, and how
// much of it there are readings for.
func (p *part) mean(t *trigger.Trigger, n *fleet.Node, pod *fleet.Pod, begin time.Time) (v float64, covered time.Duration, ok bool) {
	own := pod.Begin()
	if begin.IsZero() && own.IsZero() {
		return p.device.Readings().Mean(t.Metric.Name, t.Window)
	}
	since := p.device.Heard.Sub(begin)
	whole := since >= t.Window
	fits := t.Window
	if !whole { // the longest window that fits
		fits = window.Windows[0]
		for _, w := range window.Windows {
			if w <= since && w <= t.Window {
				fits = w
			}
		}
	}
	if r, found := n.Young(pod, p.share); found && p.share == p.device.ID {
		over := fits
		if !own.Before(begin) {
			over = t.Window // it has nothing from before begin
		}
		// The device's may have, also over a window that begins later: what completes it
		// after a restart is from before. Until when a pod is young its node's clock says.
		v, covered, ok = r.Mean(t.Metric.Name, over)
		if own.After(begin) { // a worker that was replaced: the group's readiness is its leader's
			if !ok { // nothing was read since: the last reading reaches back the least
				v, _, ok = p.device.Readings().Mean(t.Metric.Name, 0)
			}
			return v, t.Window, ok
		}
		if ok && (!whole || own.Equal(begin) || covered >= min(t.Window, settle)) {
			return v, covered, true
		}
	}
	return p.device.Readings().Mean(t.Metric.Name, fits)
}

// mayBeBusy says whether a device that has no value now may work: by its last value,
// if there is one. One that the driver reports lost does nothing.
func (p *part) mayBeBusy(t *trigger.Trigger) bool {
	if isLost(p.device) || !p.device.MayHave(t.Metric.Name) {
		return false
	}
	v, ok := p.device.Last(t.Metric.Name, t.Window)
	return !ok || v > t.Activation
}

// isLost says whether the driver reports a device lost: then no process works on it. With
// any other error, and where its reader reads nothing at all, one may. The names are
// those of nvml.h's ERROR_GPU_IS_LOST, ERROR_RESET_REQUIRED and ERROR_GPU_NOT_FOUND, as
// nvmlsidecar reports them.
func isLost(d *fleet.Device) bool {
	return slices.ContainsFunc([]string{"GPU_IS_LOST", "RESET_REQUIRED", "GPU_NOT_FOUND"}, func(name string) bool { return strings.Contains(d.Error, name) })
}
