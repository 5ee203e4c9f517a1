package fleet

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/scaler/attribution"
	"gpuscaler/shared/snapshot"
)

func allocation(pod string, ids ...string) *snapshot.Allocation {
	return &snapshot.Allocation{Containers: []snapshot.Container{{
		Namespace: "ns", Pod: pod, Name: "c", Plugin: []snapshot.PluginDevices{{Resource: "nvidia.com/gpu", IDs: ids}},
	}}}
}

// holds says what each pod holds, and what it has that nobody knows.
func holds(n *Node) map[string][]string {
	all := map[string][]string{}
	for _, p := range n.Pods {
		all[p.Name] = []string{}
		for _, s := range p.Shares {
			all[p.Name] = append(all[p.Name], s.Device)
		}
		all[p.Name] = append(all[p.Name], p.Unknown...)
	}
	return all
}

// What a pod holds is known as soon as its three sources have spoken, in any
// order, and follows each of them.
func TestPodsHoldDevices(t *testing.T) {
	l := newLocal()
	assert.False(t, l.Node().PodsKnown)
	assert.Zero(t, l.Node().Allocated)

	reader := l.Connect()
	require.NoError(t, reader.Apply(&snapshot.Sample{Writer: "podresources", Allocation: allocation("a", "GPU-0")}, at(1)))
	assert.Equal(t, at(1), l.Node().Allocated)
	assert.Zero(t, l.Node().Heard, "it says nothing of devices")
	l.SetPods([]Pod{{Namespace: "ns", Name: "b", UID: "b"}, {Namespace: "ns", Name: "a", UID: "a"}}, at(2))
	assert.True(t, l.Node().PodsKnown)
	assert.Equal(t, map[string][]string{"a": {"GPU-0"}, "b": {}}, holds(l.Node()), "nobody reports it yet")
	assert.Empty(t, l.Node().Pods[0].Shares)

	sidecar := l.Connect()
	devices := &snapshot.Sample{Writer: "nvmlsidecar", Devices: []snapshot.Device{{ID: "GPU-0", Vendor: "nvidia"}, {ID: "GPU-1", Vendor: "nvidia", Index: 1}}}
	require.NoError(t, sidecar.Apply(devices, at(3)))
	assert.Len(t, l.Node().Pods[0].Shares, 1)
	kept := l.Node().Pods[0]
	require.NoError(t, sidecar.Apply(devices, at(4)))
	assert.Same(t, kept, l.Node().Pods[0], "nothing is matched anew while nothing changes")

	require.NoError(t, reader.Apply(&snapshot.Sample{Writer: "podresources", Allocation: allocation("b", "nvidia1")}, at(5)))
	assert.Equal(t, map[string][]string{"a": {}, "b": {"GPU-1"}}, holds(l.Node()), "recordings have no device files: the index stands for it")
	l.SetPods(nil, at(6))
	assert.Empty(t, l.Node().Pods)
}

// A reader of the kubelet that fails, or leaves, leaves what it told, with its
// age, and does not touch the devices.
func TestAllocationStays(t *testing.T) {
	l := newLocal()
	require.NoError(t, l.Connect().Apply(&snapshot.Sample{Writer: "nvmlsidecar", Devices: []snapshot.Device{{ID: "GPU-0", Vendor: "nvidia"}}}, at(1)))
	l.SetPods([]Pod{{Namespace: "ns", Name: "a", UID: "a"}}, at(1))
	reader := l.Connect()
	require.NoError(t, reader.Apply(&snapshot.Sample{Writer: "podresources", Allocation: allocation("a", "GPU-0")}, at(2)))
	require.NoError(t, reader.Apply(&snapshot.Sample{Writer: "podresources", Error: "kubelet: down"}, at(3)))
	assert.True(t, l.Node().Writers[1].Allocates)
	assert.Equal(t, at(1), l.Node().Heard, "it says nothing of devices, and that it cannot read says no more")
	require.NoError(t, l.Node().Ready(at(4), staleAfter))
	reader.Close(at(4))
	n := l.Node()
	assert.Equal(t, map[string][]string{"a": {"GPU-0"}}, holds(n))
	assert.Equal(t, at(2), n.Allocated)
	assert.Empty(t, n.Devices[0].Error)

	// Its successor takes over; what an older one says late does not count.
	late, next := l.Connect(), l.Connect()
	require.NoError(t, next.Apply(&snapshot.Sample{Writer: "podresources", Allocation: allocation("a")}, at(6)))
	require.NoError(t, late.Apply(&snapshot.Sample{Writer: "podresources", Allocation: allocation("a", "GPU-0")}, at(5)))
	assert.Equal(t, map[string][]string{"a": {}}, holds(l.Node()))
}

func TestClaims(t *testing.T) {
	l := newLocal()
	require.NoError(t, l.Connect().Apply(&snapshot.Sample{Writer: "nvmlsidecar", Devices: []snapshot.Device{{ID: "GPU-0", Vendor: "nvidia"}}}, at(1)))
	l.SetPods([]Pod{{Namespace: "ns", Name: "a", UID: "a"}}, at(1))
	claimed := snapshot.ClaimedDevice{Driver: "gpu.nvidia.com", Pool: "node-1", Device: "gpu-0"}
	require.NoError(t, l.Connect().Apply(&snapshot.Sample{Writer: "podresources", Allocation: &snapshot.Allocation{
		Containers: []snapshot.Container{{Namespace: "ns", Pod: "a", Claimed: []snapshot.ClaimedDevice{claimed}}},
	}}, at(2)))
	assert.True(t, l.Node().ClaimsUnknown)
	l.SetClaims(attribution.Claims{IDs: map[snapshot.ClaimedDevice]string{claimed: "GPU-0"}}, at(3))
	assert.False(t, l.Node().ClaimsUnknown)
	assert.Equal(t, map[string][]string{"a": {"GPU-0"}}, holds(l.Node()))
}

// with lists the pods that hold GPU-0, as the kubelet does.
func with(pods ...string) *snapshot.Sample {
	a := &snapshot.Allocation{}
	for _, pod := range pods {
		a.Containers = append(a.Containers, allocation(pod, "GPU-0").Containers...)
	}
	return &snapshot.Sample{Writer: "podresources", Allocation: a}
}

// Kubelets before 1.34 list pods that have ended, and what they held: those are no
// holders, so a pod's part is whole, and no unknown pods either.
func TestEndedPodsHoldNothing(t *testing.T) {
	l := newLocal()
	say(t, l.Connect(), 1, gpu(0, nil))
	reader := l.Connect()
	require.NoError(t, reader.Apply(with("job-1", "job-2", "llm"), at(1)))
	llm := []Pod{{Namespace: "ns", Name: "llm", UID: "llm"}}
	ended := []attribution.Pod{{Namespace: "ns", Name: "job-1"}, {Namespace: "ns", Name: "job-2"}}
	l.SetPods(llm, at(2))
	assert.Equal(t, []string{"ns/job-1", "ns/job-2"}, l.Node().Strangers)
	assert.Equal(t, 3, l.Node().Pods[0].Shares[0].Holders)

	l.SetPods(llm, at(3), ended...)
	check := func(why string) {
		t.Helper()
		assert.Empty(t, l.Node().Strangers, why)
		require.Len(t, l.Node().Pods, 1, why)
		require.Len(t, l.Node().Pods[0].Shares, 1, why)
		s := l.Node().Pods[0].Shares[0]
		assert.Equal(t, []int{1, 1}, []int{s.Holders, s.GPUHolders}, why)
	}
	check("ended")
	require.NoError(t, reader.Apply(with("job-1", "job-2", "llm"), at(4)))
	check("the kubelet's next answer")
	l.SetPods(llm, at(5), ended[0])
	check("one is deleted, and the kubelet's answer is from before")
	require.NoError(t, reader.Apply(with("job-1", "llm"), at(6)))
	l.SetPods(llm, at(7), ended[0])
	require.NoError(t, reader.Apply(with("job-1", "job-2", "llm"), at(8)))
	assert.Equal(t, []string{"ns/job-2"}, l.Node().Strangers, "another pod of the name, that the watch has not listed yet")
}

// A StatefulSet's pod has the name of the one before.
func TestAPodWithTheNameOfAnEndedOne(t *testing.T) {
	l := newLocal()
	say(t, l.Connect(), 1, gpu(0, nil))
	db := attribution.Pod{Namespace: "ns", Name: "db-0"}
	reader := l.Connect()
	require.NoError(t, reader.Apply(with("db-0"), at(1)))
	l.SetPods(nil, at(1), db)
	assert.Empty(t, l.Node().Strangers)
	alive := []Pod{{Namespace: "ns", Name: "db-0", UID: "second"}}
	for _, ended := range [][]attribution.Pod{nil, {db}} {
		l.SetPods(alive, at(2), ended...)
		assert.Equal(t, map[string][]string{"db-0": {"GPU-0"}}, holds(l.Node()), "%v", ended)
	}
	// When it goes in turn, it has not ended: it may hold the GPU.
	l.SetPods(nil, at(3))
	assert.Equal(t, []string{"ns/db-0"}, l.Node().Strangers)
	// Only the namespace is another.
	l.SetPods(alive, at(4), attribution.Pod{Namespace: "other", Name: "db-0"})
	assert.Equal(t, map[string][]string{"db-0": {"GPU-0"}}, holds(l.Node()))
}

// The claim of a pod that has ended is for a device that may be gone.
func TestClaimsOfEndedPods(t *testing.T) {
	l := newLocal()
	say(t, l.Connect(), 1, gpu(0, nil))
	require.NoError(t, l.Connect().Apply(&snapshot.Sample{Writer: "podresources", Allocation: &snapshot.Allocation{
		Containers: []snapshot.Container{{Namespace: "ns", Pod: "a", Claimed: []snapshot.ClaimedDevice{{Driver: "gpu.nvidia.com", Pool: "node-1", Device: "gpu-9"}}}},
	}}, at(2)))
	l.SetPods(nil, at(3))
	assert.True(t, len(l.Node().Claims) > 0 && l.Node().ClaimsUnknown)
	l.SetPods(nil, at(4), attribution.Pod{Namespace: "ns", Name: "a"})
	assert.False(t, len(l.Node().Claims) > 0 || l.Node().ClaimsUnknown)
}
