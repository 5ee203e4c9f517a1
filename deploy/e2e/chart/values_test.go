package chart

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"gpuscaler/deploy/e2e/binaries"
)

// TestRefuses has values that must not get to a cluster, and what the user is told.
func TestRefuses(t *testing.T) {
	for value, told := range map[string]string{
		"front.replicas=0":                                "'/front/replicas': minimum: got 0, want 1",
		"frnt.enabled=true":                               "additional properties 'frnt' not allowed",
		"flags.scaler.stale-aftr=5s":                      "'/flags/scaler': additional properties 'stale-aftr' not allowed",
		"flags.scaler.stale-after=5":                      "'/flags/scaler/stale-after': got number, want string",
		"flags.scaler.log-level=loud":                     "'/flags/scaler/log-level': value must be one of 'debug', 'info', 'warn', 'error'",
		"images.scaler.digest=latest":                     "'/images/scaler/digest': 'latest' does not match pattern",
		"daemonSet.maxSurge=0":                            "'/daemonSet/maxSurge'",
		"daemonSet.resources.scaler.requests.memory=null": "'/daemonSet/resources/scaler/requests': missing property 'memory'",
		"keda.namespace=Keda":                             "'/keda/namespace': 'Keda' does not match pattern",
		"profiles.mine.metricType=temperature":            "'/profiles/mine': missing properties",
		"front.enabled=true,peers.enabled=false":          "front.enabled is true and peers.enabled false: a front knows of GPUs from its peers alone; set peers.enabled=true",
		"kubernetes.enabled=false":                        "kubernetes.enabled is false, with podResources.enabled true and peers.enabled true: both need the Kubernetes API",
		"tls.clientCASecretName=ca":                       `tls.clientCASecretName is "ca" and tls.secretName empty: client certificates need TLS`,
		"peerTLS.certManager=true":                        "peerTLS.certManager is true and peerTLS.secretName empty",
		"peerTLS.secretName=s,peers.enabled=false":        `peerTLS.secretName is "s" and peers.enabled false`,
		"priorityClass.name=":                             "priorityClass.create is true and priorityClass.name empty",
	} {
		t.Run(value, func(t *testing.T) {
			t.Parallel()
			out, log, err := run(t, "template", "gpuscaler", folder, "--set="+value)
			require.Error(t, err, out)
			require.Contains(t, log, told)
		})
	}
}

// TestFlags holds the schema to what the programs say of themselves: every flag
// is a value, or the chart's own.
func TestFlags(t *testing.T) {
	bin := t.TempDir()
	require.NoError(t, binaries.Product(t.Context(), repo, bin))
	text, err := os.ReadFile(filepath.Join(folder, "values.schema.json"))
	require.NoError(t, err)
	var schema struct {
		Properties struct {
			Flags struct {
				Properties map[string]struct{ Properties map[string]any }
			}
		}
	}
	require.NoError(t, json.Unmarshal(text, &schema))
	for program, p := range map[string]struct{ command, chart []string }{
		"scaler": {[]string{"scaler", "serve"}, []string{
			"nvml-socket", "nvml-uid", "podresources-uid", "replay", "listen", "http", "tls-cert-file", "tls-private-key-file", "client-ca-file",
			"profiles", "node-name", "peers", "peer-listen", "peer-tls-cert-file", "peer-tls-private-key-file", "peer-ca-file",
			"workloads", "kubernetes", "kubeconfig",
		}},
		"nvmlsidecar":  {[]string{"nvmlsidecar"}, []string{"socket", "record", "once"}},
		"podresources": {[]string{"scaler", "podresources"}, []string{"socket", "kubelet-socket", "once"}},
	} {
		help, err := exec.CommandContext(t.Context(), filepath.Join(bin, p.command[0]), append(p.command[1:], "--help")...).Output()
		require.NoError(t, err)
		want := slices.Clone(p.chart)
		for flag := range schema.Properties.Flags.Properties[program].Properties {
			want = append(want, flag)
			require.Contains(t, string(help), "($GPUSCALER_"+strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))+")")
		}
		var has []string
		for _, found := range regexp.MustCompile(`(?m)^ +(?:-., )?--([a-z-]+)`).FindAllStringSubmatch(string(help), -1) {
			if found[1] != "help" && found[1] != "version" {
				has = append(has, found[1])
			}
		}
		require.ElementsMatch(t, want, has, program)
	}
}

// find is the one object of a kind.
func find(t *testing.T, objects []*unstructured.Unstructured, kind, name string) map[string]any {
	t.Helper()
	i := slices.IndexFunc(objects, func(o *unstructured.Unstructured) bool { return o.GetKind() == kind && o.GetName() == name })
	require.GreaterOrEqual(t, i, 0, "no %s %s", kind, name)
	return objects[i].Object
}

// TestValues is what has no component: images, flags, profiles and rules.
func TestValues(t *testing.T) {
	digest := "sha256:" + strings.Repeat("0", 64)
	objects := render(t, folder, "images.scaler.repository=example.com:5000/team/scaler", "images.scaler.digest="+digest,
		"images.nvmlsidecar.tag=v2", "images.pullPolicy=Always", "images.pullSecrets={one,two}",
		"flags.scaler.stale-after=5s", "flags.scaler.tolerance=0.05", "flags.nvmlsidecar.interval=500ms", "flags.podresources.interval=2s",
		"profiles.mine.description=d", "profiles.mine.reason=r", "profiles.mine.metricType=temperature", "profiles.mine.targetValue=60",
		"prometheus.rules.enabled=true", "prometheus.rules.pricePerKWh=0.31", "prometheus.rules.labels.release=stack",
		"prometheus.podMonitor.enabled=true", "front.enabled=true", "front.replicas=3", "networkPolicy.apiServerPorts={16443}")
	daemonSet := find(t, objects, "DaemonSet", "gpuscaler")
	pod, _, err := unstructured.NestedMap(daemonSet, "spec", "template", "spec")
	require.NoError(t, err)
	require.Equal(t, []any{map[string]any{"name": "one"}, map[string]any{"name": "two"}}, pod["imagePullSecrets"])
	env := map[string]any{}
	images := map[string]any{}
	for _, c := range pod["containers"].([]any) {
		c := c.(map[string]any)
		images[c["name"].(string)] = c["image"]
		require.Equal(t, "Always", c["imagePullPolicy"])
		for _, e := range c["env"].([]any) {
			e := e.(map[string]any)
			env[c["name"].(string)+" "+e["name"].(string)] = e["value"]
		}
	}
	scaler := "example.com:5000/team/scaler@" + digest
	require.Equal(t, map[string]any{"scaler": scaler, "nvmlsidecar": "gpuscaler/nvmlsidecar:v2", "podresources": scaler}, images)
	require.Equal(t, "5s", env["scaler GPUSCALER_STALE_AFTER"])
	require.Equal(t, "0.05", env["scaler GPUSCALER_TOLERANCE"])
	require.Equal(t, "500ms", env["nvmlsidecar GPUSCALER_INTERVAL"])
	require.Equal(t, "2s", env["podresources GPUSCALER_INTERVAL"])
	require.Equal(t, "/etc/gpuscaler/profiles", env["scaler GPUSCALER_PROFILES"])
	profile := find(t, objects, "ConfigMap", "gpuscaler-profiles")["data"].(map[string]any)
	require.YAMLEq(t, "{name: mine, description: d, reason: r, metricType: temperature, targetValue: 60}", profile["mine.yaml"].(string))
	require.EqualValues(t, 3, find(t, objects, "Deployment", "gpuscaler-front")["spec"].(map[string]any)["replicas"])
	monitor := find(t, objects, "PodMonitor", "gpuscaler")["spec"].(map[string]any)
	require.Equal(t, true, monitor["podMetricsEndpoints"].([]any)[0].(map[string]any)["honorLabels"])

	// The rules are those of deploy/prometheus with the user's own figure.
	rules := find(t, objects, "PrometheusRule", "gpuscaler")
	require.Equal(t, "stack", rules["metadata"].(map[string]any)["labels"].(map[string]any)["release"])
	var want []any
	for _, file := range []string{"recording.yaml", "alerts.yaml"} {
		text, err := os.ReadFile(filepath.Join(deploy, "prometheus", file))
		require.NoError(t, err)
		var f struct{ Groups []any }
		require.NoError(t, yaml.Unmarshal([]byte(strings.Replace(string(text), "vector(0.25)", "vector(0.31)", 1)), &f))
		want = append(want, f.Groups...)
	}
	require.Equal(t, normal(want), normal(rules["spec"].(map[string]any)["groups"]))
}
