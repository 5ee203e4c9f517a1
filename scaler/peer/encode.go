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
	s.Young = young(n, layout)
	s.Engines = engineReadings(n, layout, now)
	return s
}

// recalled is what a node's devices read when they were last received, also since its
// young pods began, of a node whose scaler has started again and asks for this one's.
func recalled(n *fleet.Node, now time.Time) (all []*pb.Recalled) {
	if n == nil || now.Sub(n.Heard) > window.Longest {
		return nil
	}
	silent := now.Sub(n.Heard)
	add := func(r fleet.Readings, out *pb.Recalled) {
		r = r.Aged(silent)
		if r.Len() == 0 {
			return
		}
		for name := range r.All() {
			out.Metrics = append(out.Metrics, name)
		}
		out.Means = means(r, out.GetMetrics())
		all = append(all, out)
	}
	for _, d := range n.Devices {
		add(d.Readings(), &pb.Recalled{Id: d.ID})
	}
	for uid, of := range n.YoungPods() {
		p := n.Pod(uid)
		if p == nil || len(of) != len(p.Shares) {
			continue
		}
		for i := range of {
			add(of[i], &pb.Recalled{Id: p.Shares[i].Device, Pod: uid, Begin: unix(p.Begin())})
		}
	}
	return all
}

// young are the means of pods that began a short time ago.
func young(n *fleet.Node, layout *pb.Layout) (all []*pb.Young) {
	if len(n.YoungPods()) == 0 {
		return nil
	}
	for i, p := range layout.GetPods() {
		of, ok := n.YoungPods()[p.GetUid()]
		if !ok || len(of) != len(p.GetShares()) {
			continue
		}
		y := &pb.Young{Pod: uint32(i)}
		for _, r := range of {
			y.Shares = append(y.Shares, means(r, layout.GetMetrics()))
		}
		all = append(all, y)
	}
	return all
}

func age(now, at time.Time) int64 { return max(0, now.Sub(at).Microseconds()) }

func (e *encoder) layout(n *fleet.Node, now time.Time) *pb.Layout {
	l := &pb.Layout{Node: n.Name, Version: e.version, Windows: windows, Boot: n.Boot, Completed: n.Completed, PodsKnown: n.PodsKnown, Metrics: metrics(n), Gone: n.Gone(now.Add(-goneFor), mostGone), Strangers: n.Strangers}
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
	layoutEngines(n, l)
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
		FirstReady: unix(p.FirstReady), Changed: unix(p.Changed), Pending: p.Pending,
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
		out.Shares = append(out.Shares, &pb.Share{Device: device, Gpu: gpu, Holders: uint32(s.Holders), GpuHolders: uint32(s.GPUHolders), Containers: s.Containers}) //nolint:gosec // counts of pods
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
	m := means(d.Readings(), metrics)
	r := &pb.Reading{
		AgeUs: age(now, d.Heard), Error: d.Error, Failed: d.Failed(),
		Metrics: m.GetMetrics(), Means: m.GetMeans(), Coverage: m.GetCoverage(),
	}
	if d.Motion.Known {
		r.Moved, r.WorkKnown, r.Worked = uint32(d.Motion.Minutes)+1, d.Motion.WorkKnown, d.Motion.Worked
	}
	return r
}

// windows are those of means, in seconds.
var windows = func() (seconds []uint32) {
	for _, w := range window.Windows {
		seconds = append(seconds, uint32(w/time.Second))
	}
	return seconds
}()

// means are readings, by the positions of their metrics.
func means(of fleet.Readings, metrics []string) *pb.Means {
	r := &pb.Means{Metrics: make([]uint32, 0, of.Len()), Means: make([]int64, 0, of.Len()*len(window.Windows))}
	i := 0
	for name, m := range of.All() {
		at := slices.Index(metrics, name)
		coverage := of.Coverage(i)
		i++
		if at < 0 {
			continue
		}
		r.Metrics = append(r.Metrics, uint32(at)) //nolint:gosec // few
		for _, v := range m {
			r.Means = append(r.Means, thousandths(v))
		}
		if !of.Whole() {
			for _, c := range coverage {
				r.Coverage = append(r.Coverage, uint32(c/time.Second)) //nolint:gosec // minutes at most
			}
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
