package peer

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"gpuscaler/scaler/fleet"
	pb "gpuscaler/scaler/peer/peerpb"
	"gpuscaler/shared/snapshot"
)

var epoch = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func at(seconds float64) time.Time { return epoch.Add(time.Duration(seconds * float64(time.Second))) }

// whole is a node with all that can be told, one second after the start.
func whole(t *testing.T) *fleet.Local {
	l := fleet.NewLocal("node-1", 10*time.Second, nopLog, epoch)
	s := l.Connect()
	for i := range 2 {
		require.NoError(t, s.Apply(&snapshot.Sample{Writer: "nvmlsidecar", Devices: []snapshot.Device{
			{ID: "GPU-a", Vendor: "nvidia", Model: "NVIDIA H200", MemoryTotalMiB: 144384, Values: map[string]float64{
				"gpu_utilization": float64(50 + 25*i), "nvlink_tx_mbps": 85259.97, "x_queue": 0.0001, "x_drift": -3.5,
			}, Failed: map[string]string{"temperature": "NOT_FOUND"}},
			{ID: "MIG-a", Vendor: "nvidia", Model: "NVIDIA H200", Parent: "GPU-a", Instance: 7, Profile: "1g.18gb", Values: map[string]float64{"gpu_utilization": 12.3456}},
			{ID: "GPU-b", Vendor: "nvidia", Index: 1, Error: "GPU_IS_LOST"},
		}}, at(float64(i))))
	}
	require.NoError(t, l.Connect().Apply(&snapshot.Sample{Writer: "podresources", Allocation: &snapshot.Allocation{Containers: []snapshot.Container{
		{Namespace: "shop", Pod: "llm-0", Plugin: []snapshot.PluginDevices{{Resource: "nvidia.com/gpu", IDs: []string{"MIG-a", "GPU-z"}}}},
		{Namespace: "shop", Pod: "nobody-knows", Plugin: []snapshot.PluginDevices{{Resource: "nvidia.com/gpu", IDs: []string{"GPU-a"}}}},
	}}}, at(0.5)))
	pods := []fleet.Pod{
		{Namespace: "shop", Name: "llm-0", UID: "u0", Node: "node-1", Labels: map[string]string{"app": "llm"}, Ready: true, WasReady: true, Created: at(-60), Started: at(-50)},
		{Namespace: "shop", Name: "web-0", UID: "u1", Node: "node-1"},
		{Namespace: "shop", Name: "web-1", UID: "u2", Node: "node-1"},
	}
	l.SetPods(pods, at(0.5))
	l.SetPods(pods[:2], at(1))
	return l
}

func TestRoundTrip(t *testing.T) {
	l := whole(t)
	e, d := &encoder{version: "v1", start: at(1)}, &decoder{}
	first := e.encode(l.Node(), at(3))
	require.NotNil(t, first.GetLayout())
	n, err := d.decode(first, at(100)) // another clock
	require.NoError(t, err)
	assert.Equal(t, "node-1", n.Name)
	assert.Equal(t, at(98), n.Heard, "as old here as there")
	assert.Equal(t, at(97.5), n.Allocated)
	assert.True(t, n.PodsKnown && n.HoldersOnly)

	require.Len(t, n.Devices, 3)
	for i, want := range l.Node().Devices {
		got := n.Devices[i]
		assert.Equal(t, want.FullName()+want.ID+want.String(), got.FullName()+got.ID+got.String())
		assert.Equal(t, want.Failed(), got.Failed(), got.ID)
		assert.Equal(t, want.Error, got.Error)
		assert.Equal(t, want.Means().Len(), got.Means().Len())
		for name, means := range want.Means().All() {
			for w, v := range means {
				have, _ := got.Means().Get(name)
				assert.InDelta(t, v, have[w], 0.001, "%s %s", got.ID, name)
			}
		}
	}
	queue, _ := n.Devices[0].Value("x_queue", 0)
	assert.InDelta(t, 0.001, queue, 0, "what is not 0 does not become 0")

	require.Len(t, n.Pods, 1, "the others hold nothing")
	p := n.Pod("u0")
	assert.Equal(t, l.Node().Pod("u0").Holding, p.Holding)
	assert.Equal(t, map[string]string{"app": "llm"}, p.Labels)
	assert.True(t, p.Ready && p.WasReady && !p.Terminating)
	assert.Equal(t, at(-50).Unix(), p.Started.Unix())
	assert.True(t, n.Had("u2"))
	assert.False(t, n.Had("u1"))
	assert.Equal(t, []string{"shop/nobody-knows"}, n.Strangers)

	// Numbers alone from now on, as long as nothing else changes.
	second := e.encode(l.Node(), at(5))
	assert.Nil(t, second.GetLayout())
	assert.Less(t, proto.Size(second), proto.Size(first)/2)
	again, err := d.decode(second, at(102))
	require.NoError(t, err)
	assert.Same(t, p, again.Pod("u0"))
	assert.False(t, e.podsChanged(l.Node()))
	l.SetPods(nil, at(6))
	assert.True(t, e.podsChanged(l.Node()))
	third := e.encode(l.Node(), at(6))
	require.NotNil(t, third.GetLayout())
	n, err = d.decode(third, at(103))
	require.NoError(t, err)
	assert.True(t, n.Had("u0"))
}

// Nothing has been heard there: nothing is known here.
func TestUnheardNode(t *testing.T) {
	e, d := &encoder{start: at(0)}, &decoder{}
	n, err := d.decode(e.encode(fleet.NewLocal("n", time.Second, nopLog, epoch).Node(), at(1)), at(1))
	require.NoError(t, err)
	assert.True(t, n.Heard.IsZero() && n.Allocated.IsZero())
	assert.False(t, n.PodsKnown)
	assert.Empty(t, n.Writers)
}

// A node whose driver cannot be opened is not one without GPUs.
func TestUnreadableNode(t *testing.T) {
	l := fleet.NewLocal("n", time.Second, nopLog, epoch)
	require.NoError(t, l.Connect().Apply(&snapshot.Sample{Writer: "nvmlsidecar", Error: "LIBRARY_NOT_FOUND"}, at(1)))
	n, err := (&decoder{}).decode((&encoder{start: at(0)}).encode(l.Node(), at(1)), at(1))
	require.NoError(t, err)
	require.Len(t, n.Writers, 1)
	assert.Equal(t, "nvmlsidecar: LIBRARY_NOT_FOUND", n.Writers[0].Name+": "+n.Writers[0].Error)
}

// A message that was under way for long is as old as it is, not as old as it
// arrived; and it does not matter what time it is there.
func TestDelayedMessage(t *testing.T) {
	l := whole(t)
	e, d := &encoder{start: at(0)}, &decoder{}
	n, err := d.decode(e.encode(l.Node(), at(1)), at(1000))
	require.NoError(t, err)
	assert.Equal(t, at(1000), n.Heard)
	stuck := e.encode(l.Node(), at(2))
	n, err = d.decode(stuck, at(1013))
	require.NoError(t, err)
	assert.Equal(t, at(1000), n.Heard, "13 s old, of which it was under way for 12")
	n, err = d.decode(e.encode(l.Node(), at(14.5)), at(1013.2))
	require.NoError(t, err)
	assert.Equal(t, at(999.7), n.Heard, "the first was slow, as it turns out")
}

// Nothing that a peer says ends this scaler or becomes a reading.
func TestHostilePeer(t *testing.T) {
	for name, spoil := range map[string]func(s *pb.State){
		"no layout":            func(s *pb.State) { s.Layout = nil },
		"no name":              func(s *pb.State) { s.Layout.Node = "" },
		"too few readings":     func(s *pb.State) { s.Readings = s.Readings[1:] },
		"too many devices":     func(s *pb.State) { s.Layout.Devices = make([]*pb.Device, mostDevices+1) },
		"too many pods":        func(s *pb.State) { s.Layout.Pods = make([]*pb.Pod, mostPods+1) },
		"too many strangers":   func(s *pb.State) { s.Layout.Strangers = make([]string, mostPods+1) },
		"too many gone":        func(s *pb.State) { s.Layout.Gone = make([]string, mostPods+1) },
		"too many metrics":     func(s *pb.State) { s.Layout.Metrics = make([]string, mostMetrics+1) },
		"an age below 0":       func(s *pb.State) { s.HeardAgeUs = new(int64(-1)) },
		"a kubelet's below 0":  func(s *pb.State) { s.AllocatedAgeUs = new(int64(-1)) },
		"a device's below 0":   func(s *pb.State) { s.Readings[0].AgeUs = -1 },
		"out of range":         func(s *pb.State) { s.Readings[0].Means[0] = 100_001 },
		"negative":             func(s *pb.State) { s.Readings[0].Means[0] = -1 },
		"means of no metric":   func(s *pb.State) { s.Readings[0].Metrics = nil },
		"a metric beyond":      func(s *pb.State) { s.Readings[0].Metrics[0] = 99 },
		"a device beyond":      func(s *pb.State) { s.Layout.Pods[0].Shares[0].Device = 3 },
		"a GPU beyond":         func(s *pb.State) { s.Layout.Pods[0].Shares[0].Gpu = 3 },
		"a share by nobody":    func(s *pb.State) { s.Layout.Pods[0].Shares[0].Holders = 0 },
		"a GPU held by nobody": func(s *pb.State) { s.Layout.Pods[0].Shares[0].GpuHolders = 0 },
		"a clock before 0":     func(s *pb.State) { s.ElapsedUs = -1 },
	} {
		s := (&encoder{start: at(0)}).encode(whole(t).Node(), at(1))
		spoil(s)
		_, err := (&decoder{}).decode(s, at(1))
		require.Error(t, err, name)
	}
	e, d := &encoder{start: at(0)}, &decoder{}
	_, err := d.decode(e.encode(whole(t).Node(), at(2)), at(2))
	require.NoError(t, err)
	_, err = d.decode(e.encode(whole(t).Node(), at(1)), at(3))
	require.EqualError(t, err, "elapsed went back from 2s to 1s")
}

// A newer peer's message is read for what is known here: more fields, and metrics
// that nobody has heard of.
func TestNewerPeer(t *testing.T) {
	s := (&encoder{start: at(0)}).encode(whole(t).Node(), at(1))
	for i, name := range s.GetLayout().GetMetrics() {
		if name == "nvlink_tx_mbps" {
			s.Layout.Metrics[i] = "nvlink7_tx_tbps"
		}
	}
	text, err := proto.Marshal(s)
	require.NoError(t, err)
	text = append(text, 0xfa, 0x3e, 3, 'n', 'e', 'w') // field 1007
	newer := &pb.State{}
	require.NoError(t, proto.Unmarshal(text, newer))
	n, err := (&decoder{}).decode(newer, at(1))
	require.NoError(t, err)
	_, ok := n.Devices[0].Value("nvlink_tx_mbps", 0)
	assert.False(t, ok)
	assert.Equal(t, 3, n.Devices[0].Means().Len())
}

func FuzzDecode(f *testing.F) {
	e := &encoder{start: at(0)}
	for _, now := range []float64{1, 2} {
		text, err := proto.Marshal(e.encode(whole(&testing.T{}).Node(), at(now)))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		s := &pb.State{}
		if proto.Unmarshal(text, s) != nil {
			return
		}
		d := &decoder{}
		n, err := d.decode(s, at(1))
		if err != nil {
			return
		}
		require.False(t, n.Heard.After(at(1)), "from the future")
		for _, device := range n.Devices {
			for name, means := range device.Means().All() {
				m, known := snapshot.Lookup(name)
				require.True(t, known)
				for _, v := range means {
					require.NoError(t, m.Check(v), fmt.Sprint(name))
				}
			}
		}
	})
}
