package scenarios

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gpuscaler/deploy/e2e/cluster"
)

// TestManifests applies the base with each component and with all that pass
// "restricted", for real: Pod Security admission is in force, and the pod of a
// node with a GPU's label is admitted and runs (KWOK plays it; the real node has
// real containers).
func TestManifests(t *testing.T) {
	turns.turn(t, ofCluster, 2*storyTime)
	ctx, cancel := context.WithTimeout(t.Context(), 2*storyTime)
	t.Cleanup(cancel)
	c := untouched(t)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(events(context.Background(), c))
		}
	})
	require.NoError(t, c.AddFakeNode(ctx, "labelled", 8, map[string]string{"nvidia.com/gpu.present": "true", "nvidia.com/gpu.deploy.client": "true"}))
	require.NoError(t, c.Apply(ctx, runtimeClass))
	restricted := []string{"nvidia-runtime-class", "tls", "mutual-tls", "no-kubernetes"}
	// What is in the default install, with everything that it goes with.
	whole := []string{"pod-resources", "peers", "engines", "front", "prometheus", "nvidia-runtime-class", "tls", "mutual-tls", "peer-tls"}
	overlays := [][]string{
		nil, {"nvidia-runtime-class"}, {"no-kubernetes"}, {"tls"}, {"tls", "mutual-tls"}, restricted,
		{"prometheus"}, {"gke"}, {"nvidia-volume-mounts"}, {"nvidia-sys-admin"}, {"nvidia-nri"}, {"pod-resources"}, {"pod-resources", "peers"}, whole, {"operator-managed"},
	}
	for _, components := range overlays {
		manifests := overlay(t, components...)
		require.NoError(t, c.Apply(ctx, manifests), "%v", components)
		require.NoError(t, cluster.Until(ctx, func(ctx context.Context) error { return rolledOut(ctx, c) }), "%v", components)
		want := "restricted"
		if len(components) > 0 && slices.Contains([]string{"gke", "nvidia-volume-mounts", "nvidia-sys-admin", "pod-resources"}, components[0]) {
			want = "privileged" // and a comment beside the line that needs it
		}
		namespace := &corev1.Namespace{}
		require.NoError(t, c.Client.Get(ctx, client.ObjectKey{Name: "gpuscaler"}, namespace))
		require.Equal(t, want, namespace.Labels["pod-security.kubernetes.io/enforce"], "%v", components)
	}
	// A label takes the pod off the node: the operator's, of which the last overlay is, and the one for people.
	for label, paused := range map[string]string{"nvidia.com/gpu.deploy.client": "paused-for-driver-upgrade", "gpuscaler/paused": "true"} {
		before, err := c.Label(ctx, "labelled", label, paused)
		require.NoError(t, err)
		require.NoError(t, cluster.Until(ctx, func(ctx context.Context) error { return noPods(ctx, c) }), label)
		_, err = c.Label(ctx, "labelled", label, before)
		require.NoError(t, err)
		require.NoError(t, cluster.Until(ctx, func(ctx context.Context) error { return rolledOut(ctx, c) }), label)
	}
	// The same pod with a host path is refused where "restricted" is enforced.
	refused := strings.Replace(overlay(t, "gke"), "enforce: privileged", "enforce: restricted", 1)
	require.NoError(t, c.Apply(ctx, refused))
	require.NoError(t, cluster.Until(ctx, func(ctx context.Context) error {
		if found := events(ctx, c); !strings.Contains(found, `violates PodSecurity "restricted`) {
			return errors.New(found)
		}
		return nil
	}))
	manifests, err := cluster.Kustomize(filepath.Join(repo, "deploy", "default"))
	require.NoError(t, err)
	require.Equal(t, overlay(t, "pod-resources", "peers", "engines"), manifests, "the default install")
	require.NoError(t, c.AddTypes(ctx, "cert-manager"))
	require.NoError(t, cluster.Until(ctx, func(ctx context.Context) error { // a type is served some time after it was made
		return c.Apply(ctx, overlay(t, "pod-resources", "peers", "peer-tls", "cert-manager"))
	}))
	certificate := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "cert-manager.io/v1", "kind": "Certificate"}}
	require.NoError(t, c.Client.Get(ctx, client.ObjectKey{Namespace: "gpuscaler", Name: "gpuscaler-peer-tls"}, certificate))
	require.Error(t, c.Apply(ctx, strings.Replace(overlay(t, "peer-tls", "cert-manager"), "renewBefore:", "renewEarlier:", 1)), "fields are checked")
	front := &appsv1.Deployment{}
	require.NoError(t, c.Client.Get(ctx, client.ObjectKey{Namespace: "gpuscaler", Name: "gpuscaler-front"}, front))
	require.EqualValues(t, 2, front.Status.Replicas, "admitted under Pod Security; KWOK's nodes are not for it")
	for _, example := range []string{"tls/llm.yaml"} { // the others are in TestProfiles
		text, err := os.ReadFile(filepath.Join(repo, "deploy", "examples", example))
		require.NoError(t, err)
		require.NoError(t, c.ApplyIn(ctx, "default", string(text)))
	}
}

// runtimeClass is what the GPU operator, or a person, has made in a cluster that
// needs the component nvidia-runtime-class.
const runtimeClass = `
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: nvidia}
handler: nvidia
`

// overlay renders the base with components, as "kubectl kustomize" does.
func overlay(t *testing.T, components ...string) string {
	t.Helper()
	return overlayWith(t, "", components...)
}

// overlayWith is overlay with further lines of the kustomization.
func overlayWith(t *testing.T, lines string, components ...string) string {
	t.Helper()
	manifests, err := cluster.Overlay(deploy, t.TempDir(), lines, components...)
	require.NoError(t, err)
	return manifests
}

// rolledOut is what "kubectl rollout status" waits for.
func rolledOut(ctx context.Context, c *cluster.Cluster) error {
	d := &appsv1.DaemonSet{}
	if err := c.Client.Get(ctx, client.ObjectKey{Namespace: "gpuscaler", Name: "gpuscaler"}, d); err != nil {
		return err
	}
	s := d.Status
	if s.ObservedGeneration != d.Generation || s.DesiredNumberScheduled == 0 || s.UpdatedNumberScheduled != s.DesiredNumberScheduled ||
		s.NumberAvailable != s.DesiredNumberScheduled {
		return fmt.Errorf("not rolled out: %+v", s)
	}
	return nil
}

// noPods checks that no node has a pod of the DaemonSet.
func noPods(ctx context.Context, c *cluster.Cluster) error {
	pods := &corev1.PodList{}
	err := c.Client.List(ctx, pods, client.InNamespace("gpuscaler"), client.MatchingLabels{"app.kubernetes.io/component": "node"})
	if err == nil && len(pods.Items) > 0 {
		err = fmt.Errorf("%d pods", len(pods.Items))
	}
	return err
}

// events are the messages in our namespace.
func events(ctx context.Context, c *cluster.Cluster) string {
	list := &corev1.EventList{}
	if err := c.Client.List(ctx, list, client.InNamespace("gpuscaler")); err != nil {
		return err.Error()
	}
	var text strings.Builder
	for _, e := range list.Items {
		fmt.Fprintf(&text, "%s %s %s: %s\n", e.LastTimestamp.Format(metav1.RFC3339Micro), e.InvolvedObject.Name, e.Reason, e.Message)
	}
	return text.String()
}
