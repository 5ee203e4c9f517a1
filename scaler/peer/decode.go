package peer

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"gpuscaler/scaler/attribution"
	"gpuscaler/scaler/fleet"
	pb "gpuscaler/scaler/peer/peerpb"
	"gpuscaler/scaler/window"
	"gpuscaler/shared/snapshot"
)

// Bounds on what a peer may say of its node.
const (
	mostDevices = 1024
	mostPods    = 4096
	mostMetrics = 256
	mostID      = 256 // bytes of a device's id that is kept for longer than a message
)

// decoder understands the messages of one stream.
type decoder struct {
	// offset maps the sender's clock to ours: the smallest delay seen between the
	// sending of a message and its arrival, which began at start.
	start   time.Time
	offset  time.Duration
	elapsed time.Duration
	started bool
	last    time.Time // when the last message was sent

	layout  *pb.Layout
	windows [len(window.Windows)]int // their positions in the layout's, of so many
	of      int
	metrics []snapshot.Metric // by position; without a name: not known here
	devices []fleet.Device
	names   []named // of the metrics that each device had last
	pods    *fleet.Pods
	engines enginesOf
}

// named are the names of metrics, by their positions in a message.
type named struct {
	at    []uint32
	names []string
}

// decode is the node that a message tells of, which arrived at now. Nothing in it
// is believed: an error says what is wrong, and ends the stream.
func (d *decoder) decode(s *pb.State, now time.Time) (*fleet.Node, error) {
	if l := s.GetLayout(); l != nil {
		if err := d.arrange(l); err != nil {
			return nil, err
		}
	}
	if d.layout == nil {
		return nil, errors.New("the first message has no layout")
	}
	if len(s.GetReadings()) != len(d.devices) {
		return nil, fmt.Errorf("%d readings of %d devices", len(s.GetReadings()), len(d.devices))
	}
	sent, err := d.sent(s, now)
	if err != nil {
		return nil, err
	}
	n := fleet.Node{Name: d.layout.GetNode(), Boot: d.layout.GetBoot(), Completed: d.layout.GetCompleted(), PodsKnown: d.layout.GetPodsKnown(), Devices: make([]*fleet.Device, 0, len(d.devices))}
	if n.Heard, err = before(sent, s.HeardAgeUs); err != nil { //nolint:protogetter // absent is not 0
		return nil, err
	}
	if n.Allocated, err = before(sent, s.AllocatedAgeUs); err != nil { //nolint:protogetter // absent is not 0
		return nil, err
	}
	if s.GetError() != "" {
		n.Writers = []fleet.Writer{{Name: s.GetReader(), Error: s.GetError(), Heard: n.Heard}}
	}
	for i, r := range s.GetReadings() {
		device, err := d.device(i, r, sent)
		if err != nil {
			return nil, fmt.Errorf("device %s: %w", d.devices[i].ID, err)
		}
		n.Devices = append(n.Devices, device)
	}
	young, err := d.young(s.GetYoung())
	if err != nil {
		return nil, err
	}
	engines, err := d.decodeEngines(s.GetEngines(), sent)
	if err != nil {
		return nil, err
	}
	return n.With(d.pods).WithYoung(young).WithEngines(engines), nil
}

// sent says when, by our clock, a message was sent.
func (d *decoder) sent(s *pb.State, now time.Time) (time.Time, error) {
	elapsed := time.Duration(s.GetElapsedUs()) * time.Microsecond
	if elapsed < d.elapsed {
		return now, fmt.Errorf("elapsed went back from %v to %v", d.elapsed, elapsed)
	}
	d.elapsed = elapsed
	if !d.started {
		d.start, d.started = now, true
		d.offset = -elapsed
	}
	arrived := now.Sub(d.start)
	d.offset = min(d.offset, arrived-elapsed)
	// A stream's first message may have been under way for long (this process was stopped),
	// and was then dated too late. What was fresh does not become older by the next one.
	if at := d.start.Add(elapsed + d.offset); at.After(d.last) {
		d.last = at
	}
	return d.last, nil
}

// longest is an age beyond which nothing matters.
const longest = 1000 * time.Hour

func before(sent time.Time, ageUs *int64) (time.Time, error) {
	if ageUs == nil {
		return time.Time{}, nil
	}
	age := time.Duration(*ageUs) * time.Microsecond
	if *ageUs < 0 {
		return time.Time{}, fmt.Errorf("an age of %v", age)
	}
	if *ageUs > longest.Microseconds() {
		age = longest
	}
	return sent.Add(-age), nil
}

func (d *decoder) device(i int, r *pb.Reading, sent time.Time) (*fleet.Device, error) {
	device := d.devices[i]
	device.Error = r.GetError()
	var err error
	if device.Heard, err = before(sent, &r.AgeUs); err != nil { //nolint:protogetter // its address
		return nil, err
	}
	if err := d.name(i, r.GetMetrics()); err != nil {
		return nil, err
	}
	means, err := d.readings(d.names[i].names, r.GetMetrics(), r.GetMeans(), r.GetCoverage())
	if err != nil {
		return nil, err
	}
	if moved := r.GetMoved(); moved > 0 {
		device.Motion = fleet.Motion{Known: true, WorkKnown: r.GetWorkKnown(), Worked: r.GetWorked(), Minutes: uint8(min(moved-1, uint32(window.Minutes)))}
	}
	return device.Describe(means, r.GetFailed()), nil
}

// readings are the means of metrics by their positions; names are those of the ones that
// this version has.
func (d *decoder) readings(names []string, metrics []uint32, values []int64, coverage []uint32) (r fleet.Readings, err error) {
	if len(metrics) > len(d.metrics) {
		return r, fmt.Errorf("%d metrics of %d", len(metrics), len(d.metrics))
	}
	if len(values) != len(metrics)*d.of || (len(coverage) != 0 && len(coverage) != len(values)) {
		return r, fmt.Errorf("%d means and %d coverages of %d metrics and %d windows", len(values), len(coverage), len(metrics), d.of)
	}
	means := make([]window.Means, 0, len(names))
	var covered []window.Coverage
	for k, at := range metrics {
		metric := &d.metrics[at]
		if metric.Name == "" {
			continue // a newer peer's
		}
		var m window.Means
		var c window.Coverage
		for w, position := range d.windows {
			m[w] = float64(values[k*d.of+position]) / 1000
			if err := metric.Check(m[w]); err != nil {
				return r, err
			}
			if len(coverage) > 0 {
				c[w] = min(window.Windows[w], time.Duration(coverage[k*d.of+position])*time.Second)
			}
		}
		means = append(means, m)
		if len(coverage) > 0 {
			covered = append(covered, c)
		}
	}
	return fleet.NewReadings(names, means, covered), nil
}

// meansOf are readings of a device, with names of their own.
func (d *decoder) meansOf(in *pb.Means) (r fleet.Readings, err error) {
	names := make([]string, 0, len(in.GetMetrics()))
	for _, i := range in.GetMetrics() {
		if int(i) >= len(d.metrics) {
			return r, fmt.Errorf("metric %d of %d", i, len(d.metrics))
		}
		if name := d.metrics[i].Name; name != "" {
			names = append(names, name)
		}
	}
	return d.readings(names, in.GetMetrics(), in.GetMeans(), in.GetCoverage())
}

// young are the means of young pods; what does not fit the layout is an error.
func (d *decoder) young(all []*pb.Young) (map[string][]fleet.Readings, error) {
	if len(all) == 0 {
		return nil, nil
	}
	young := make(map[string][]fleet.Readings, len(all))
	for _, in := range all {
		pod := d.pods.At(int(in.GetPod()))
		if pod == nil || len(in.GetShares()) != len(pod.Shares) {
			return nil, fmt.Errorf("young pod %d with %d devices", in.GetPod(), len(in.GetShares()))
		}
		of := make([]fleet.Readings, len(pod.Shares))
		for i, m := range in.GetShares() {
			var err error
			if of[i], err = d.meansOf(m); err != nil {
				return nil, fmt.Errorf("pod %s/%s: %w", pod.Namespace, pod.Name, err)
			}
		}
		young[pod.UID] = of
	}
	return young, nil
}

// recall understands what a peer last received of this scaler's node. What it does not
// understand it leaves out: the windows fill without it.
func recall(all []*pb.Recalled, of []uint32) (devices map[string]fleet.Readings, young map[fleet.Part]fleet.Readings) {
	devices, young = make(map[string]fleet.Readings, len(all)), map[fleet.Part]fleet.Readings{}
	for _, in := range all {
		d := decoder{}
		if len(devices)+len(young) >= mostDevices+mostPods || len(in.GetMetrics()) > mostMetrics || d.useWindows(of) != nil {
			break
		}
		if len(in.GetId()) > mostID || len(in.GetPod()) > mostID {
			continue
		}
		d.useMetrics(in.GetMetrics())
		r, err := d.meansOf(in.GetMeans())
		switch {
		case err != nil:
		case in.GetPod() != "":
			young[fleet.Part{Pod: in.GetPod(), Device: in.GetId(), Begin: in.GetBegin()}] = r
		default:
			devices[in.GetId()] = r
		}
	}
	return devices, young
}

func (d *decoder) useMetrics(names []string) {
	d.metrics = make([]snapshot.Metric, len(names))
	for i, name := range names {
		d.metrics[i], _ = snapshot.Lookup(name)
	}
}

// useWindows finds the windows of this version among a peer's, in seconds: a later
// version may have more.
func (d *decoder) useWindows(seconds []uint32) error {
	if len(seconds) == 0 {
		seconds = windows
	}
	d.of = len(seconds)
	for i, w := range windows {
		if d.windows[i] = slices.Index(seconds, w); d.windows[i] < 0 {
			return fmt.Errorf("no means over %d s among windows of %v s", w, seconds)
		}
	}
	return nil
}

// name finds the names of the metrics that a device has; mostly they are those of
// the last time, or of the device before.
func (d *decoder) name(device int, at []uint32) error {
	if n := &d.names[device]; n.names != nil && slices.Equal(n.at, at) {
		return nil
	}
	if device > 0 && d.names[device-1].names != nil && slices.Equal(d.names[device-1].at, at) {
		d.names[device] = d.names[device-1]
		return nil
	}
	n := named{at: slices.Clone(at), names: make([]string, 0, len(at))}
	for _, i := range at {
		if int(i) >= len(d.metrics) {
			return fmt.Errorf("metric %d of %d", i, len(d.metrics))
		}
		if name := d.metrics[i].Name; name != "" {
			n.names = append(n.names, name)
		}
	}
	d.names[device] = n
	return nil
}

// arrange takes over a layout.
func (d *decoder) arrange(l *pb.Layout) error {
	switch {
	case l.GetNode() == "":
		return errors.New("a node without a name")
	case len(l.GetDevices()) > mostDevices:
		return fmt.Errorf("%d devices; at most %d are allowed", len(l.GetDevices()), mostDevices)
	case len(l.GetPods()) > mostPods || len(l.GetGone()) > mostPods || len(l.GetStrangers()) > mostPods:
		return fmt.Errorf("%d pods, %d that have gone and %d strangers; at most %d are allowed", len(l.GetPods()), len(l.GetGone()), len(l.GetStrangers()), mostPods)
	case len(l.GetMetrics()) > mostMetrics:
		return fmt.Errorf("%d metrics; at most %d are allowed", len(l.GetMetrics()), mostMetrics)
	}
	if err := d.useWindows(l.GetWindows()); err != nil {
		return err
	}
	devices := make([]fleet.Device, len(l.GetDevices()))
	for i, in := range l.GetDevices() {
		devices[i] = fleet.Device{
			ID: in.GetId(), Vendor: in.GetVendor(), Model: in.GetModel(), Parent: in.GetParent(), Profile: in.GetProfile(),
			Index: int(in.GetIndex()), Instance: int(in.GetInstance()), MemoryTotalMiB: in.GetMemoryTotalMib(),
		}
	}
	pods := make([]*fleet.Pod, len(l.GetPods()))
	for i, in := range l.GetPods() {
		p, err := describe(in, l.GetNode(), devices)
		if err != nil {
			return fmt.Errorf("pod %s/%s: %w", in.GetNamespace(), in.GetName(), err)
		}
		pods[i] = p
	}
	engines, err := arrangeEngines(l)
	if err != nil {
		return err
	}
	// The message's own memory goes with the next layout.
	d.layout = &pb.Layout{Node: l.GetNode(), Version: l.GetVersion(), PodsKnown: l.GetPodsKnown(), Windows: slices.Clone(l.GetWindows()), Boot: l.GetBoot(), Completed: l.GetCompleted()}
	d.useMetrics(l.GetMetrics())
	d.engines = engines
	d.devices, d.names, d.pods = devices, make([]named, len(devices)), fleet.NewPods(pods, l.GetGone(), l.GetStrangers())
	return nil
}

func describe(in *pb.Pod, node string, devices []fleet.Device) (*fleet.Pod, error) {
	p := &fleet.Pod{
		Namespace: in.GetNamespace(), Name: in.GetName(), UID: in.GetUid(), Node: node, Labels: in.GetLabels(),
		Ready: in.GetReady(), WasReady: in.GetWasReady(), Terminating: in.GetTerminating(),
		Created: fromUnix(in.GetCreated()), Started: fromUnix(in.GetStarted()),
		FirstReady: fromUnix(in.GetFirstReady()), Changed: fromUnix(in.GetChanged()), Pending: in.GetPending(),
	}
	p.Group, p.Leader = fleet.GroupOf(p.Labels)
	p.Unknown = in.GetUnknown()
	for _, s := range in.GetShares() {
		if int(s.GetDevice()) >= len(devices) || int(s.GetGpu()) >= len(devices) {
			return nil, fmt.Errorf("device %d or %d of %d", s.GetDevice(), s.GetGpu(), len(devices))
		}
		if s.GetHolders() == 0 || s.GetGpuHolders() == 0 {
			return nil, errors.New("a device that nobody holds")
		}
		p.Shares = append(p.Shares, attribution.Share{
			Device: devices[s.GetDevice()].ID, GPU: devices[s.GetGpu()].ID, Holders: int(s.GetHolders()), GPUHolders: int(s.GetGpuHolders()), Containers: s.GetContainers(),
		})
	}
	return p, nil
}

func fromUnix(seconds int64) time.Time {
	if seconds == 0 {
		return time.Time{}
	}
	return time.Unix(seconds, 0)
}
