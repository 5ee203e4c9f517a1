package evaluate

import (
	"fmt"

	"gpuscaler/scaler/replicas"
	"gpuscaler/scaler/terms"
	"gpuscaler/scaler/trigger"
)

// Reasons of notices, as Events have them.
const (
	FlatSignal         = "FlatSignal"
	NothingWakesIt     = "NothingWakesIt"
	CompositeTrigger   = "CompositeTrigger"
	SuspiciousTarget   = "SuspiciousTarget"
	UnsupportedSharing = "UnsupportedSharing"
	SharedDevice       = "SharedDevice"
	EndpointIgnored    = "EndpointIgnored"
	NoSeries           = "NoSeries"
)

// Notice is something that the ScaledObject's author should know.
type Notice struct{ Reason, Message string }

func (d *Decision) notice(reason, message string) {
	d.Notices = append(d.Notices, Notice{reason, message})
}

// Suspicions are notices of what a trigger asks for that is hardly meant, with the HPA's
// tolerance on the way up.
func Suspicions(t *trigger.Trigger, tolerance float64) (all []Notice) {
	for _, text := range trigger.Suspicions(t, tolerance) {
		all = append(all, Notice{SuspiciousTarget, text})
	}
	return all
}

// noticeSettings looks at what the ScaledObject says.
func (d *Decision) noticeSettings(t *trigger.Trigger, w *Workload, limits Limits) {
	d.Notices = append(d.Notices, Suspicions(t, w.tolerances(limits).Up)...)
	if t.Engine.Ignored != "" && terms.IsEngine(t.Metric) {
		d.notice(EndpointIgnored, fmt.Sprintf("only port and path of the endpoint's URL are used: each pod's engine is read by itself, and %s is not", terms.Quote(t.Engine.Ignored)))
	}
	if w.NothingWakes && !t.AlwaysActive {
		d.notice(NothingWakesIt, "minReplicaCount is 0, and no trigger can become active without a running pod: at zero replicas no GPU is read. "+
			"Add a trigger on what is in front of the workload, like metricType service_queue, or set minReplicaCount: 1")
	}
	if w.Composite == "" {
		return
	}
	message := fmt.Sprintf("scalingModifiers: the formula gets the %s over the pods, because the composite's metricType is %s; "+
		"KEDA compares the formula's result with the composite's own target and activationTarget", natural(w.Composite), w.Composite)
	if t.AlwaysActive {
		message += fmt.Sprintf(". Profile %s never scales to zero by itself, but here KEDA decides that by the formula's result: set minReplicaCount: 1", t.Profile)
	}
	d.notice(CompositeTrigger, message)
}

func natural(kind trigger.TargetType) string {
	if kind == trigger.Value {
		return "mean"
	}
	return "sum"
}

// noticeFlat looks at pods whose memory does not follow their load, and counts them and
// those that are left out.
func (d *Decision) noticeFlat(t *trigger.Trigger) {
	for i := range d.Pods {
		r := &d.Pods[i]
		if r.memory != nil && r.memory.flat {
			d.Flat++
		}
		if r.State == replicas.Missing && !r.without {
			d.Unread++
		}
	}
	if d.Flat > 0 {
		d.notice(FlatSignal, fmt.Sprintf("%s of %d of %d pods does not follow their load, because engines reserve memory and loaded models stay, or because the GPU is shared: "+
			"such a pod counts as the target while its GPU works, and as 0 while it is idle, so it never asks for more replicas. "+
			"Scale on a signal that follows the load, like profile llm-saturation (Hopper and later) or metricType gpu_utilization", t.Metric.Name, d.Flat, len(d.Pods)))
	}
}

// noticeShared looks for devices that pods of other workloads own, too.
func (d *Decision) noticeShared(all []place) {
	type device struct {
		node string // its name: it may be replaced by newer readings between two pods
		id   string
	}
	var own map[device]int
	for _, at := range all {
		for i := range at.pod.Shares {
			if s := &at.pod.Shares[i]; s.Holders > 1 && at.node != nil {
				if own == nil {
					own = map[device]int{}
				}
				own[device{at.node.Name, s.Device}]++
			}
		}
	}
	if own == nil {
		return
	}
	for _, at := range all { // in order, so that the message stays the same
		for i := range at.pod.Shares {
			s := &at.pod.Shares[i]
			if s.Holders == 1 || at.node == nil {
				continue
			}
			if others := s.Holders - own[device{at.node.Name, s.Device}]; others > 0 {
				d.notice(SharedDevice, fmt.Sprintf("the GPU of pod %s is allocated to %d pods, %d of them of other workloads: "+
					"a percentage is that of the whole GPU and includes their load; quantities are divided equally", at.pod.Name, s.Holders, others))
				return
			}
		}
	}
}
