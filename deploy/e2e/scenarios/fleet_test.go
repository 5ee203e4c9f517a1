package scenarios

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"os/exec"
	"slices"
	"testing"
	"time"

	pb "github.com/kedacore/keda/v2/pkg/scalers/externalscaler"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gpuscaler/deploy/e2e/cluster"
	"gpuscaler/deploy/e2e/namespaces"
)

// fleet is a story on several nodes, with two fronts behind one name, as a
// headless Service has them: "localhost" is 127.0.0.1 and ::1, and KEDA asks
// another one for each call.
type fleet struct {
	*story
	fronts []*cluster.Front
	peers  []string // addresses of the nodes' peer ports
	ports  []string // and their ports
	flags  []string // of all scalers
	direct []string // where the first nodes' scalers listen for KEDA, if there is no front
}

// soonStale: what a node said last is good for three seconds, in every scaler.
var soonStale = []string{"--stale-after=3s", "--peer-interval=500ms"}

// fleetSetting is what a story on several nodes begins with.
type fleetSetting struct {
	name string
	// nodes is how many there may be, there how many there are at first, replicas how
	// many the Deployment has, whose pods may be on any node.
	nodes, there, replicas int
	// flags are those of all scalers.
	flags []string
	// direct: KEDA asks the scalers of the first two nodes, and there is no front.
	direct bool
	// within is how long the story may take; 0 is storyTime.
	within time.Duration
}

// beginFleet sets the scene: so many nodes, of which the first few are there, and
// a workload whose pods may be on any.
func beginFleet(t *testing.T, name string, nodes, there, replicas int) *fleet {
	t.Helper()
	return beginFleetOf(t, &fleetSetting{name: name, nodes: nodes, there: there, replicas: replicas, flags: soonStale})
}

// beginFleetOf is beginFleet with more of a choice.
func beginFleetOf(t *testing.T, s *fleetSetting) *fleet {
	t.Helper()
	within := cmp.Or(s.within, storyTime)
	turns.turn(t, ofFleet, within)
	ctx, cancel := context.WithTimeoutCause(t.Context(), within, fmt.Errorf("the story took more than %s", within))
	t.Cleanup(cancel)
	name, nodes := s.name, s.nodes
	f := &fleet{story: &story{T: t, ctx: ctx, name: name, on: shared, node: &cluster.GPUNode{}}, flags: s.flags}
	ports, err := cluster.FreePorts(nodes + 1)
	require.NoError(t, err)
	hosts := []string{"127.0.0.1:" + ports[nodes], "[::1]:" + ports[nodes]}
	if s.direct {
		f.direct = hosts
		hosts = nil
	}
	f.ports = ports[:nodes]
	for _, port := range f.ports {
		f.peers = append(f.peers, "127.0.0.1:"+port)
	}
	for range s.there {
		f.addNode()
	}
	for i, host := range hosts {
		front, err := shared.StartFront(fmt.Sprintf("%s-front-%d", name, i), host, f.peers, s.flags...)
		require.NoError(t, err)
		t.Cleanup(func() { require.NoError(t, front.Scaler.Stop()) })
		f.fronts = append(f.fronts, front)
	}
	f.node.Address = "localhost:" + ports[nodes]
	f.Workload, err = shared.AddWorkload(ctx, name, "", s.replicas, func(w *cluster.Workload) { w.Selector = map[string]string{"fleet": name} })
	require.NoError(t, err)
	t.Cleanup(f.retire)
	t.Cleanup(f.tellFailure)
	return f
}

// addNode adds the next of the nodes.
func (f *fleet) addNode() {
	f.Helper()
	i, listen := len(f.fleet), ""
	if i < len(f.direct) {
		listen = f.direct[i]
	}
	n, err := shared.AddGPUNode(f.ctx, cluster.GPUNodeOptions{
		Name: fmt.Sprintf("%s-%d", f.name, i), Fixture: fixture("h100x8-uneven"), Workloads: true, ScalerFlags: f.flags, Listen: listen,
		Labels: map[string]string{"fleet": f.name}, Peers: f.peers, PeerListen: f.peers[i],
	})
	require.NoError(f, err)
	f.Cleanup(func() { require.NoError(f, n.Stop()) })
	f.fleet = append(f.fleet, n)
}

// values gives the pods one value each, oldest first, and those beyond the last.
func values(all ...float64) load {
	return func(i, _ int) float64 { return all[min(i, len(all)-1)] }
}

// addresses are those of all replicas, fronts first.
func (f *fleet) addresses() (all []string) {
	for _, front := range f.fronts {
		all = append(all, front.Address)
	}
	for _, n := range f.fleet {
		all = append(all, n.Address)
	}
	return all
}

// answers are what each replica says, fronts first.
func (f *fleet) answers(metadata map[string]string) (all []float64, err error) {
	for _, address := range f.addresses() {
		conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return nil, err
		}
		r, err := pb.NewExternalScalerClient(conn).GetMetrics(f.ctx, &pb.GetMetricsRequest{ScaledObjectRef: &pb.ScaledObjectRef{
			Namespace: f.name, Name: f.name, ScalerMetadata: metadata,
		}})
		_ = conn.Close()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", address, err)
		}
		all = append(all, r.GetMetricValues()[0].GetMetricValueFloat())
	}
	return all, nil
}

// TestFleet: one Deployment over three nodes scales as the mean of its pods says,
// whichever replica KEDA asks, while fronts and nodes go and come.
func TestFleet(t *testing.T) {
	f := beginFleet(t, "fleet3", 3, 3, 3)
	f.eventually("3 pods have GPUs", f.gpus(3))
	pods, err := f.Pods(f.ctx)
	f.must(err)
	on := map[string]bool{}
	for _, p := range pods {
		on[p.Spec.NodeName] = true
	}
	require.Len(t, on, 3, "a pod on each node")

	uneven := values(90, 60, 30, 20)
	f.give(f.ctx, uneven)
	f.scale(holding+"\nmaxReplicaCount: 12", "targetValue", "50", "window", "0s")
	f.eventually("4 replicas: (90 + 60 + 30) / 50", f.replicas(4))
	f.eventually("4 pods have GPUs", f.gpus(4))
	f.give(f.ctx, uneven)
	f.eventually("every replica says the same", func() error {
		all, err := f.answers(map[string]string{"targetValue": "50", "window": "0s"})
		if err == nil && (slices.Min(all) != slices.Max(all) || all[0] != 200) {
			err = fmt.Errorf("they say %v", all)
		}
		return err
	})
	f.always("4 replicas", 3*time.Second, f.replicas(4))

	f.fronts[0].Scaler.Kill()
	killed := time.Now()
	f.give(f.ctx, values(95, 80, 65, 60))
	f.eventually("6 replicas, by the front that is left", f.atLeast(6))
	assert.Less(t, time.Since(killed), 15*time.Second)
	f.eventually("6 pods have GPUs", f.gpus(6))
	f.must(f.fronts[0].Start())
	// The four that were hot still are in some readings when the two new ones are busy in
	// others, which may ask for more than 6 for a moment.
	f.eventually("6 pods near the target", func() error {
		f.give(f.ctx, func(_, n int) float64 { return math.Round(6 * 49 / float64(n)) })
		return errors.Join(f.replicas(6)(), f.hpaValue(49)())
	})

	// Each node's scaler is replaced, as a DaemonSet's update does, and each front.
	for i, n := range f.fleet {
		f.must(n.Scaler.Stop())
		f.must(n.StartScaler())
		f.must(n.WaitReady(f.ctx))
		f.always(fmt.Sprintf("6 replicas while the scaler of node %d is replaced", i), 2*time.Second, f.replicas(6))
	}
	for i, front := range f.fronts {
		f.must(front.Scaler.Stop())
		f.must(front.Start())
		f.always(fmt.Sprintf("6 replicas while front %d is replaced", i), 2*time.Second, f.replicas(6))
	}

	// A node dies while its pods are hot.
	f.give(f.ctx, values(54)) // within the tolerance
	dead := f.fleet[1]
	dead.Scaler.Kill()
	dead.Sidecar.Kill()
	f.always("6 replicas or more without a node", 8*time.Second, f.atLeast(6))
	f.must(dead.StartScaler())
	f.must(dead.StartSidecar())
	f.give(f.ctx, values(20))
	// Without it, those that are missing would count as the target, and over half of
	// them as unknown.
	f.eventually("1 replica when it is back and all are idle", f.replicas(1))
}

// TestPartition: a third of the nodes cannot be reached, and nothing says so:
// packets are lost. What they said last counts for as long as it is fresh; then
// nothing shrinks for their lack, and they count again when they are back.
func TestPartition(t *testing.T) {
	if !namespaces.Inside() {
		t.Skip("packets can be lost only in a network namespace of our own: needs root")
	}
	f := beginFleet(t, "partition", 3, 3, 6)
	f.eventually("6 pods have GPUs", f.gpus(6))
	f.give(f.ctx, values(50))
	f.scale(holding+"\nmaxReplicaCount: 12", "targetValue", "50", "window", "0s")
	f.eventually("6 pods at the target", f.hpaValue(50))
	rule := func(action string) {
		for _, side := range []string{"--dport", "--sport"} {
			out, err := exec.CommandContext(f.ctx, "iptables", action, "INPUT", "-i", "lo", "-p", "tcp", side, f.ports[2], "-j", "DROP").CombinedOutput()
			require.NoError(t, err, "%s", out)
		}
	}
	rule("-I")
	f.always("6 replicas or more behind the partition", 10*time.Second, f.atLeast(6))
	f.eventually("the front misses it", f.logged("nothing heard for"))
	rule("-D")
	f.give(f.ctx, values(70))
	// Four pods at 70 alone ask for nothing more while two are missing. How many it
	// becomes depends on which node is heard first: 8 is within the tolerance of 8.4.
	f.eventually("more than 6 replicas: all nodes count", f.atLeast(7))
}

// logged checks that a front's answers had some words: they are in its log.
func (f *fleet) logged(words string) func() error {
	return func() error {
		for _, front := range f.fronts {
			if containsAll(front.Scaler.Tail(1<<20), []string{words}) {
				return nil
			}
		}
		return fmt.Errorf("no front has logged %q", words)
	}
}

// TestNodesGone: all GPU nodes go while their pods are busy, as a pool of spot
// instances does. Nothing shrinks; the pods that follow wait for a node, and count
// when there is one.
func TestNodesGone(t *testing.T) {
	f := beginFleet(t, "gone", 2, 1, 2)
	f.eventually("2 pods have GPUs", f.gpus(2))
	f.give(f.ctx, values(50))
	f.scale(holding+"\nmaxReplicaCount: 6", "targetValue", "50", "window", "0s")
	f.eventually("2 pods at the target", f.hpaValue(50))
	gone := f.fleet[0]
	f.must(gone.Stop())
	f.must(shared.Client.Delete(f.ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: gone.Name}}))
	f.always("2 replicas or more without any node", 10*time.Second, f.atLeast(2))
	f.eventually("their pods are collected, and those that follow wait", f.counts(2, 0))
	f.always("2 replicas that wait", 5*time.Second, f.atLeast(2))
	f.addNode()
	f.eventually("2 replicas on the new node", f.replicas(2))
	f.eventually("2 pods have GPUs", f.gpus(2))
	f.give(f.ctx, values(80))
	f.eventually("4 replicas: 2 x 80 / 50", f.replicas(4))
}

// TestFromZeroNodes: the pool of GPU nodes has scaled to zero. The fronts are
// there; a pod that waits for a node stays, and scales on its GPU once there is one.
func TestFromZeroNodes(t *testing.T) {
	f := beginFleet(t, "nodeless", 1, 0, 0)
	other := f.Named("clients")
	f.must(other.Deploy(f.ctx, "", 0))
	f.scaleOn("external", "pollingInterval: 1\ncooldownPeriod: 5", clients, "targetValue", "50", "window", "0s")
	f.eventually("Ready", f.condition("Ready", "True"))
	f.must(other.Scale(f.ctx, 1))
	f.eventually("1 replica, which waits for a node", f.counts(1, 0))
	f.must(other.Scale(f.ctx, 0))
	f.always("1 replica for three cooldowns", 15*time.Second, f.counts(1, 0))
	f.addNode()
	f.eventually("it runs", f.replicas(1))
	f.eventually("it has a GPU", f.gpus(1))
	f.give(f.ctx, values(95))
	f.eventually("2 replicas", f.replicas(2))
	f.give(f.ctx, values(0))
	f.eventually("0 replicas, because nobody uses it", f.replicas(0))
}
