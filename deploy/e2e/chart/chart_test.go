// Package chart has no code: its tests hold the Helm chart to the manifests that
// kustomize renders, and its schema to the programs' flags, with the real helm.
package chart

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"gpuscaler/deploy/e2e/binaries"
	"gpuscaler/deploy/e2e/cluster"
)

var (
	repo   = mustAbs("../../..")
	deploy = filepath.Join(repo, "deploy")
	folder = filepath.Join(deploy, "helm", "gpuscaler")
	helm   string // the program
)

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	set, err := binaries.Build(context.Background(), binaries.Options{Source: "..", Helm: true, Progress: func(line string) { fmt.Println(line) }})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	helm = set.Path("helm", "helm")
	return m.Run()
}

func mustAbs(path string) string {
	abs, err := filepath.Abs(path)
	if err != nil {
		panic(err)
	}
	return abs
}

// run is helm, with nothing of the user's own settings.
func run(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	c := exec.CommandContext(t.Context(), helm, args...)
	home := t.TempDir()
	c.Env = append(os.Environ(), "HELM_CACHE_HOME="+home, "HELM_CONFIG_HOME="+home, "HELM_DATA_HOME="+home)
	var out, log strings.Builder
	c.Stdout, c.Stderr = &out, &log
	err = c.Run()
	return out.String(), log.String(), err
}

// render is "helm template" of a chart.
func render(t *testing.T, chart string, values ...string) []*unstructured.Unstructured {
	t.Helper()
	args := []string{"template", "gpuscaler", chart, "--namespace=gpuscaler"}
	for _, v := range values {
		args = append(args, "--set="+v)
	}
	out, log, err := run(t, args...)
	require.NoError(t, err, log)
	objects, err := cluster.Objects(out)
	require.NoError(t, err)
	return objects
}

// component is a folder of deploy/components in the chart's values.
type component struct {
	name, value string
	// with are those that it does nothing without.
	with []string
}

// components in the order in which kustomize wants them.
var components = []component{
	{"pod-resources", "podResources.enabled=true", nil},
	{"peers", "peers.enabled=true", nil},
	{"front", "front.enabled=true", []string{"pod-resources", "peers"}},
	{"engines", "engines.enabled=true", []string{"pod-resources"}},
	{"prometheus", "prometheus.namespace=monitoring", nil},
	{"nvidia-runtime-class", "nvidia.runtimeClassName=nvidia", nil},
	{"nvidia-volume-mounts", "nvidia.volumeMounts=true", nil},
	{"nvidia-nri", "nvidia.nri=true", nil},
	{"nvidia-sys-admin", "nvidia.sysAdmin=true", nil},
	{"operator-managed", "nvidia.operatorManaged=true", nil},
	{"gke", "gke.enabled=true", nil},
	{"tls", "tls.secretName=gpuscaler-tls", nil},
	{"mutual-tls", "tls.clientCASecretName=gpuscaler-client-ca", []string{"tls"}},
	{"peer-tls", "peerTLS.secretName=gpuscaler-peer-tls", []string{"peers"}},
	{"cert-manager", "peerTLS.certManager=true", []string{"peers", "peer-tls"}},
	{"no-kubernetes", "kubernetes.enabled=false", nil},
}

// base are the values of the base, which has no component.
var base = []string{"podResources.enabled=false", "peers.enabled=false", "engines.enabled=false"}

// TestEqualsKustomize renders the base, the default install, every component and
// every pair of them both ways.
func TestEqualsKustomize(t *testing.T) {
	folders, err := filepath.Glob(filepath.Join(deploy, "components", "*"))
	require.NoError(t, err)
	require.Len(t, components, len(folders), "a component is missing here, and maybe in the chart")
	sets := [][]string{nil, {"pod-resources", "peers"}, {"pod-resources", "peers", "engines"}}
	for i, a := range components {
		for _, b := range components[:i+1] {
			needsKubernetes := slices.ContainsFunc([]string{"pod-resources", "peers", "front", "engines", "peer-tls", "cert-manager"},
				func(name string) bool { return name == b.name })
			if a.name == "no-kubernetes" && needsKubernetes {
				continue // TestRefuses
			}
			sets = append(sets, slices.Concat(b.with, a.with, []string{b.name, a.name}))
		}
	}
	for _, set := range sets {
		var names []string
		values := base
		for _, c := range components {
			if slices.Contains(set, c.name) {
				names, values = append(names, c.name), append(slices.Clip(values), c.value)
			}
		}
		t.Run(strings.Join(names, "+"), func(t *testing.T) {
			t.Parallel()
			text, err := cluster.Overlay(deploy, t.TempDir(), "", names...)
			require.NoError(t, err)
			objects, err := cluster.Objects(text)
			require.NoError(t, err)
			want := comparable(t, objects)
			// The release's namespace is the user's; NOTES say which label it needs.
			delete(want, "v1 Namespace /gpuscaler")
			require.Empty(t, cmp.Diff(want, comparable(t, render(t, folder, values...))), "kustomize -, Helm +")
		})
	}
	t.Run("default", func(t *testing.T) {
		text, err := cluster.Kustomize(filepath.Join(deploy, "default"))
		require.NoError(t, err)
		objects, err := cluster.Objects(text)
		require.NoError(t, err)
		want := comparable(t, objects)
		delete(want, "v1 Namespace /gpuscaler")
		require.Empty(t, cmp.Diff(want, comparable(t, render(t, folder))))
	})
}

// comparable are objects by name, without what only Helm says and without the
// order of lists that have none.
func comparable(t *testing.T, objects []*unstructured.Unstructured) map[string]any {
	t.Helper()
	found := make(map[string]any, len(objects))
	for _, o := range objects {
		key := fmt.Sprintf("%s %s %s/%s", o.GetAPIVersion(), o.GetKind(), o.GetNamespace(), o.GetName())
		require.NotContains(t, found, key, "twice")
		found[key] = normal(o.Object)
	}
	return found
}

// own are the labels that only Helm gives.
var own = []string{"app.kubernetes.io/instance", "app.kubernetes.io/managed-by", "helm.sh/chart"}

func normal(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			if labels, ok := value.(map[string]any); ok && key == "labels" {
				for _, label := range own {
					delete(labels, label)
				}
			}
			v[key] = normal(value)
		}
	case []any:
		for i := range v {
			v[i] = normal(v[i])
		}
		slices.SortStableFunc(v, func(a, b any) int { return strings.Compare(sortKey(a), sortKey(b)) })
	}
	return v
}

// sortKey is what Kubernetes merges a list by. The others keep their order.
func sortKey(v any) string {
	item, _ := v.(map[string]any)
	for _, key := range []string{"mountPath", "name"} {
		if text, ok := item[key].(string); ok {
			return text
		}
	}
	return ""
}

func TestLintAndPackage(t *testing.T) {
	out, _, err := run(t, "lint", "--strict", folder)
	require.NoError(t, err, out)
	to := t.TempDir()
	out, log, err := run(t, "package", folder, "--destination", to)
	require.NoError(t, err, out, log)
	packages, err := filepath.Glob(filepath.Join(to, "*.tgz"))
	require.NoError(t, err)
	require.Len(t, packages, 1)
	// What lies outside the folder is in the package, too.
	values := []string{"prometheus.rules.enabled=true", "dashboards.enabled=true"}
	require.Empty(t, cmp.Diff(comparable(t, render(t, folder, values...)), comparable(t, render(t, packages[0], values...))))
}
