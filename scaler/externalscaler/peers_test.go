package externalscaler

import (
	"fmt"
	"testing"
	"time"

	pb "github.com/kedacore/keda/v2/pkg/scalers/externalscaler"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/labels"

	"gpuscaler/scaler/attribution"
	"gpuscaler/scaler/evaluate"
	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/window"
)

// mesh says that all peers are heard, or not.
type mesh struct {
	settled bool
	asked   int
}

func (m *mesh) Asked()        { m.asked++ }
func (m *mesh) Settled() bool { return m.settled }

// oneWorkload is always the same.
type oneWorkload struct{ w evaluate.Workload }

func (o *oneWorkload) Workload(string, string, string, map[string]string) (*evaluate.Workload, error) {
	w := o.w
	return &w, nil
}
func (o *oneWorkload) Expect(string, string, string) {}

// kept is for how long large decisions are: as often as peers tell of themselves.
const kept = time.Second

// across is a service with a pod and a GPU on each of so many peers' nodes.
type across struct {
	t     *testing.T
	fleet *fleet.Fleet
	peers []*fleet.Peer
	mesh  *mesh
	works *oneWorkload
	*Service
}

func newAcross(t *testing.T, nodes int, staleAfter time.Duration) *across {
	a := &across{t: t, fleet: fleet.New(nil), mesh: &mesh{settled: true}}
	a.works = &oneWorkload{evaluate.Workload{Name: "ScaledObject shop/llm", Namespace: "shop", Selector: labels.Everything(), Spec: nodes, Status: nodes, Told: time.Now()}}
	for i := range nodes {
		name := fmt.Sprint("n", i)
		a.peers = append(a.peers, a.fleet.Join(name))
		a.works.w.Pods = append(a.works.w.Pods, &fleet.Pod{Namespace: "shop", Name: name, UID: name, Node: name, Ready: true, WasReady: true})
		a.say(i, 50)
	}
	a.Service = NewService(a.fleet, newShelf(), staleAfter, nopLog)
	a.UseWorkloads(a.works, evaluate.Limits{StaleAfter: staleAfter, AttributionStaleAfter: time.Minute, Tolerance: 0.1})
	a.UsePeers(a.mesh, kept)
	return a
}

// say is what one peer tells now.
func (a *across) say(i int, utilization float64) {
	now, name := time.Now(), fmt.Sprint("n", i)
	id := "GPU-" + name
	d := fleet.Device{ID: id, Vendor: "nvidia", Heard: now}
	n := fleet.Node{Name: name, Heard: now, Allocated: now, PodsKnown: true, Devices: []*fleet.Device{
		d.Describe(fleet.NewReadings([]string{"gpu_utilization"}, []window.Means{{utilization, utilization, utilization, utilization}}, nil), nil),
	}}
	p := &fleet.Pod{Namespace: "shop", Name: name, UID: name, Node: name, Ready: true, WasReady: true,
		Holding: attribution.Holding{Shares: []attribution.Share{{Device: id, GPU: id, Holders: 1, GPUHolders: 1}}}}
	_, taken, err := a.peers[i].Apply(n.With(fleet.NewPods([]*fleet.Pod{p}, nil, nil)))
	require.NoError(a.t, err)
	require.True(a.t, taken)
}

func (a *across) value(md metadata) (float64, error) {
	r, err := a.GetMetrics(a.t.Context(), &pb.GetMetricsRequest{ScaledObjectRef: &pb.ScaledObjectRef{Namespace: "shop", Name: "llm", ScalerMetadata: md}})
	if err != nil {
		return 0, err
	}
	return r.GetMetricValues()[0].GetMetricValueFloat(), nil
}

func (a *across) active(md metadata) (bool, error) {
	r, err := a.IsActive(a.t.Context(), &pb.ScaledObjectRef{Namespace: "shop", Name: "llm", ScalerMetadata: md})
	return r.GetResult(), err
}

var ofAll = metadata{"scope": "cluster", "window": "0s", "aggregation": "sum", "activationThreshold": "60"}

// Until all peers are heard that can be, there is no answer that might be another
// one in a moment.
func TestUnsettled(t *testing.T) {
	a := newAcross(t, 3, time.Minute)
	a.mesh.settled = false
	v, err := a.value(metadata{"window": "0s", "targetValue": "50"})
	require.NoError(t, err, "nothing of it is missing")
	assert.InDelta(t, 150, v, 0)
	_, err = a.value(ofAll)
	require.Equal(t, codes.Unavailable, status.Code(err), "nobody knows how many nodes there are")
	a.works.w.Pods = append(a.works.w.Pods, &fleet.Pod{Namespace: "shop", Name: "n3", UID: "n3", Node: "n3", Ready: true, WasReady: true})
	_, err = a.value(metadata{"window": "0s", "targetValue": "50"})
	require.Equal(t, codes.Unavailable, status.Code(err), "a node is missing")
	a.mesh.settled = true
	_, err = a.value(metadata{"window": "0s", "targetValue": "50"})
	require.NoError(t, err)
	assert.Positive(t, a.mesh.asked)
}

// Nodes that nothing was received from may be busy, so IsActive is true where GetMetrics
// answers: KEDA drops the metric of a trigger whose IsActive fails.
func TestInactiveClusterOnlyIfKnown(t *testing.T) {
	a := newAcross(t, 3, time.Minute)
	md := metadata{"scope": "cluster", "window": "0s", "activationThreshold": "60"}
	active, err := a.active(md)
	require.NoError(t, err)
	assert.False(t, active)
	a.fleet.Join("n3")
	active, err = a.active(md)
	require.NoError(t, err)
	assert.True(t, active)
	v, err := a.value(md)
	require.NoError(t, err)
	assert.InDelta(t, 50, v, 0, "the number is that of those that speak")
	a.say(0, 90)
	active, err = a.active(metadata{"scope": "cluster", "window": "0s", "activationThreshold": "60", "metricName": "another"})
	require.NoError(t, err)
	assert.True(t, active)
}

// A large decision is kept for a moment, and not beyond what it rests on; what it
// depends on beside readings has it made anew.
func TestMemo(t *testing.T) {
	const stale = 2500 * time.Millisecond
	a := newAcross(t, large, stale)
	md := metadata{"window": "0s", "targetValue": "50"}
	ask := func(md metadata) float64 {
		v, err := a.value(md)
		require.NoError(t, err)
		return v
	}
	began := time.Now()
	assert.InDelta(t, 50*large, ask(md), 0)
	a.say(0, 100)
	first := ask(md)
	if time.Since(began) < kept {
		assert.InDelta(t, 50*large, first, 0, "kept")
	}
	assert.InDelta(t, 50*large+50, ask(metadata{"window": "0s", "targetValue": "51"}), 0, "another trigger")
	a.works.w.Told = a.works.w.Told.Add(time.Millisecond)
	assert.InDelta(t, 50*large+50, ask(md), 0, "the workload was read again")
	a.say(0, 20)
	time.Sleep(kept)
	assert.InDelta(t, 50*large-30, ask(md), 0, "not for longer")
	time.Sleep(time.Until(began.Add(stale)))
	_, err := a.value(md)
	require.Equal(t, codes.Unavailable, status.Code(err), "all but one are too old")
}
