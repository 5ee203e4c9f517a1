package scenarios

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gpuscaler/deploy/e2e/cluster"
	"gpuscaler/deploy/e2e/namespaces"
	"gpuscaler/deploy/e2e/pki"
	"gpuscaler/deploy/e2e/realnode"
)

// serviceAddress is what the examples have.
const serviceAddress = "gpuscaler.gpuscaler.svc:6000"

// TestRealNode: the manifests as they are, our images, a kubelet and runc. KEDA
// reaches the DaemonSet's pod through its Service and scales on the node's load.
func TestRealNode(t *testing.T) {
	if !namespaces.Inside() {
		t.Skip("needs root")
	}
	const within = 2 * storyTime
	turns.turn(t, ofCluster, within)
	ctx, cancel := context.WithTimeoutCause(t.Context(), within, fmt.Errorf("the story took more than %s", within))
	t.Cleanup(cancel)
	node, err := realnode.Start(ctx, realnode.Options{
		Cluster: shared, Binaries: set, Product: product, Parts: filepath.Join(work, "parts"),
		Dir: filepath.Join(work, "n"), Fixture: fixture("two-60-80"), Progress: progress,
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, node.Stop()) })

	require.NoError(t, shared.Apply(ctx, overlay(t, "nvidia-runtime-class")))
	rollOut := func() {
		require.NoError(t, cluster.Until(ctx, func(ctx context.Context) error { return rolledOut(ctx, shared) }), "%s", events(context.Background(), shared))
	}
	rollOut()
	before := securityIsAsWritten(ctx, t, node, base)
	require.NoError(t, node.RestartKubelet(ctx))
	rollOut() // a kubelet that was restarted probes anew
	require.Equal(t, before, securityIsAsWritten(ctx, t, node, base), "the same containers go on when the kubelet is restarted")
	require.NoError(t, node.NameService(ctx, "gpuscaler", "gpuscaler"))

	// A workload with the trigger of the examples, address and all.
	require.NoError(t, shared.AddFakeNode(ctx, "beside-real", 8, nil))
	w, err := shared.AddWorkload(ctx, "real", "beside-real", 1)
	require.NoError(t, err)
	s := &story{T: t, ctx: ctx, name: "real", on: shared, node: &cluster.GPUNode{Address: serviceAddress}, Workload: w}
	t.Cleanup(s.tellFailure)
	s.scale(quick+"\nminReplicaCount: 1", "targetValue", "25", "window", "0s")
	s.must(node.Driver("set * gpu_utilization 75"))
	s.eventually("3 replicas by the real node's load", s.replicas(3))

	// With no readings the pod is not ready, and in reach all the same.
	s.must(node.Driver("lost *"))
	s.eventually("KEDA is told why", s.said("KEDAScalerFailed", "gpu-real"))
	s.eventually("the pod is not ready", func() error {
		if rolledOut(ctx, shared) == nil {
			return fmt.Errorf("it is ready")
		}
		return nil
	})
	s.always("3 replicas without readings", 5*time.Second, s.replicas(3))
	s.must(node.Driver("set * gpu_utilization 50"))
	s.eventually("2 replicas", s.replicas(2))
	rollOut() // so that the update begins with a pod that is ready

	// The default install with fronts: the workload's own GPUs, by the real kubelet,
	// and over TLS to the fronts, which find the node by EndpointSlices.
	ca, err := pki.NewCA("ours")
	s.must(err)
	s.must(applySecrets(ctx, ca))
	require.NoError(t, shared.Apply(ctx, overlayWith(t, frontsOnRealNode, "nvidia-runtime-class", "pod-resources", "peers", "engines", "front", "peer-tls")))
	rollOut()
	s.eventually("two fronts are ready", frontsReady(ctx))
	securityIsAsWritten(ctx, t, node, map[string]int{"scaler": 65532, "nvmlsidecar": 65533, "podresources": 0})
	ownGPUs(s, node)

	// The components for TLS: the rollout, the probes over HTTP, and KEDA's side.
	require.NoError(t, shared.Client.Delete(ctx, &appsv1.Deployment{ObjectMeta: metav1.ObjectMeta{Namespace: "gpuscaler", Name: "gpuscaler-front"}}))
	s.must(shared.Apply(ctx, overlay(t, "nvidia-runtime-class", "tls", "mutual-tls")))
	rollOut()
	securityIsAsWritten(ctx, t, node, base)
	s.authenticate(ca, ca)
	s.scaleOn("external", quick+"\nminReplicaCount: 1", reference, "enableTLS", "true", "targetValue", "25", "window", "0s")
	s.must(node.Driver("set * gpu_utilization 100"))
	s.eventually("4 replicas over mutual TLS", s.replicas(4))
	s.must(shared.Client.Delete(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "gpuscaler"}}))
	s.eventually("nothing is left of the installation", func() error {
		pods := &corev1.PodList{}
		if err := shared.Client.List(ctx, pods, client.InNamespace("gpuscaler")); err != nil {
			return err
		}
		if len(pods.Items) > 0 {
			return fmt.Errorf("%d pods", len(pods.Items))
		}
		return nil
	})
}

// engine has pods on the real node with a GPU each.
const engine = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: engine}
spec:
  replicas: 2
  selector: {matchLabels: {app: engine}}
  template:
    metadata: {labels: {app: engine}}
    spec:
      terminationGracePeriodSeconds: 0
      nodeSelector: {kubernetes.io/hostname: gpu-real}
      tolerations: [{key: nvidia.com/gpu, operator: Exists}]
      containers:
      - {name: engine, image: ` + realnode.PauseImage + `, resources: {limits: {nvidia.com/gpu: 1}}}
`

// ownGPUs: two pods with a GPU each, a restart of the kubelet, and a pod that
// ends, as the HPA shows them.
func ownGPUs(real *story, node *realnode.Node) {
	real.Helper()
	s := *real
	s.name = "engine"
	s.must(shared.Client.Create(s.ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "own"}}))
	s.Workload = shared.Workload("own", "engine")
	s.must(s.Apply(s.ctx, engine))
	s.eventually("two pods with a GPU each", s.replicas(2))
	s.must(node.Driver("set 0 gpu_utilization 60", "set 1 gpu_utilization 80"))
	s.scale(quick+"\nminReplicaCount: 1", "targetValue", "100", "window", "0s")
	s.eventually("the mean of both", s.hpaValue(70))
	s.must(node.RestartKubelet(s.ctx))
	s.must(node.Driver("set 0 gpu_utilization 62", "set 1 gpu_utilization 82"))
	s.eventually("the mean of both after the kubelet's restart", s.hpaValue(72))
	s.always("2 replicas", 5*time.Second, s.replicas(2))
	s.rollEverything(144)
	s.stopFronts(node)
	s.must(node.Driver("set 0 gpu_utilization 64", "set 1 gpu_utilization 84"))
	s.eventually("the mean of both, when the kubelet has ended the fronts that hang", s.hpaValue(74))
	s.must(node.Driver("set 0 gpu_utilization 30", "set 1 gpu_utilization 50"))
	s.eventually("1 replica", s.replicas(1))
	s.eventually("the GPU of the pod that is left", func() error {
		if s.hpaValue(30)() == nil {
			return nil
		}
		return s.hpaValue(50)()
	})
	s.must(shared.Client.Delete(s.ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "own"}}))
}

// stopFronts has all fronts hang, as a process does that waits for a dead disk.
func (s *story) stopFronts(node *realnode.Node) {
	s.Helper()
	pods := &corev1.PodList{}
	s.must(shared.Client.List(s.ctx, pods, client.InNamespace("gpuscaler"), client.MatchingLabels{"app.kubernetes.io/component": "front"}))
	for i := range pods.Items {
		containers, err := node.Containers(s.ctx, "gpuscaler", pods.Items[i].Name)
		s.must(err)
		for _, c := range containers {
			require.Equal(s, 65532, c.UID)
			require.Zero(s, c.CapEff|c.CapPrm|c.CapBnd)
			require.NoError(s, syscall.Kill(c.PID, syscall.SIGSTOP))
		}
	}
}

// frontsOnRealNode lets the fronts onto the real node, which is the only one where
// anything runs.
const frontsOnRealNode = `
patches:
- target: {kind: Deployment, name: gpuscaler-front}
  patch: |
    - {op: add, path: /spec/template/spec/tolerations, value: [{key: nvidia.com/gpu, operator: Exists}]}
    - {op: add, path: /spec/template/spec/nodeSelector/kubernetes.io~1hostname, value: gpu-real}
`

// frontsReady is what "kubectl rollout status" waits for.
func frontsReady(ctx context.Context) func() error {
	return func() error {
		d := &appsv1.Deployment{}
		if err := shared.Client.Get(ctx, client.ObjectKey{Namespace: "gpuscaler", Name: "gpuscaler-front"}, d); err != nil {
			return err
		}
		if d.Status.ObservedGeneration != d.Generation || d.Status.Replicas != 2 || d.Status.AvailableReplicas != 2 || d.Status.UpdatedReplicas != 2 {
			return fmt.Errorf("not rolled out: %+v", d.Status)
		}
		return nil
	}
}

// base are the users of the containers of the base.
var base = map[string]int{"scaler": 65532, "nvmlsidecar": 65533}

// securityIsAsWritten reads the settings of all containers back from /proc, and returns
// what it read; users are those that they have to be.
func securityIsAsWritten(ctx context.Context, t *testing.T, node *realnode.Node, users map[string]int) []realnode.Container {
	t.Helper()
	pods := &corev1.PodList{}
	require.NoError(t, shared.Client.List(ctx, pods, client.InNamespace("gpuscaler"), client.MatchingLabels{"app.kubernetes.io/component": "node"}))
	pods.Items = slices.DeleteFunc(pods.Items, func(p corev1.Pod) bool { return p.DeletionTimestamp != nil })
	require.Len(t, pods.Items, 1)
	containers, err := node.Containers(ctx, "gpuscaler", pods.Items[0].Name)
	require.NoError(t, err)
	uids := map[string]int{}
	for _, c := range containers {
		uids[c.Name] = c.UID
		require.Equal(t, 65532, c.GID, c.Name)
		require.Zero(t, c.CapEff|c.CapPrm|c.CapBnd, "%s has capabilities", c.Name)
		require.Equal(t, 2, c.Seccomp, "%s has no seccomp filter", c.Name)
		require.True(t, c.NoNewPrivs, "%s may gain privileges", c.Name)
		require.True(t, c.RootReadOnly, "%s may write to its root", c.Name)
	}
	require.Equal(t, users, uids)
	return containers
}

// secrets are those that the components tls, mutual-tls and peer-tls want.
const secrets = `
apiVersion: v1
kind: Secret
metadata: {name: gpuscaler-tls, namespace: gpuscaler}
type: kubernetes.io/tls
stringData: {tls.crt: %[1]q, tls.key: %[2]q}
---
apiVersion: v1
kind: Secret
metadata: {name: gpuscaler-client-ca, namespace: gpuscaler}
stringData: {ca.crt: %[3]q}
---
apiVersion: v1
kind: Secret
metadata: {name: gpuscaler-peer-tls, namespace: gpuscaler}
stringData: {tls.crt: %[4]q, tls.key: %[5]q, ca.crt: %[3]q}
`

func applySecrets(ctx context.Context, ca *pki.CA) error {
	server, err := ca.Sign("gpuscaler", nil, []string{"gpuscaler.gpuscaler.svc"})
	if err != nil {
		return err
	}
	peer, err := ca.Sign("gpuscaler", nil, []string{"gpuscaler-peers"})
	if err != nil {
		return err
	}
	return shared.Apply(ctx, fmt.Sprintf(secrets, server.Cert, server.Key, ca.PEM, peer.Cert, peer.Key))
}
