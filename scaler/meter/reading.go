package meter

import (
	"cmp"
	"slices"

	"gpuscaler/scaler/fleet"
)

// Reading is what the meter shows at one moment. Of each of fleet.Integrated that
// instances of a GPU do not tell of themselves, Workloads, Unheld, Unknown and Expired
// together are Devices and Gone together, exactly.
type Reading struct {
	// Devices are those that are there, and those that were until a while ago, in no
	// order; Gone is of those that are gone for long.
	Devices []DeviceSums
	Gone    fleet.Totals
	// Workloads are those that hold something, and those that did until a while ago.
	Workloads []WorkloadSums
	// Pods are pods' parts in devices, in order of namespace, name and device.
	Pods []PodSums
	// Unheld is what went into devices that nobody held, Unknown into those of which
	// it was not known; Expired is of workloads that are gone for long.
	Unheld, Unknown, Expired fleet.Totals
	// Has says which totals some device of the node has reported: of the others Gone,
	// Unheld, Unknown and Expired are 0 because nothing was measured.
	Has Has
}

// DeviceSums are a device's, as it was last; Has says which totals it has reported.
type DeviceSums struct {
	Device *fleet.Device
	Totals fleet.Totals
	Has    Has
}

// WorkloadSums are a workload's.
type WorkloadSums struct {
	Workload
	Sums
}

// PodSums are a pod's of one device.
type PodSums struct {
	Pod
	Sums
}

// Read copies what it shows.
func (m *Meter) Read() *Reading {
	m.mu.Lock()
	r := &Reading{
		Devices: make([]DeviceSums, 0, len(m.devices)), Gone: m.gone, Workloads: make([]WorkloadSums, 0, len(m.workloads)),
		Pods: make([]PodSums, 0, len(m.pods)), Unheld: m.unheld, Unknown: m.unknown, Expired: m.expired, Has: m.has,
	}
	for _, d := range m.devices {
		r.Devices = append(r.Devices, DeviceSums{d.is, d.sum, d.has})
	}
	for w, s := range m.workloads {
		r.Workloads = append(r.Workloads, WorkloadSums{w, s.Sums})
	}
	for p, s := range m.pods {
		r.Pods = append(r.Pods, PodSums{p, s.Sums})
	}
	m.mu.Unlock()
	slices.SortFunc(r.Workloads, func(a, b WorkloadSums) int { return a.compare(b.Workload) })
	slices.SortFunc(r.Pods, func(a, b PodSums) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Pod.Pod, b.Pod.Pod), cmp.Compare(a.Device, b.Device))
	})
	return r
}

func (w Workload) compare(with Workload) int {
	return cmp.Or(cmp.Compare(w.Namespace, with.Namespace), cmp.Compare(w.Kind, with.Kind), cmp.Compare(w.Name, with.Name))
}
