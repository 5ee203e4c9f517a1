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
	l.SetClaims(attribution.Claims{claimed: "GPU-0"}, at(3))
	assert.False(t, l.Node().ClaimsUnknown)
	assert.Equal(t, map[string][]string{"a": {"GPU-0"}}, holds(l.Node()))
}
