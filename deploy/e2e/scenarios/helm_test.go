package scenarios

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gpuscaler/deploy/e2e/cluster"
)

// TestHelm installs the chart with the real helm, does what its notes say, has it
// upgraded and rolled back, and removes it. What the chart renders is compared with
// the manifests in package chart.
func TestHelm(t *testing.T) {
	turns.turn(t, ofCluster, storyTime)
	ctx, cancel := context.WithTimeout(t.Context(), storyTime)
	t.Cleanup(cancel)
	c, err := cluster.Start(ctx, cluster.Options{
		Binaries: set, Product: product, Deploy: deploy, Dir: filepath.Join(work, "h"), Progress: func(string) {},
	})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, c.Stop()) })
	require.NoError(t, c.AddFakeNode(ctx, "labelled", 8, map[string]string{"nvidia.com/gpu.present": "true"}))
	require.NoError(t, c.AddTypes(ctx, "prometheus-operator", "podmonitors", "prometheusrules"))
	h := helmOf{t, ctx, c, t.TempDir()}
	chart := filepath.Join(deploy, "helm", "gpuscaler")
	// The harness has given its own scalers their rights.
	h.sh("kubectl delete --ignore-not-found namespace/gpuscaler clusterrole/gpuscaler clusterrole/gpuscaler-workloads " +
		"clusterrolebinding/gpuscaler clusterrolebinding/gpuscaler-workloads")
	notes := h.sh("helm install gpuscaler " + chart + " --namespace gpuscaler --create-namespace --wait --timeout 1m " +
		"--set prometheus.podMonitor.enabled=true,prometheus.rules.enabled=true,dashboards.enabled=true,prometheus.namespace=monitoring")
	lines := strings.Split(strings.TrimSpace(notes), "\n")
	require.Contains(t, notes, "enforce=privileged")
	for _, line := range lines { // all that the notes have one type
		if command := strings.TrimSpace(line); strings.HasPrefix(command, "kubectl ") {
			h.sh(command)
		}
	}
	require.Contains(t, h.sh(strings.TrimSpace(lines[len(lines)-1])), "successfully rolled out")
	trigger := notes[strings.Index(notes, "triggers:"):strings.Index(notes, "The pods go")]
	h.sh("kubectl apply --dry-run=server -f - <<'END'\napiVersion: keda.sh/v1alpha1\nkind: ScaledObject\nmetadata: {name: llm}\n" +
		"spec:\n  scaleTargetRef: {name: llm}\n  " + trigger + "\nEND")
	require.Contains(t, h.sh("kubectl -n gpuscaler get podmonitor,prometheusrule,configmap -o name"), "configmap/gpuscaler-dashboard-workload")

	h.sh("helm upgrade gpuscaler " + chart + " --namespace gpuscaler --reuse-values --set front.enabled=true")
	service := &corev1.Service{}
	require.NoError(t, c.Client.Get(ctx, client.ObjectKey{Namespace: "gpuscaler", Name: "gpuscaler"}, service))
	require.Equal(t, "front", service.Spec.Selector["app.kubernetes.io/component"])
	front := &appsv1.Deployment{}
	require.NoError(t, c.Client.Get(ctx, client.ObjectKey{Namespace: "gpuscaler", Name: "gpuscaler-front"}, front))
	h.sh("helm rollback gpuscaler 1 --namespace gpuscaler")
	require.True(t, apierrors.IsNotFound(c.Client.Get(ctx, client.ObjectKeyFromObject(front), front)))

	// A second one goes beside it, in a namespace of its own.
	h.sh("helm install second " + chart + " --namespace second --create-namespace --set priorityClass.create=false")
	h.sh("helm uninstall second --namespace second --wait")
	require.NoError(t, rolledOut(ctx, c), "the first is as it was")
	h.sh("helm uninstall gpuscaler --namespace gpuscaler --wait")
	kinds := "daemonset,deployment,poddisruptionbudget,service,serviceaccount,networkpolicy,role,rolebinding,configmap,podmonitor,prometheusrule," +
		"clusterrole,clusterrolebinding,priorityclass"
	require.Empty(t, h.sh("kubectl get --all-namespaces --ignore-not-found -o name -l app.kubernetes.io/name=gpuscaler "+kinds))

	// The API server knows the types, and would not take what is no field of theirs.
	monitor := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "monitoring.coreos.com/v1", "kind": "PodMonitor", "metadata": map[string]any{"name": "wrong", "namespace": "default"},
		"spec": map[string]any{"selector": map[string]any{}, "podMetricsEndpoints": []any{map[string]any{"honourLabels": true}}},
	}}
	require.ErrorContains(t, c.Client.Apply(ctx, client.ApplyConfigurationFromUnstructured(monitor), client.FieldOwner("test")), "honourLabels")
}

// helmOf runs commands as a user with a shell does, in a cluster.
type helmOf struct {
	*testing.T
	ctx  context.Context
	on   *cluster.Cluster
	home string
}

// sh is what a command prints; it must not fail.
func (h helmOf) sh(command string) string {
	h.Helper()
	sh := exec.CommandContext(h.ctx, "sh", "-c", command)
	path := filepath.Dir(set.Path("helm", "helm")) + ":" + filepath.Dir(set.Path("cluster", "kubectl")) + ":" + os.Getenv("PATH")
	sh.Env = append(os.Environ(), "PATH="+path, "KUBECONFIG="+h.on.Kubeconfig, "HOME="+h.home)
	for _, kind := range []string{"CACHE", "CONFIG", "DATA"} {
		sh.Env = append(sh.Env, fmt.Sprintf("HELM_%s_HOME=%s", kind, h.home))
	}
	var out, log strings.Builder
	sh.Stdout, sh.Stderr = &out, &log
	require.NoError(h, sh.Run(), "%s\n%s%s", command, out.String(), log.String())
	return out.String()
}
