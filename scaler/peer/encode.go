package peer

import (
	"cmp"
	"math"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"gpuscaler/scaler/fleet"
	pb "gpuscaler/scaler/peer/peerpb"
	"gpuscaler/scaler/window"
)

// How many pods that have gone are told of, and for how long: what the API server
// lists of a workload is seconds old.
const (
	mostGone = 256
	goneFor  = time.Minute
)

// encoder makes the messages of one stream.
type encoder struct {
	version string
	start   time.Time
	told    *pb.Layout
	pods    []*fleet.Pod // of told
}

// podsChanged says that the node's pods are not those that were told of.
func (e *encoder) podsChanged(n *fleet.Node) bool {
	return e.told == nil || !slices.Equal(e.pods, n.Pods) || e.told.GetPodsKnown() != n.PodsKnown
}

// encode is the next message of the stream.
func (e *encoder) encode(n *fleet.Node, now time.Time) *pb.State {
	s := &pb.State{ElapsedUs: now.Sub(e.start).Microseconds()}
	if !n.Heard.IsZero() {
		s.HeardAgeUs = new(age(now, n.Heard))
	}
	if !n.Allocated.IsZero() {
		s.AllocatedAgeUs = new(age(now, n.Allocated))
	}
	layout := e.layout(n, now)
	if !proto.Equal(layout, e.told) {
		e.told, s.Layout = layout, layout
	}
	e.pods = n.Pods
	for _, w := range n.Writers {
		if w.Error != "" && !w.Allocates && s.Error == "" {
			s.Reader, s.Error = w.Name, w.Error
		}
	}
	for _, d := range n.Devices {
		s.Readings = append(s.Readings, reading(d, layout.GetMetrics(), now))
	}
	return s
}

func age(now, at time.Time) int64 { return max(0, now.Sub(at).Microseconds()) }

func (e *encoder) layout(n *fleet.Node, now time.Time) *pb.Layout {
	l := &pb.Layout{Node: n.Name, Version: e.version, PodsKnown: n.PodsKnown, Metrics: metrics(n), Gone: n.Gone(now.Add(-goneFor), mostGone), Strangers: n.Strangers}
	slices.Sort(l.Gone)
	at := make(map[string]uint32, len(n.Devices))
	for i, d := range n.Devices {
		at[d.ID] = uint32(i)
		l.Devices = append(l.Devices, &pb.Device{
			Id: d.ID, Vendor: d.Vendor, Model: d.Model, Parent: d.Parent, Profile: d.Profile,
			Index: uint32(d.Index), Instance: uint32(d.Instance), MemoryTotalMib: d.MemoryTotalMiB, //nolint:gosec // validated by their reader
		})
	}
	for _, p := range n.Pods {
		if len(p.Shares)+len(p.Unknown) > 0 {
			l.Pods = append(l.Pods, pod(p, at))
		}
	}
	return l
}

// metrics are those of all devices, sorted.
func metrics(n *fleet.Node) (names []string) {
	for _, d := range n.Devices {
		for name := range d.Means().All() {
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return names
}

func pod(p *fleet.Pod, at map[string]uint32) *pb.Pod {
	out := &pb.Pod{
		Namespace: p.Namespace, Name: p.Name, Uid: p.UID, Labels: p.Labels,
		Ready: p.Ready, WasReady: p.WasReady, Terminating: p.Terminating, Created: unix(p.Created), Started: unix(p.Started), Unknown: p.Unknown,
	}
	for _, s := range p.Shares {
		device, known := at[s.Device]
		gpu, knownGPU := at[s.GPU]
		if !known {
			continue
		}
		if !knownGPU {
			gpu = device
		}
		out.Shares = append(out.Shares, &pb.Share{Device: device, Gpu: gpu, Holders: uint32(s.Holders), GpuHolders: uint32(s.GPUHolders)}) //nolint:gosec // counts of pods
	}
	return out
}

func unix(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

func reading(d *fleet.Device, metrics []string, now time.Time) *pb.Reading {
	r := &pb.Reading{AgeUs: age(now, d.Heard), Error: d.Error, Failed: d.Failed()}
	means := d.Means()
	r.Metrics = make([]uint32, 0, means.Len())
	r.Means = make([]int64, 0, means.Len()*len(window.Windows))
	for i, name := range metrics {
		m, ok := means.Get(name)
		if !ok {
			continue
		}
		r.Metrics = append(r.Metrics, uint32(i))
		for _, v := range m {
			r.Means = append(r.Means, thousandths(v))
		}
	}
	return r
}

// thousandths is what of a value survives in KEDA, and in the HPA. One that is
// not 0 never becomes 0, which looks idle.
func thousandths(v float64) int64 {
	n := int64(math.Round(v * 1000))
	if n == 0 {
		n = int64(cmp.Compare(v, 0))
	}
	return n
}
