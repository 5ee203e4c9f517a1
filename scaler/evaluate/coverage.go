package evaluate

import (
	"fmt"
	"slices"
	"strings"

	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/replicas"
	"gpuscaler/scaler/terms"
	"gpuscaler/scaler/trigger"
)

// coverage says why what is known of the pods is too little for an answer. It leaves out
// the pods that are known to have no GPU, where podSelector or a group has some beside
// those that do.
func (d *Decision) coverage(t *trigger.Trigger, w *Workload, r *reader) error {
	var gpus, none, lacking, missing int
	sharer, impossible := "", ""
	var reasons []string
	for i := range d.Pods {
		p := &d.Pods[i]
		gpus = max(gpus, p.gpus)
		if p.State != replicas.Missing {
			continue
		}
		switch {
		case p.never != nil:
			sharer, impossible = p.never.sharer, fmt.Sprintf("pod %s %s", p.Pod.Name, p.never.reason)
			lacking++
		case p.waits: // there is nothing to read yet
		case p.gpus == 0 && !p.mayBeBusy:
			none++
		case p.lacks:
			lacking++
		case !p.fresh:
			missing++
			if missing <= mostReasons {
				reasons = append(reasons, "pod "+p.Pod.Name+": "+p.Reason)
			}
		}
	}
	all := len(d.Pods)
	if none > 0 && none < all && (t.PodSelector != "" || len(w.Sets) > 0) {
		for i := range d.Pods {
			p := &d.Pods[i]
			p.without = p.State == replicas.Missing && p.gpus == 0 && !p.mayBeBusy && !p.waits && p.never == nil
		}
		all -= none
	}
	switch {
	case impossible != "" && none+lacking >= all:
		d.notice(UnsupportedSharing, fmt.Sprintf("%s: GPUs that %s gives to pods cannot be read per pod", impossible, sharer))
		return fail(Impossible, "%s: %s: whole GPUs, MIG, time-slicing, MPS and resource claims of NVIDIA's own plugins can be read per pod, this cannot", w.Name, impossible)
	case none == len(d.Pods):
		return d.noGPU(t, w)
	case 2*lacking > all && lacking > 0:
		of := fmt.Sprintf("the %d pods", len(d.Pods))
		if lacking < len(d.Pods) {
			of = fmt.Sprintf("%d of %s", lacking, of)
		}
		return fail(Impossible, "metricType: no GPU of %s of %s has %s: %s; they have %s",
			of, w.Name, t.Metric.Name, list(d.lackers(), (*fleet.Device).FullName), metrics(d.lackers()))
	case 2*missing <= all:
		return nil
	}
	if missing > len(reasons) {
		reasons = append(reasons, fmt.Sprintf("and %d more", missing-len(reasons)))
	}
	d.Active = t.AlwaysActive || d.known().active(t, r.now)
	return fail(Unavailable, "%s: nothing is known of %d of its %d pods: %s", w.Name, missing, all, strings.Join(reasons, "; "))
}

// known are the replicas that are not missing.
func (d *Decision) known() *Decision {
	return &Decision{Pods: slices.DeleteFunc(slices.Clone(d.Pods), func(r PodReading) bool { return r.State == replicas.Missing && !r.starting })}
}

// noGPU says that no pod has a GPU, and what may allocate them in another way.
func (d *Decision) noGPU(t *trigger.Trigger, w *Workload) error {
	if t.Container != "" {
		for i := range d.Pods {
			if r := &d.Pods[i]; len(r.Pod.Shares) > 0 {
				return fail(Impossible, "container: %s: pod %s: %s", terms.Quote(t.Container), r.Pod.Name, r.Reason)
			}
		}
	}
	for i := range d.Pods {
		r := &d.Pods[i]
		if r.Pod.Sharer != "" {
			d.notice(UnsupportedSharing, fmt.Sprintf("GPUs that %s gives to pods cannot be read per pod", r.Pod.Sharer))
			return fail(Impossible, "%s: no GPU is allocated to its %d pods by the kubelet: they get theirs from %s, which cannot be read per pod; use scope: node or scope: cluster with gpuModel", w.Name, len(d.Pods), r.Pod.Sharer)
		}
	}
	return fail(Impossible, "%s: none of its %d pods holds a GPU%s", w.Name, len(d.Pods), ofModel(t))
}

func ofModel(t *trigger.Trigger) string {
	if t.GPUModel == "" {
		return ""
	}
	return fmt.Sprintf(" with %q in its name", t.GPUModel)
}

// lackers are the devices of the pods that have no GPU with the metric.
func (d *Decision) lackers() (devices []*fleet.Device) {
	for i := range d.Pods {
		r := &d.Pods[i]
		if r.Node == nil || !r.lacks {
			continue
		}
		for _, s := range r.Pod.Shares {
			for _, id := range []string{s.Device, s.GPU} {
				if device := r.Node.Device(id); device != nil {
					devices = append(devices, device)
				}
			}
		}
	}
	return devices
}
