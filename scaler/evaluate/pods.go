package evaluate

import (
	"fmt"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/labels"

	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/replicas"
	"gpuscaler/scaler/terms"
	"gpuscaler/scaler/trigger"
)

// ends says whether a pod is terminating, and notes it.
func (d *Decision) ends(pod *fleet.Pod) bool {
	if pod.Terminating {
		d.ending++
	}
	if pod.Terminating && pod.Ready {
		d.terminating++
	}
	return pod.Terminating
}

// place is a pod and the node that it is on; nil where nothing is heard of that.
// The node has told of the pod, if known.
type place struct {
	pod   *fleet.Pod
	node  *fleet.Node
	known bool
}

// soon is how long after a pod's start its node has told of what it holds: the
// clocks of nodes and API server differ by less.
const soon = 15 * time.Second

// placed are the workload's pods: those of the own node, of which it knows first,
// and those that the API server tells of, in the words of their node where that
// knows them.
func placed(f Fleet, w *Workload) (all []place) {
	own := f.Own()
	if own != nil {
		for _, p := range own.Pods {
			if p.Namespace == w.Namespace && w.Selector.Matches(labels.Set(p.Labels)) {
				all = append(all, place{p, own, true})
			}
		}
	}
	here := all
	all = slices.Grow(all, len(w.Pods))
	for _, p := range w.Pods {
		if own != nil && (own.Had(p.UID) || slices.ContainsFunc(here, func(h place) bool { return h.pod.UID == p.UID })) {
			continue
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
				at.pod, at.known = known, true
			} else if at.node.HoldersOnly && at.node.Allocated.After(p.Started.Add(soon)) && !p.Started.IsZero() {
				// It holds nothing, or it would have been told of.
				at.known = !slices.Contains(at.node.Strangers, p.Namespace+"/"+p.Name)
			}
		}
		all = append(all, at)
	}
	return all
}

// unattributed says why it is not known what the pod holds, or "".
func (p place) unattributed(now time.Time, limits Limits) string {
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

// readPod reads one pod, and says how many GPUs it holds.
func readPod(t *trigger.Trigger, at place, now time.Time, limits Limits) (r PodReading, gpus int, err error) {
	n, pod := at.node, at.pod
	r = PodReading{Pod: pod, Node: n, State: replicas.Missing}
	if !pod.WasReady {
		r.State = replicas.Starting
	}
	if r.Reason = at.unattributed(now, limits); r.Reason != "" {
		r.unheard = pod.Node != "" || at.known // one without a node holds nothing that could be busy
		return r, 0, nil
	}
	var room [8]part // of most nodes
	parts := partsOf(t, n, pod, room[:0])
	if len(pod.Unknown) > 0 {
		r.Reason, r.unheard = fmt.Sprintf("holds %s, which nobody reports", terms.List(pod.Unknown)), true
		if len(parts) == 0 || t.GPUIndex >= 0 { // which would be counted wrongly
			return r, len(parts), nil
		}
	}
	if len(parts) == 0 {
		r.Reason = "holds no GPU"
		// So the kubelet said, if it has spoken since the pod is there.
		r.unheard = now.Sub(n.Allocated) > limits.StaleAfter || n.Allocated.Before(pod.Started)
		return r, 0, nil
	}
	gpus = len(parts)
	if t.GPUIndex >= gpus {
		return r, 0, fail(Invalid, "gpuIndex: %d is beyond the GPUs of pod %s; it has %s", t.GPUIndex, pod.Name, count(gpus))
	}
	if t.GPUIndex >= 0 {
		parts = parts[t.GPUIndex : t.GPUIndex+1]
	}
	var few [16]float64
	values := few[:0]
	for _, p := range parts {
		v, reason := p.read(t, now, limits.StaleAfter)
		if reason != "" {
			r.Reason, r.unheard = fmt.Sprintf("node %s: %s", n.Name, reason), r.unheard || p.device.MayHave(t.Metric.Name)
			continue
		}
		values = append(values, v)
		if stale := p.device.Heard.Add(limits.StaleAfter); len(values) == 1 || stale.Before(r.until) {
			r.until = stale
		}
	}
	if len(values) == 0 {
		return r, gpus, nil
	}
	if old := n.Allocated.Add(limits.AttributionStaleAfter); old.Before(r.until) {
		r.until = old
	}
	r.Value, r.HasValue = t.Aggregation.Apply(values), true
	if r.State == replicas.Missing {
		r.State = replicas.Counting
	}
	if r.Value < 0 {
		return r, gpus, fail(Impossible, "metricType: %s of pod %s stands at %v, and KEDA would read a negative value as 0", t.Metric.Name, pod.Name, r.Value)
	}
	return r, gpus, nil
}

// part is one device of a pod, and how many pods it is shared by.
type part struct {
	device  *fleet.Device
	holders int
}

// partsOf are the devices of a pod that the trigger is about, each once: for an
// instance without the metric its GPU, which then is shared by all who hold a
// piece of it. They are appended to parts.
func partsOf(t *trigger.Trigger, n *fleet.Node, pod *fleet.Pod, parts []part) []part {
	for _, s := range pod.Shares {
		d := n.Device(s.Device)
		if d == nil || (t.GPUModel != "" && !like(d, t.GPUModel)) {
			continue
		}
		p := part{d, s.Holders}
		if s.GPU != s.Device && !d.Has(t.Metric.Name) {
			if gpu := n.Device(s.GPU); gpu != nil && gpu.Has(t.Metric.Name) {
				p = part{gpu, s.GPUHolders}
			}
		}
		if !slices.ContainsFunc(parts, func(have part) bool { return have.device == p.device }) {
			parts = append(parts, p)
		}
	}
	return parts
}

// read is the pod's part of the metric, or why there is none now.
func (p part) read(t *trigger.Trigger, now time.Time, staleAfter time.Duration) (v float64, reason string) {
	if age := now.Sub(p.device.Heard); age > staleAfter {
		return 0, fmt.Sprintf("%s: nothing heard for %s, more than %s", p.device, fleet.Age(age), staleAfter)
	}
	v, ok := p.device.Value(t.Metric.Name, t.Window)
	if !ok {
		if reason, failed := p.device.Failure(t.Metric.Name); failed {
			return 0, fmt.Sprintf("%s: %s", p.device, reason)
		}
		return 0, fmt.Sprintf("%s has no %s", p.device, t.Metric.Name)
	}
	if t.Metric.Divides() {
		v /= float64(p.holders)
	}
	return v, ""
}
