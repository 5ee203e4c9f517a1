package chart

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// extraEnv are values with variables of a container of the DaemonSet.
func extraEnv(container string, names ...string) string {
	var values []string
	for i, name := range names {
		values = append(values, fmt.Sprintf("daemonSet.extraEnv.%s[%d].name=%s", container, i, name))
	}
	return strings.Join(values, ",")
}

// at is what an object has at a path of keys, or nil.
func at(t *testing.T, object map[string]any, path ...string) any {
	t.Helper()
	v, _, err := unstructured.NestedFieldNoCopy(object, path...)
	require.NoError(t, err)
	return v
}

// podOf is the template of a workload's pods.
func podOf(t *testing.T, objects []*unstructured.Unstructured, kind, name string) map[string]any {
	t.Helper()
	return at(t, find(t, objects, kind, name), "spec", "template").(map[string]any)
}

// container is the one of that name in a pod's template.
func container(t *testing.T, pod map[string]any, name string) map[string]any {
	t.Helper()
	for _, c := range at(t, pod, "spec", "containers").([]any) {
		if c.(map[string]any)["name"] == name {
			return c.(map[string]any)
		}
	}
	require.Fail(t, "no container", name)
	return nil
}

func object(pairs ...any) map[string]any {
	made := map[string]any{}
	for i := 0; i < len(pairs); i += 2 {
		made[pairs[i].(string)] = pairs[i+1]
	}
	return made
}

// notPaused is in each of the DaemonSet's node terms.
var notPaused = object("key", "gpuscaler/paused", "operator", "NotIn", "values", []any{"true"})

// TestGPUNodes: a label of the user's own is enough to select nodes, and the label
// gpuscaler/paused takes the pod off a node in every case.
func TestGPUNodes(t *testing.T) {
	for _, c := range []struct {
		values   string
		selector bool // only the nodeSelector selects
		notes    string
	}{
		{"nvidia.operatorManaged=false", false, "with a GPU's label"},
		{`daemonSet.nodeSelector.kubernetes\.io/arch=arm64`, false, "with a GPU's label"},
		{"nvidia.operatorManaged=true", false, "They need the node label nvidia.com/gpu.deploy.client=true"},
		{"daemonSet.nodeSelector.pool=gpu", true, "The pods go to all nodes that daemonSet.nodeSelector selects"},
		{"daemonSet.nodeSelector.pool=gpu,daemonSet.gpuNodes=selector", true, "(daemonSet.gpuNodes is selector)"},
		{"daemonSet.nodeSelector.pool=gpu,daemonSet.gpuNodes=labels", false, "with a GPU's label"},
		{"daemonSet.affinity=null", true, ""}, // it selects nothing
	} {
		t.Run(c.values, func(t *testing.T) {
			t.Parallel()
			pod := podOf(t, render(t, folder, c.values), "DaemonSet", "gpuscaler")
			terms := at(t, pod, "spec", "affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms").([]any)
			if c.selector {
				require.Equal(t, []any{object("matchExpressions", []any{notPaused})}, terms)
			} else {
				require.Len(t, terms, 13)
				for _, term := range terms {
					expressions := term.(map[string]any)["matchExpressions"].([]any)
					require.Len(t, expressions, 2)
					require.Equal(t, notPaused, expressions[1])
				}
			}
			out, log, err := run(t, "install", "gpuscaler", folder, "--namespace=gpuscaler", "--dry-run=client", "--set="+c.values)
			require.NoError(t, err, log)
			require.Contains(t, out, c.notes)
		})
	}
	// The rest of an affinity stays.
	pod := podOf(t, render(t, folder, "daemonSet.nodeSelector.pool=gpu,daemonSet.affinity.podAffinity.a=b"), "DaemonSet", "gpuscaler")
	require.Equal(t, "b", at(t, pod, "spec", "affinity", "podAffinity", "a"))
}

// TestNVIDIA is what the components have no variant for.
func TestNVIDIA(t *testing.T) {
	pod := podOf(t, render(t, folder, "nvidia.operatorManaged=true,nvidia.operatorLabel=nvidia.com/gpu.deploy.dcgm-exporter",
		"nvidia.nri=true,nvidia.nriDevice=nvidia.com/gpu=all"), "DaemonSet", "gpuscaler")
	require.Equal(t, object("kubernetes.io/os", "linux", "nvidia.com/gpu.deploy.dcgm-exporter", "true"), at(t, pod, "spec", "nodeSelector"))
	require.Equal(t, "nvidia.com/gpu=all", at(t, pod, "metadata", "annotations", "nvidia.cdi.k8s.io/container.nvmlsidecar"))
}

// TestPods is what people give to the pods of both workloads.
func TestPods(t *testing.T) {
	values := []string{
		"front.enabled=true", "images.pullSecrets={one}", "priorityClass.create=false", "priorityClass.name=system-node-critical",
		"daemonSet.podLabels.team=a", "front.podLabels.team=b", "daemonSet.supplementalGroups={44,109}",
		"daemonSet.extraVolumes[0].name=x", "daemonSet.extraVolumes[0].emptyDir.medium=Memory", "front.extraVolumes[0].name=x",
		"daemonSet.extraEnv.nvmlsidecar[0].name=FROM", "daemonSet.extraEnv.nvmlsidecar[0].valueFrom.fieldRef.fieldPath=spec.nodeName",
		"front.extraEnv[0].name=A", "front.extraEnv[0].value=b", "front.extraVolumeMounts[0].name=x", "front.extraVolumeMounts[0].mountPath=/x",
		`serviceAccount.annotations.example\.com/role=reader`,
	}
	for _, name := range []string{"scaler", "podresources"} {
		values = append(values, extraEnv(name, "A"), "daemonSet.extraEnv."+name+"[0].value=b")
	}
	for _, name := range []string{"scaler", "nvmlsidecar", "podresources"} {
		values = append(values, "daemonSet.extraVolumeMounts."+name+"[0].name=x", "daemonSet.extraVolumeMounts."+name+"[0].mountPath=/x")
	}
	objects := render(t, folder, values...)
	node, front := podOf(t, objects, "DaemonSet", "gpuscaler"), podOf(t, objects, "Deployment", "gpuscaler-front")
	for team, pod := range map[string]map[string]any{"a": node, "b": front} {
		require.Equal(t, team, at(t, pod, "metadata", "labels", "team"))
		require.Equal(t, "gpuscaler", at(t, pod, "metadata", "labels", "app.kubernetes.io/name"))
		require.Equal(t, "system-node-critical", at(t, pod, "spec", "priorityClassName"))
		require.Equal(t, []any{object("name", "one")}, at(t, pod, "spec", "imagePullSecrets"))
		for _, c := range at(t, pod, "spec", "containers").([]any) {
			c := c.(map[string]any)
			want := object("name", "A", "value", "b")
			if c["name"] == "nvmlsidecar" {
				want = object("name", "FROM", "valueFrom", object("fieldRef", object("fieldPath", "spec.nodeName")))
			}
			require.Contains(t, c["env"], want, c["name"])
			require.Contains(t, c["volumeMounts"], object("name", "x", "mountPath", "/x"), c["name"])
		}
	}
	require.Contains(t, at(t, node, "spec", "volumes"), object("name", "x", "emptyDir", object("medium", "Memory")))
	require.Contains(t, at(t, front, "spec", "volumes"), object("name", "x"))
	require.Equal(t, []any{float64(44), float64(109)}, at(t, node, "spec", "securityContext", "supplementalGroups"))
	for _, o := range objects {
		require.NotEqual(t, "PriorityClass", o.GetKind())
	}
	require.Equal(t, object("example.com/role", "reader"), at(t, find(t, objects, "ServiceAccount", "gpuscaler"), "metadata", "annotations"))
	// Nothing given leaves no trace.
	node = podOf(t, render(t, folder), "DaemonSet", "gpuscaler")
	require.NotContains(t, at(t, node, "spec", "securityContext"), "supplementalGroups")
	require.NotContains(t, container(t, node, "nvmlsidecar"), "env")
}

func TestUpdateStrategy(t *testing.T) {
	for values, want := range map[string]map[string]any{
		"": object("type", "RollingUpdate", "rollingUpdate", object("maxSurge", "10%", "maxUnavailable", float64(0))),
		// Kubernetes refuses both above 0.
		"daemonSet.updateStrategy.maxUnavailable=1":   object("type", "RollingUpdate", "rollingUpdate", object("maxSurge", float64(0), "maxUnavailable", float64(1))),
		"daemonSet.updateStrategy.maxUnavailable=20%": object("type", "RollingUpdate", "rollingUpdate", object("maxSurge", float64(0), "maxUnavailable", "20%")),
		"daemonSet.updateStrategy.type=OnDelete":      object("type", "OnDelete"),
	} {
		require.Equal(t, want, at(t, find(t, render(t, folder, values), "DaemonSet", "gpuscaler"), "spec", "updateStrategy"), values)
	}
}

func TestPodMonitorRelabelings(t *testing.T) {
	objects := render(t, folder, "prometheus.namespace=monitoring", "prometheus.podMonitor.enabled=true",
		"prometheus.podMonitor.relabelings[0].targetLabel=cluster", "prometheus.podMonitor.relabelings[0].replacement=a",
		"prometheus.podMonitor.metricRelabelings[0].action=drop")
	endpoint := at(t, find(t, objects, "PodMonitor", "gpuscaler"), "spec", "podMetricsEndpoints").([]any)[0].(map[string]any)
	require.Equal(t, []any{object("targetLabel", "cluster", "replacement", "a")}, endpoint["relabelings"])
	require.Equal(t, []any{object("action", "drop")}, endpoint["metricRelabelings"])
}
