package peer

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/scaler/fleet"
	"gpuscaler/shared/snapshot"
)

// run is the scaler of node-1 from one second to another: two GPUs with one
// gpu_utilization, and a pod on each, which became ready at some second; 0: it loads.
func run(t *testing.T, l *fleet.Local, from, to int, utilization float64, ready [2]int) {
	t.Helper()
	sidecar, kubelet := l.Connect(), l.Connect()
	allocation, ids := &snapshot.Allocation{}, []string{"GPU-a", "GPU-b"}
	var pods []fleet.Pod
	for i, name := range []string{"llm-0", "llm-1"} {
		allocation.Containers = append(allocation.Containers, snapshot.Container{
			Namespace: "shop", Pod: name, Plugin: []snapshot.PluginDevices{{Resource: "nvidia.com/gpu", IDs: ids[i : i+1]}},
		})
		p := fleet.Pod{Namespace: "shop", Name: name, UID: name, Node: "node-1", Created: at(0), Started: at(0)}
		if ready[i] > 0 {
			p.Ready, p.WasReady, p.FirstReady = true, true, at(float64(ready[i]))
		}
		pods = append(pods, p)
	}
	require.NoError(t, kubelet.Apply(&snapshot.Sample{Writer: "podresources", Allocation: allocation}, at(float64(from))))
	for s := from; s <= to; s++ {
		sample := &snapshot.Sample{Writer: "nvmlsidecar"}
		for i, id := range ids {
			sample.Devices = append(sample.Devices, snapshot.Device{ID: id, Vendor: "nvidia", Index: i, Values: map[string]float64{"gpu_utilization": utilization}})
		}
		require.NoError(t, sidecar.Apply(sample, at(float64(s))))
		l.SetPods(append([]fleet.Pod(nil), pods...), at(float64(s)))
	}
	sidecar.Close(at(float64(to)))
	kubelet.Close(at(float64(to)))
}

// means5 are the five-minute means of the first device, and of both pods since they began.
func means5(t *testing.T, n *fleet.Node) (all []float64) {
	t.Helper()
	v, _, ok := n.Devices[0].Readings().Mean("gpu_utilization", 5*time.Minute)
	require.True(t, ok)
	all = append(all, v)
	for i, uid := range []string{"llm-0", "llm-1"} {
		r, ok := n.Young(n.Pod(uid), n.Devices[i].ID)
		require.True(t, ok, uid)
		v, _, ok := r.Mean("gpu_utilization", 5*time.Minute)
		require.True(t, ok, uid)
		all = append(all, v)
	}
	return all
}

// A scaler that is started again takes over what a peer received from the one before: of
// its devices, and of a young pod since that began; not of one that was loading then. The
// peer takes nothing twice, whether the new process has it yet or not.
func TestRecall(t *testing.T) {
	f := fleet.New(nil)
	peer := f.Join("node-1")
	receive := func(l *fleet.Local, now float64) {
		n, err := (&decoder{}).decode((&encoder{start: at(0)}).encode(l.Node(), at(now)), at(now))
		require.NoError(t, err)
		_, taken, err := peer.Apply(n)
		require.NoError(t, err)
		require.True(t, taken)
	}
	first := fleet.NewLocal("node-1", 10*time.Second, nopLog, epoch)
	assert.Nil(t, f.Before("node-1", first.Node().Boot))
	run(t, first, 0, 60, 90, [2]int{20, 0})
	receive(first, 60)
	assert.Nil(t, f.Before("node-1", first.Node().Boot), "that is what it has itself")

	second := fleet.NewLocal("node-1", 10*time.Second, nopLog, at(60))
	run(t, second, 61, 81, 0, [2]int{20, 65})
	assert.Equal(t, []float64{0, 0, 0}, means5(t, second.Node()))
	receive(second, 81)
	want := []float64{90 * 60 / 80.0, 90 * 40 / 60.0, 0}
	assert.InDeltaSlice(t, want, means5(t, f.Node("node-1")), 2, "the peer completes what is not complete")

	sent := recalled(f.Before("node-1", second.Node().Boot), at(81))
	devices, young := recall(sent, windows)
	require.Len(t, devices, 2)
	require.Len(t, young, 2)
	second.Recall(devices)
	second.RecallYoung(young)
	run(t, second, 82, 82, 0, [2]int{20, 65})
	assert.InDeltaSlice(t, want, means5(t, second.Node()), 2, "the node itself")
	receive(second, 82)
	assert.InDeltaSlice(t, means5(t, second.Node()), means5(t, f.Node("node-1")), 0.01, "and nothing twice")
	assert.Empty(t, recalled(f.Before("node-1", second.Node().Boot), at(400)), "too long ago")
}
