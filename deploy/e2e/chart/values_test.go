package chart

import (
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"gpuscaler/deploy/e2e/binaries"
	"gpuscaler/deploy/e2e/cluster"
	"gpuscaler/profiles"
	"gpuscaler/scaler/terms"
	"gpuscaler/shared/snapshot"
)

// TestRefuses has values that must not get to a cluster, and what the user is told.
func TestRefuses(t *testing.T) {
	for value, told := range map[string]string{
		"front.replicas=0":                                               "'/front/replicas': minimum: got 0, want 1",
		"frnt.enabled=true":                                              "additional properties 'frnt' not allowed",
		"flags.scaler.stale-aftr=5s":                                     "'/flags/scaler': additional properties 'stale-aftr' not allowed",
		"flags.scaler.stale-after=5":                                     "'/flags/scaler/stale-after': got number, want string",
		"flags.scaler.log-level=loud":                                    "'/flags/scaler/log-level': value must be one of 'debug', 'info', 'warn', 'error'",
		"images.scaler.digest=latest":                                    "'/images/scaler/digest': 'latest' does not match pattern",
		"daemonSet.maxSurge=0":                                           "'/daemonSet/maxSurge'",
		"daemonSet.resources.scaler.requests.memory=null":                "'/daemonSet/resources/scaler/requests': missing property 'memory'",
		"keda.namespace=Keda":                                            "'/keda/namespace': 'Keda' does not match pattern",
		"profiles.mine.metricType=temperature":                           "'/profiles/mine': missing properties",
		"profiles.mine.metricType=heat":                                  "'/profiles/mine/metricType'",
		"profiles.mine.window=30s":                                       "'/profiles/mine/window': value must be one of '0s', '15s', '1m', '5m'",
		"profiles.mine.aggregation=median":                               "'/profiles/mine/aggregation': 'median' does not match pattern",
		profileOf("gpu_utilization", "0.8"):                              "profiles.mine.targetValue is 0.8, and gpu_utilization is in percent; allowed is above 1 and at most 100, or more with aggregation sum",
		profileOf("dram_activity", "800"):                                "profiles.mine.targetValue is 800, and dram_activity is in percent",
		"flags.scaler.tolerance=1":                                       "'/flags/scaler/tolerance': exclusiveMaximum: got 1, want 1",
		"flags.scaler.stale-after=500ms":                                 "flags.scaler.stale-after is 500ms; allowed is 1s to 1h",
		"flags.scaler.stale-after=3s":                                    "flags.scaler.peer-interval is 2s; allowed is 100ms to 1500ms: half of flags.scaler.stale-after",
		"flags.scaler.stale-after=5m":                                    "flags.scaler.attribution-stale-after is 2m; allowed is 5m to 1h: not below flags.scaler.stale-after",
		"flags.scaler.peer-tls-name=peers":                               "flags.scaler.peer-tls-name is given and peerTLS.secretName empty",
		"flags.nvmlsidecar.interval=50ms":                                "flags.nvmlsidecar.interval is 50ms; allowed is 100ms to 1m",
		"flags.nvmlsidecar.interval=6s":                                  "flags.nvmlsidecar.interval is 6s; allowed is 100ms to 5000ms: half of flags.scaler.stale-after",
		"flags.nvmlsidecar.container-timeout=500ms":                      "flags.nvmlsidecar.container-timeout is 500ms; allowed is 1s to 24h, or 0s",
		"flags.nvmlsidecar.hang-timeout=500ms":                           "flags.nvmlsidecar.hang-timeout is 500ms; allowed is 1s to 24h",
		"flags.podresources.interval=10s":                                "flags.podresources.interval is 10s; allowed is 1s to 5s",
		"prometheus.podMonitor.enabled=true":                             "prometheus.podMonitor.enabled is true and prometheus.namespace empty",
		"podResources.kubeletRootDir=var/lib":                            "'/podResources/kubeletRootDir': 'var/lib' does not match pattern",
		"front.enabled=true,peers.enabled=false":                         "front.enabled is true, with peers.enabled false and podResources.enabled true: a front knows of GPUs",
		"kubernetes.enabled=false":                                       "kubernetes.enabled is false, with podResources.enabled true and peers.enabled true: both need the Kubernetes API",
		"tls.clientCASecretName=ca":                                      `tls.clientCASecretName is "ca" and tls.secretName empty: client certificates need TLS`,
		"peerTLS.certManager=true":                                       "peerTLS.certManager is true and peerTLS.secretName empty",
		"peerTLS.secretName=s,peers.enabled=false":                       `peerTLS.secretName is "s" and peers.enabled false`,
		"priorityClass.name=":                                            "priorityClass.create is true and priorityClass.name empty",
		"daemonSet.gpuNodes=all":                                         "'/daemonSet/gpuNodes': value must be one of 'auto', 'labels', 'selector'",
		"daemonSet.gpuNodes=selector":                                    "daemonSet.gpuNodes is selector and daemonSet.nodeSelector names no label of GPU nodes",
		"nvidia.operatorManged=true":                                     "'/nvidia': additional properties 'operatorManged' not allowed",
		"nvidia.operatorLabel=a b":                                       "'/nvidia/operatorLabel': 'a b' does not match pattern",
		"nvidia.nriDevice=all":                                           "'/nvidia/nriDevice': 'all' does not match pattern",
		"daemonSet.updateStrategy.type=Recreate":                         "'/daemonSet/updateStrategy/type': value must be one of 'RollingUpdate', 'OnDelete'",
		"daemonSet.supplementalGroups={video}":                           "'/daemonSet/supplementalGroups/0': got string, want integer",
		"daemonSet.podLabels.a=1":                                        "'/daemonSet/podLabels/a': got number, want string",
		"daemonSet.extraVolumes[0].emptyDir=null":                        "'/daemonSet/extraVolumes/0': missing property 'name'",
		"front.extraVolumeMounts[0].name=a":                              "'/front/extraVolumeMounts/0': missing property 'mountPath'",
		"serviceAccount.annotation.a=b":                                  "'/serviceAccount': additional properties 'annotation' not allowed",
		"prometheus.podMonitor.relabelling={}":                           "'/prometheus/podMonitor': additional properties 'relabelling' not allowed",
		`front.podLabels.app\.kubernetes\.io/name=x`:                     "front.podLabels has app.kubernetes.io/name, which the chart sets",
		"daemonSet.extraEnv.sidecar[0].name=A":                           "'/daemonSet/extraEnv': additional properties 'sidecar' not allowed",
		"daemonSet.extraEnv.scaler[0].value=A":                           "'/daemonSet/extraEnv/scaler/0': missing property 'name'",
		extraEnv("scaler", "GPUSCALER_TOLERANCE"):                        "daemonSet.extraEnv.scaler has GPUSCALER_TOLERANCE: flags are set in flags",
		extraEnv("podresources", "GOMEMLIMIT"):                           "daemonSet.extraEnv.podresources has GOMEMLIMIT, which the chart sets",
		extraEnv("nvmlsidecar", "A", "A"):                                "daemonSet.extraEnv.nvmlsidecar has A twice",
		"gke.enabled=true," + extraEnv("nvmlsidecar", "LD_LIBRARY_PATH"): "daemonSet.extraEnv.nvmlsidecar has LD_LIBRARY_PATH, which the chart sets",
		"front.extraEnv[0].name=GOGC":                                    "front.extraEnv has GOGC, which the chart sets",
		`nvidia.nri=true,daemonSet.podAnnotations.nvidia\.cdi\.k8s\.io/container\.nvmlsidecar=x`: "which nvidia.nri sets",
		`nvidia.operatorManaged=true,daemonSet.nodeSelector.nvidia\.com/gpu\.deploy\.client=x`:   "which nvidia.operatorManaged sets",
	} {
		t.Run(value, func(t *testing.T) {
			t.Parallel()
			out, log, err := run(t, "template", "gpuscaler", folder, "--set="+value)
			require.Error(t, err, out)
			require.Contains(t, log, told)
		})
	}
}

// profileOf is a profile with a target of a metric.
func profileOf(metric, target string) string {
	return "profiles.mine.description=d,profiles.mine.reason=r,profiles.mine.scaleToZero=true,profiles.mine.metricType=" + metric + ",profiles.mine.targetValue=" + target
}

// TestTargets: the chart takes the targets that the scaler takes, of each metric.
func TestTargets(t *testing.T) {
	for _, value := range []string{profileOf("gpu_utilization", "800") + ",profiles.mine.aggregation=sum", profileOf("x_percent", "0.8"), profileOf("nvlink_tx_mbps", "50000")} {
		out, log, err := run(t, "template", "gpuscaler", folder, "--set="+value, "--show-only=templates/profiles.yaml")
		require.NoError(t, err, log)
		require.Contains(t, out, "targetValue:")
	}
	text, err := os.ReadFile(filepath.Join(folder, "templates", "_check.tpl"))
	require.NoError(t, err)
	found := regexp.MustCompile(`regexMatch "([^"]+)" \$profile.metricType`).FindSubmatch(text)
	require.NotNil(t, found)
	percentage := regexp.MustCompile(string(found[1]))
	for _, m := range snapshot.Metrics {
		require.Equal(t, m.Percentage(), percentage.MatchString(m.Name), m.Name)
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
			"workloads", "engines", "kubernetes", "kubeconfig",
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

// requireProfile has the scaler itself read the files of a ConfigMap.
func requireProfile(t *testing.T, files map[string]any) {
	t.Helper()
	require.NotEmpty(t, files)
	dir := t.TempDir()
	for name, text := range files {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text.(string)), 0o600))
	}
	var log strings.Builder
	store, err := profiles.NewStore(dir, slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelWarn})))
	require.NoError(t, err)
	require.Empty(t, log.String())
	for name := range files {
		_, known := store.Load().Get(strings.TrimSuffix(name, ".yaml"))
		require.True(t, known, name)
	}
}

// TestMetricNames: the schema has those that there are.
func TestMetricNames(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(folder, "values.schema.json"))
	require.NoError(t, err)
	all := snapshot.MetricNames()
	for _, m := range terms.EngineMetrics {
		all = append(all, m.Name)
	}
	names, err := json.Marshal(all)
	require.NoError(t, err)
	require.Contains(t, strings.Join(strings.Fields(string(text)), ""), `"metricType":{"anyOf":[{"enum":`+string(names)+"}")
}

// TestLimits tries the programs themselves on both sides of what the chart allows.
func TestLimits(t *testing.T) {
	bin := t.TempDir()
	require.NoError(t, binaries.Product(t.Context(), repo, bin))
	refused := func(within time.Duration, program string, args ...string) bool {
		ctx, cancel := context.WithTimeout(t.Context(), within) // who takes them goes on
		defer cancel()
		c := exec.CommandContext(ctx, filepath.Join(bin, program), args...)
		c.Env = []string{
			"HOME=" + bin, "GPUSCALER_LISTEN=127.0.0.1:0", "GPUSCALER_HTTP=", "GPUSCALER_KUBERNETES=off",
			"GPUSCALER_SOCKET=" + filepath.Join(bin, "none"), "GPUSCALER_KUBELET_SOCKET=" + filepath.Join(bin, "none"),
		}
		out, err := c.CombinedOutput()
		require.Error(t, err)
		told := strings.Contains(string(out), " is outside ") || strings.Contains(string(out), "is less than")
		require.Equal(t, told, ctx.Err() == nil, "it ended for another reason: %s", out)
		return told
	}
	scaler := func(flags ...string) []string {
		return append([]string{"serve", "--nvml-socket=" + filepath.Join(bin, "s"), "--workloads=off"}, flags...)
	}
	peers := func(flag string) []string { return scaler("--peers=127.0.0.1:1", "--peer-listen=127.0.0.1:0", flag) }
	for _, c := range []struct {
		program string
		args    []string
		refused bool
	}{
		{"scaler", scaler("--stale-after=1s"), false},
		{"scaler", scaler("--stale-after=999ms"), true},
		{"scaler", scaler("--stale-after=1h", "--attribution-stale-after=1h"), false},
		{"scaler", scaler("--stale-after=61m", "--attribution-stale-after=61m"), true},
		{"scaler", scaler("--stale-after=10s", "--attribution-stale-after=10s"), false},
		{"scaler", scaler("--stale-after=10s", "--attribution-stale-after=9s"), true},
		{"scaler", scaler("--tolerance=0"), false},
		{"scaler", scaler("--tolerance=1"), true},
		{"scaler", peers("--peer-interval=5s"), false},
		{"scaler", peers("--peer-interval=5001ms"), true},
		{"scaler", peers("--peer-interval=100ms"), false},
		{"scaler", peers("--peer-interval=99ms"), true},
		{"nvmlsidecar", []string{"--interval=100ms"}, false},
		{"nvmlsidecar", []string{"--interval=99ms"}, true},
		{"nvmlsidecar", []string{"--interval=1m"}, false},
		{"nvmlsidecar", []string{"--interval=61s"}, true},
		{"nvmlsidecar", []string{"--container-timeout=0s"}, false},
		{"nvmlsidecar", []string{"--container-timeout=1s"}, false},
		{"nvmlsidecar", []string{"--container-timeout=999ms"}, true},
		{"nvmlsidecar", []string{"--hang-timeout=1s"}, false},
		{"nvmlsidecar", []string{"--hang-timeout=999ms"}, true},
		{"scaler", []string{"podresources", "--interval=1s"}, false},
		{"scaler", []string{"podresources", "--interval=999ms"}, true},
		{"scaler", []string{"podresources", "--interval=5s"}, false},
		{"scaler", []string{"podresources", "--interval=6s"}, true},
	} {
		within := 500 * time.Millisecond
		if c.refused { // it ends by itself, on a slow machine too
			within = 20 * time.Second
		}
		require.Equal(t, c.refused, refused(within, c.program, c.args...), "%s %v", c.program, c.args)
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
		"profiles.mine.scaleToZero=false", "profiles.mine.window=1m", "profiles.mine.aggregation=p95",
		"prometheus.podMonitor.enabled=true", "prometheus.namespace=monitoring", "podResources.kubeletRootDir=/var/lib/k0s/kubelet", "front.goMemLimit=180MiB", "front.enabled=true", "front.replicas=3", "networkPolicy.apiServerPorts={16443}")
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
	requireProfile(t, profile)
	set, err := os.ReadFile(filepath.Join(folder, "values.yaml")) // the example in there
	require.NoError(t, err)
	example := regexp.MustCompile(`(?s)profiles: \{\}\n(#  embeddings:.*?)\n\n`).FindStringSubmatch(string(set))
	require.NotNil(t, example)
	file := filepath.Join(t.TempDir(), "values.yaml")
	require.NoError(t, os.WriteFile(file, []byte("profiles:\n"+strings.ReplaceAll(example[1], "#", "")), 0o600))
	out, log, err := run(t, "template", "gpuscaler", folder, "--values="+file, "--show-only=templates/profiles.yaml")
	require.NoError(t, err, log)
	shown, err := cluster.Objects(out)
	require.NoError(t, err)
	requireProfile(t, shown[0].Object["data"].(map[string]any))
	require.Contains(t, pod["volumes"], map[string]any{
		"name": "pod-resources", "hostPath": map[string]any{"path": "/var/lib/k0s/kubelet/pod-resources", "type": "Directory"},
	})
	require.EqualValues(t, 3, find(t, objects, "Deployment", "gpuscaler-front")["spec"].(map[string]any)["replicas"])
	monitor := find(t, objects, "PodMonitor", "gpuscaler")["spec"].(map[string]any)
	require.Equal(t, true, monitor["podMetricsEndpoints"].([]any)[0].(map[string]any)["honorLabels"])
	same, err := os.ReadFile(filepath.Join(deploy, "prometheus", "podmonitor.yaml"))
	require.NoError(t, err)
	shown, err = cluster.Objects(string(same))
	require.NoError(t, err)
	require.Equal(t, normal(shown[0].Object["spec"]), normal(monitor), "what is there without Helm")
	// Annotations would invite a scrape without honor_labels.
	for _, c := range []string{"prometheus.podMonitor.enabled=true", "prometheus.podMonitor.enabled=false"} {
		out, log, err := run(t, "template", "gpuscaler", folder, "--set=front.enabled=true,prometheus.namespace=monitoring,"+c)
		require.NoError(t, err, log)
		require.NotContains(t, out, "prometheus.io/", c)
	}

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
