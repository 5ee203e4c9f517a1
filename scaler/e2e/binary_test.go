package e2e

import (
	"debug/buildinfo"
	"debug/elf"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// What a security review asks of the binary that listens on the network.
func TestScalerIsStatic(t *testing.T) {
	f, err := elf.Open(bin + "/scaler")
	require.NoError(t, err)
	defer f.Close()
	for _, p := range f.Progs {
		assert.NotEqual(t, elf.PT_INTERP, p.Type, "no interpreter")
		assert.NotEqual(t, elf.PT_DYNAMIC, p.Type, "no dynamic section")
	}
	libraries, err := f.ImportedLibraries()
	require.NoError(t, err)
	assert.Empty(t, libraries, "no libc")
	assert.Nil(t, f.Section(".symtab"), "stripped of symbols")
	for _, s := range f.Sections {
		assert.False(t, strings.HasPrefix(s.Name, ".debug") || strings.HasPrefix(s.Name, ".zdebug"), "stripped of %s", s.Name)
	}
	info, err := buildinfo.ReadFile(bin + "/scaler")
	require.NoError(t, err)
	for _, d := range info.Deps {
		assert.NotContains(t, d.Path, "go-nvml", "the scaler never runs C")
	}
	settings := map[string]string{}
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	assert.Equal(t, "0", settings["CGO_ENABLED"])
	size, err := os.Stat(bin + "/scaler")
	require.NoError(t, err)
	assert.Less(t, size.Size(), int64(40<<20), "bytes")
}

// The linker leaves out what is not called; this sees what is imported.
func TestScalerImportsNoC(t *testing.T) {
	list := exec.Command("go", "list", "-deps", "-f", "{{.ImportPath}}{{if .CgoFiles}} cgo{{end}}", "gpuscaler/scaler")
	list.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := list.Output()
	require.NoError(t, err)
	for _, pkg := range strings.Split(strings.TrimSpace(string(out)), "\n") {
		assert.NotContains(t, pkg, " cgo")
		assert.NotEqual(t, "runtime/cgo", pkg)
		assert.NotContains(t, pkg, "go-nvml")
		assert.False(t, strings.HasPrefix(pkg, "gpuscaler/nvmlsidecar"), pkg)
	}
}

// Imports point one way: main, then adapters that do not know each other, then
// logic that does no I/O.
func TestImportsPointOneWay(t *testing.T) {
	imports := func(pkg string) string {
		out, err := exec.Command("go", "list", "-deps", pkg).Output()
		require.NoError(t, err)
		return "\n" + string(out)
	}
	for pkg, forbidden := range map[string][]string{
		"gpuscaler/shared/snapshot":       {"gpuscaler/scaler", "gpuscaler/nvmlsidecar", "gpuscaler/shared/fixture", "google.golang.org", "\nnet\n"},
		"gpuscaler/shared/snapshotpb":     {"gpuscaler/scaler", "gpuscaler/nvmlsidecar", "google.golang.org/grpc"},
		"gpuscaler/scaler/window":         {"gpuscaler/shared", "gpuscaler/scaler/fleet", "\nnet\n"},
		"gpuscaler/scaler/fleet":          {"gpuscaler/scaler/trigger", "gpuscaler/scaler/ingest", "google.golang.org/grpc", "\nnet\n"},
		"gpuscaler/scaler/terms":          {"gpuscaler/profiles", "gpuscaler/scaler/fleet", "google.golang.org/grpc"},
		"gpuscaler/scaler/evaluate":       {"google.golang.org/grpc", "gpuscaler/scaler/ingest", "gpuscaler/scaler/externalscaler", "\nnet/http\n"},
		"gpuscaler/scaler/attribution":    {"gpuscaler/scaler/", "google.golang.org", "k8s.io", "\nnet\n"},
		"gpuscaler/scaler/replicas":       {"gpuscaler/", "google.golang.org", "k8s.io", "\nnet\n"},
		"gpuscaler/scaler/pod":            {"gpuscaler/scaler/evaluate", "google.golang.org/grpc", "k8s.io/client-go"},
		"gpuscaler/scaler/pods":           {"gpuscaler/scaler/workload", "gpuscaler/scaler/evaluate", "google.golang.org/grpc", "k8s.io/client-go/kubernetes"},
		"gpuscaler/scaler/workload":       {"gpuscaler/scaler/pods", "gpuscaler/scaler/events", "google.golang.org/grpc", "k8s.io/client-go/kubernetes"},
		"gpuscaler/scaler/resourceslices": {"gpuscaler/scaler/pods", "gpuscaler/scaler/workload", "google.golang.org/grpc", "k8s.io/client-go/kubernetes"},
		"gpuscaler/scaler/podresources":   {"gpuscaler/scaler/fleet", "gpuscaler/scaler/ingest", "k8s.io/client-go"},
		"gpuscaler/scaler/peer":           {"gpuscaler/scaler/evaluate", "gpuscaler/scaler/externalscaler", "gpuscaler/scaler/endpointslices", "gpuscaler/scaler/servertls", "k8s.io"},
		"gpuscaler/scaler/endpointslices": {"gpuscaler/scaler/peer", "gpuscaler/scaler/fleet", "google.golang.org/grpc", "k8s.io/client-go/kubernetes"},
		"gpuscaler/scaler/ingest":         {"gpuscaler/scaler/fleet", "gpuscaler/scaler/externalscaler", "google.golang.org/grpc"},
		"gpuscaler/scaler/replay":         {"gpuscaler/scaler/fleet", "gpuscaler/scaler/ingest", "google.golang.org/grpc"},
		"gpuscaler/scaler/externalscaler": {"gpuscaler/scaler/ingest", "gpuscaler/scaler/status", "gpuscaler/scaler/replay", "k8s.io/client-go"},
		"gpuscaler/scaler/events":         {"gpuscaler/", "google.golang.org/grpc", "k8s.io/client-go/kubernetes"},
		"gpuscaler/scaler/kubernetes":     {"gpuscaler/", "google.golang.org/grpc", "k8s.io/client-go/kubernetes"},
		"gpuscaler/scaler/servertls":      {"gpuscaler/", "google.golang.org", "k8s.io/client-go/rest"},
		"gpuscaler/scaler/meter":          {"gpuscaler/scaler/evaluate", "gpuscaler/scaler/trigger", "google.golang.org", "prometheus", "\nnet\n"},
		"gpuscaler/scaler/exporter":       {"gpuscaler/scaler/externalscaler", "gpuscaler/scaler/workload", "gpuscaler/scaler/ingest", "google.golang.org/grpc", "k8s.io/client-go"},
		"gpuscaler/scaler/status":         {"gpuscaler/scaler/exporter", "gpuscaler/scaler/externalscaler", "gpuscaler/scaler/ingest", "google.golang.org/grpc"},
		"gpuscaler/nvmlsidecar":           {"gpuscaler/scaler", "google.golang.org/grpc"},
		"gpuscaler/nvmlsidecar/sampler":   {"gpuscaler/nvmlsidecar/nvml", "gpuscaler/shared/stream"},
		"gpuscaler/shared/stream":         {"gpuscaler/nvmlsidecar", "gpuscaler/scaler", "google.golang.org/grpc"},
	} {
		have := imports(pkg)
		for _, f := range forbidden {
			if !strings.HasPrefix(f, "\n") {
				f = "\n" + f
			}
			assert.False(t, strings.Contains(strings.ReplaceAll(have, "\n"+pkg+"\n", "\n"), f), "%s imports %s", pkg, strings.TrimSpace(f))
		}
	}
}
