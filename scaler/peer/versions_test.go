package peer

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"gpuscaler/scaler/attribution"
	"gpuscaler/scaler/fleet"
	pb "gpuscaler/scaler/peer/peerpb"
	"gpuscaler/scaler/window"
)

const sec = time.Second

// groupLabels are those of the leader of a LeaderWorkerSet's second group.
var groupLabels = map[string]string{
	"leaderworkerset.sigs.k8s.io/name": "engine", "leaderworkerset.sigs.k8s.io/group-index": "1", "leaderworkerset.sigs.k8s.io/worker-index": "0",
}

// youngNode is a node with a pod that is ready for 20 s, on two devices.
func youngNode() *fleet.Node {
	names := []string{"gpu_utilization", "memory_used_percent"}
	means := []window.Means{{90, 80, 70, 60}, {50, 50, 50, 50}}
	covered := []window.Coverage{{0, 15 * sec, 60 * sec, 200 * sec}, {0, 15 * sec, 40 * sec, 40 * sec}}
	device := func(id string, m fleet.Motion, coverage []window.Coverage) *fleet.Device {
		d := fleet.Device{ID: id, Vendor: "nvidia", Model: "NVIDIA H100", Heard: at(100), Motion: m}
		return d.Describe(fleet.NewReadings(names, means, coverage), nil)
	}
	p := &fleet.Pod{
		Namespace: "shop", Name: "engine-1", UID: "u", Node: "node-1", Labels: groupLabels, Ready: true, WasReady: true,
		Created: at(1), Started: at(2), FirstReady: at(80), Changed: at(90),
		Holding: attribution.Holding{Shares: []attribution.Share{
			{Device: "GPU-a", GPU: "GPU-a", Holders: 2, GPUHolders: 2, Containers: []string{"engine", "embedder"}},
			{Device: "GPU-b", GPU: "GPU-b", Holders: 1, GPUHolders: 1, Containers: []string{"engine"}},
		}},
	}
	waits := &fleet.Pod{Namespace: "shop", Name: "engine-2", UID: "w", Node: "node-1", Created: at(1), Pending: true, Holding: attribution.Holding{Unknown: []string{"GPU-z"}}}
	n := fleet.Node{Name: "node-1", Boot: 1 << 63, Heard: at(100), Allocated: at(99), PodsKnown: true, Devices: []*fleet.Device{
		device("GPU-a", fleet.Motion{Known: true, WorkKnown: true, Worked: true, Minutes: 5}, covered), device("GPU-b", fleet.Motion{Known: true}, nil),
	}}
	return n.With(fleet.NewPods([]*fleet.Pod{p, waits}, nil, nil)).WithYoung(map[string][]fleet.Readings{"u": {
		fleet.NewReadings(names[:1], []window.Means{{10, 20, 20, 20}}, []window.Coverage{{0, 15 * sec, 20 * sec, 20 * sec}}), {},
	}})
}

// All that a decision rests on arrives.
func TestYoungRoundTrip(t *testing.T) {
	text, err := proto.Marshal((&encoder{start: at(0)}).encode(youngNode(), at(101)))
	require.NoError(t, err)
	state := &pb.State{}
	require.NoError(t, proto.Unmarshal(text, state))
	n, err := (&decoder{}).decode(state, at(101))
	require.NoError(t, err)
	want := youngNode()
	assert.Equal(t, want.Boot, n.Boot)
	for i, d := range want.Devices {
		assert.Equal(t, d.Motion, n.Devices[i].Motion)
		assert.Equal(t, d.Readings().Whole(), n.Devices[i].Readings().Whole())
		for k := range d.Readings().Len() {
			assert.Equal(t, d.Readings().Coverage(k), n.Devices[i].Readings().Coverage(k))
		}
	}
	p, was := n.Pod("u"), want.Pod("u")
	assert.Equal(t, was.Holding, p.Holding, "with the containers")
	assert.Equal(t, "engine/1", p.Group)
	assert.True(t, p.Leader)
	assert.Equal(t, []int64{was.FirstReady.Unix(), was.Changed.Unix()}, []int64{p.FirstReady.Unix(), p.Changed.Unix()})
	assert.True(t, n.Pod("w").Pending)
	assert.True(t, n.Pod("w").Changed.IsZero())
	assert.Equal(t, []string{"GPU-z"}, n.Pod("w").Unknown)
	of, ok := n.Young(p, "GPU-a")
	require.True(t, ok)
	v, covered, ok := of.Mean("gpu_utilization", time.Minute)
	require.True(t, ok)
	assert.InDelta(t, 20, v, 0)
	assert.Equal(t, 20*sec, covered)
	of, ok = n.Young(p, "GPU-b")
	assert.True(t, ok && of.Len() == 0)
}

// widened is a message of a version with a window of 10 minutes before the others, and
// one of 30 s among them.
func widened(m []int64, metrics int) (wide []int64) {
	for i := range metrics {
		of := m[i*len(windows) : (i+1)*len(windows)]
		wide = append(wide, 77, of[0], of[1], 77, of[2], of[3])
	}
	return wide
}

// A later version has more windows: those of this one are found among them.
func TestMoreWindows(t *testing.T) {
	wide := func(c []uint32, metrics int) (all []uint32) {
		var as []int64
		for _, v := range c {
			as = append(as, int64(v))
		}
		if len(c) == 0 {
			return nil
		}
		for _, v := range widened(as, metrics) {
			all = append(all, uint32(v))
		}
		return all
	}
	state := (&encoder{start: at(0)}).encode(youngNode(), at(101))
	state.Layout.Windows = []uint32{600, 0, 15, 30, 60, 300}
	for _, r := range state.GetReadings() {
		r.Means, r.Coverage = widened(r.GetMeans(), len(r.GetMetrics())), wide(r.GetCoverage(), len(r.GetMetrics()))
	}
	for _, y := range state.GetYoung() {
		for _, m := range y.GetShares() {
			m.Means, m.Coverage = widened(m.GetMeans(), len(m.GetMetrics())), wide(m.GetCoverage(), len(m.GetMetrics()))
		}
	}
	n, err := (&decoder{}).decode(state, at(101))
	require.NoError(t, err)
	want := youngNode()
	for i, d := range want.Devices {
		assert.Equal(t, d.Readings(), n.Devices[i].Readings())
	}
	of, _ := n.Young(n.Pod("u"), "GPU-a")
	was, _ := want.Young(want.Pod("u"), "GPU-a")
	assert.Equal(t, was, of)
}

// An older version says nothing of coverage, motion, boots, containers or young pods:
// its windows count as whole, its memory as not known to move.
func TestOlderPeer(t *testing.T) {
	state := (&encoder{start: at(0)}).encode(youngNode(), at(101))
	state.Young, state.Layout.Windows, state.Layout.Boot = nil, nil, 0
	for _, r := range state.GetReadings() {
		r.Coverage, r.Moved, r.WorkKnown, r.Worked = nil, 0, false, false
	}
	for _, p := range state.GetLayout().GetPods() {
		p.FirstReady, p.Changed, p.Pending = 0, 0, false
		for _, share := range p.GetShares() {
			share.Containers = nil
		}
	}
	n, err := (&decoder{}).decode(state, at(101))
	require.NoError(t, err)
	assert.True(t, n.Devices[0].Readings().Whole())
	assert.Equal(t, fleet.Motion{}, n.Devices[0].Motion)
	assert.Zero(t, n.Boot)
	p := n.Pod("u")
	assert.True(t, p.Begin().IsZero(), "when it became ready is not known")
	_, ok := n.Young(p, "GPU-a")
	assert.False(t, ok)
}

// What a peer says of young pods and of windows does not fit, or is too much.
func TestHostileYoung(t *testing.T) {
	for name, spoil := range map[string]func(m *pb.State){
		"coverage too short":           func(m *pb.State) { m.Readings[0].Coverage = m.Readings[0].Coverage[1:] },
		"coverage of another device":   func(m *pb.State) { m.Readings[1].Coverage = make([]uint32, 3) },
		"more means than windows":      func(m *pb.State) { m.Readings[0].Means = append(m.Readings[0].Means, 1) },
		"the same metric twice":        func(m *pb.State) { twice(m.Readings[0]) },
		"a young pod beyond":           func(m *pb.State) { m.Young[0].Pod = 2 },
		"a young pod far beyond":       func(m *pb.State) { m.Young[0].Pod = 1<<32 - 1 },
		"a young pod without devices":  func(m *pb.State) { m.Young[0].Shares = nil },
		"a young pod with too many":    func(m *pb.State) { m.Young[0].Shares = append(m.Young[0].Shares, &pb.Means{}) },
		"a young pod's metric beyond":  func(m *pb.State) { m.Young[0].Shares[0].Metrics[0] = 99 },
		"a young pod's value beyond":   func(m *pb.State) { m.Young[0].Shares[0].Means[1] = 100_001 },
		"a young pod's value below 0":  func(m *pb.State) { m.Young[0].Shares[0].Means[2] = -1 },
		"a young pod's coverage":       func(m *pb.State) { m.Young[0].Shares[0].Coverage = []uint32{1} },
		"without a window of this one": func(m *pb.State) { m.Layout.Windows = []uint32{0, 15, 30, 300} },
		"too few windows":              func(m *pb.State) { m.Layout.Windows = []uint32{0, 15, 60} },
	} {
		state := (&encoder{start: at(0)}).encode(youngNode(), at(101))
		spoil(state)
		_, err := (&decoder{}).decode(state, at(101))
		require.Error(t, err, name)
	}
	// What is more than there can be is as much as there can be.
	state := (&encoder{start: at(0)}).encode(youngNode(), at(101))
	for i := range state.GetReadings()[0].GetCoverage() {
		state.Readings[0].Coverage[i] = 1<<32 - 1
	}
	state.Readings[0].Moved = 1<<32 - 1
	n, err := (&decoder{}).decode(state, at(101))
	require.NoError(t, err)
	assert.Equal(t, window.Whole, n.Devices[0].Readings().Coverage(0))
	assert.EqualValues(t, window.Minutes, n.Devices[0].Motion.Minutes)
}

func twice(r *pb.Reading) {
	for range 2 {
		r.Metrics, r.Means, r.Coverage = append(r.Metrics, r.Metrics...), append(r.Means, r.Means...), append(r.Coverage, r.Coverage...)
	}
}

// What a peer last received of this node is taken as far as it makes sense.
func TestRecalled(t *testing.T) {
	all := recalled(youngNode(), at(101))
	require.Len(t, all, 3, "two devices, and one of them since a young pod began")
	got, young := recall(all, windows)
	assert.Len(t, young, 1)
	for _, d := range youngNode().Devices {
		assert.Equal(t, d.Readings(), got[d.ID])
	}
	later, _ := recall(recalled(youngNode(), at(140)), windows)
	assert.Equal(t, window.Coverage{0, 0, 20 * sec, 260 * sec}, later["GPU-b"].Coverage(0), "40 s later nothing is known of the last 15 s")
	assert.Empty(t, recalled(youngNode(), at(401)), "all windows are from after it")
	assert.Empty(t, recalled(nil, at(101)))
	for name, spoil := range map[string]func(){
		"a value beyond":    func() { all[0].Means.Means[0] = 1 << 60 },
		"metrics beyond":    func() { all[0].Means.Metrics[0] = 7 },
		"too short":         func() { all[0].Means.Means = all[0].Means.Means[1:] },
		"an id without end": func() { all[0].Id = strings.Repeat("x", mostID+1) },
		"coverage too long": func() { all[0].Means.Coverage = append(all[0].Means.Coverage, 1) },
	} {
		all = recalled(youngNode(), at(101))
		spoil()
		got, _ = recall(all, windows)
		assert.Len(t, got, 1, name)
		assert.Contains(t, got, "GPU-b", name)
	}
	none, _ := recall(recalled(youngNode(), at(101)), []uint32{0, 15})
	assert.Empty(t, none, "a version without these windows")
	many := slices.Repeat(recalled(youngNode(), at(101))[:1], 5000)
	for i := range many {
		many[i] = proto.CloneOf(many[i])
		many[i].Id = strings.Repeat("x", i%1500+1)
	}
	got, _ = recall(many, windows)
	assert.LessOrEqual(t, len(got), mostID)
}
