// Package binaries builds the programs of the cluster under test from their Go
// modules, once, into a cache folder. It must not know how they are run.
package binaries

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// module is one folder of tools, a go.mod whose tool lines name the programs; or
// data alone, which has no folder.
type module struct {
	name  string
	data  []data
	patch patch
}

// data are the YAML files in folders of a module's sources that are kept beside
// the programs.
type data struct {
	name    string
	from    string // the module; with its version where no go.mod tells
	folders []string
}

// modules are as few as can be: what two modules of different versions share is
// compiled twice.
var modules = []module{{
	name: "cluster",
	data: []data{
		{name: "kwok", from: "sigs.k8s.io/kwok", folders: []string{
			"kustomize/stage/pod/fast", "kustomize/stage/node/fast", "kustomize/stage/node/heartbeat-with-lease",
		}},
		{name: "keda", from: keda, folders: []string{"config/crd/bases"}},
	},
	patch: patch{
		// The adapter's own metrics would listen on all interfaces.
		module: keda, file: "cmd/adapter/main.go",
		line: `fmt.Sprintf(":%v", metricsAPIServerPort)`, instead: `fmt.Sprintf("127.0.0.1:%v", metricsAPIServerPort)`,
	},
}}

const keda = "github.com/kedacore/keda/v2"

// types are those of others that components of ours make objects of: their
// definitions alone, without the programs.
var types = module{name: "types", data: []data{
	{name: "cert-manager", from: "github.com/cert-manager/cert-manager@v1.19.1", folders: []string{"deploy/crds"}},
	{name: "prometheus-operator", from: "github.com/prometheus-operator/prometheus-operator@v0.93.0", folders: []string{"example/prometheus-operator-crd"}},
}}

// node is what a real node needs besides: an older kubelet, that takes the
// containerd of distributions.
var node = module{name: "kubelet"}

// charts is what installs our chart.
var charts = module{name: "helm"}

// gateway is what holds requests in front of a workload at zero replicas.
var gateway = module{name: "caddy"}

// Set is where the built programs are.
type Set struct {
	root    string // of the cache
	folders map[string]string
}

// Path is where a program of a module is, e.g. Path("cluster", "kubectl").
func (s *Set) Path(module, program string) string {
	return filepath.Join(s.folders[module], program)
}

// Data lists the YAML files kept of a module, e.g. Data("cluster", "keda").
func (s *Set) Data(module, name string) ([]string, error) {
	return filepath.Glob(filepath.Join(s.folders[module], "data", name, "*.yaml"))
}

// Cache is the folder for whatever else is worth keeping between runs.
func (s *Set) Cache() string { return s.root }

// Options say what to build and where.
type Options struct {
	// Source is the folder deploy/e2e.
	Source string
	// Cache is where the programs are kept; empty is GPUSCALER_E2E_CACHE, else
	// gpuscaler/e2e in the user's cache folder.
	Cache string
	// RealNode adds what a real node needs.
	RealNode bool
	// Helm adds the program helm.
	Helm bool
	// Gateway adds the program caddy.
	Gateway bool
	// Progress is told what is going on; it may take a while.
	Progress func(string)
}

// Build builds what is not in the cache yet. From an empty build cache it takes
// some 13 minutes on 2 cores, later no time.
func Build(ctx context.Context, o Options) (*Set, error) {
	root, err := cacheFolder(o.Cache)
	if err != nil {
		return nil, err
	}
	s := &Set{root: root, folders: make(map[string]string)}
	wanted := slices.Concat(modules, []module{types})
	if o.RealNode {
		wanted = append(wanted, node)
	}
	if o.Helm {
		wanted = append(wanted, charts)
	}
	if o.Gateway {
		wanted = append(wanted, gateway)
	}
	unlock, err := lock(ctx, root, o.Progress)
	if err != nil {
		return nil, fmt.Errorf("cache %s: %w", root, err)
	}
	defer unlock()
	if err := sweep(root); err != nil {
		return nil, err
	}
	for i, m := range wanted {
		source := filepath.Join(o.Source, "tools", m.name)
		key, err := cacheKey(m, source)
		if err != nil {
			return nil, err
		}
		folder := filepath.Join(root, m.name+"-"+key)
		s.folders[m.name] = folder
		if _, err := os.Stat(folder); err == nil {
			continue
		}
		o.Progress(fmt.Sprintf("building %s (%d of %d, once; the lot takes some 13 minutes on 2 cores)", m.name, i+1, len(wanted)))
		started := time.Now()
		if err := build(ctx, m, source, folder); err != nil {
			return nil, fmt.Errorf("building %s: %w", m.name, err)
		}
		o.Progress(fmt.Sprintf("built %s in %s", m.name, time.Since(started).Round(time.Second)))
	}
	return s, nil
}

// flags of "go build". Nobody debugs these programs: without DWARF they take a
// tenth less of the time.
var flags = []string{"-trimpath", "-gcflags=all=-dwarf=false"}

// linked are the flags of the linker, with the version of Kubernetes that a
// module has: without it an API server says that it is v0.0.0, which no chart
// with a kubeVersion is installed on.
const linked = "-ldflags=-s -w -X k8s.io/component-base/version.gitVersion=%s"

// kubernetes is the version of Kubernetes in a module; empty where it has none.
func kubernetes(ctx context.Context, source string) (string, error) {
	out, err := run(ctx, source, "list", "-m", "-f", `{{if eq .Path "k8s.io/kubernetes"}}{{.Version}}{{end}}`, "all")
	return strings.TrimSpace(out), err
}

// unfinished begins the names of folders that are being built.
const unfinished = ".building-"

// sweep removes what a build that was killed has left. The caller has the lock.
func sweep(root string) error {
	left, err := filepath.Glob(filepath.Join(root, unfinished+"*"))
	for _, folder := range left {
		err = errors.Join(err, os.RemoveAll(folder))
	}
	return err
}

func cacheFolder(given string) (string, error) {
	if given == "" {
		given = os.Getenv("GPUSCALER_E2E_CACHE")
	}
	if given != "" {
		return filepath.Abs(given)
	}
	user, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no cache folder: %w; set GPUSCALER_E2E_CACHE", err)
	}
	return filepath.Join(user, "gpuscaler", "e2e"), nil
}

// cacheKey changes with everything that changes the programs.
func cacheKey(m module, source string) (string, error) {
	h := sha256.New()
	fmt.Fprintln(h, runtime.Version(), runtime.GOARCH, flags, linked, m)
	for _, name := range []string{"go.mod", "go.sum"} {
		text, err := os.ReadFile(filepath.Join(source, name))
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // it has data alone
			return "", err
		}
		h.Write(text)
	}
	return hex.EncodeToString(h.Sum(nil))[:12], nil
}

// build makes the folder in one step, so that it is whole or not there.
func build(ctx context.Context, m module, source, folder string) error {
	if err := os.MkdirAll(filepath.Dir(folder), 0o755); err != nil {
		return err
	}
	work, err := os.MkdirTemp(filepath.Dir(folder), unfinished)
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(work) }()
	if err := os.Chmod(work, 0o755); err != nil {
		return err
	}
	_, err = os.Stat(source)
	if errors.Is(err, fs.ErrNotExist) {
		source = filepath.Dir(source) // versions are the data's own
	}
	for _, d := range m.data {
		if err := d.keep(ctx, source, filepath.Join(work, "data", d.name)); err != nil {
			return err
		}
	}
	if err != nil { // no programs
		return os.Rename(work, folder)
	}
	version, err := kubernetes(ctx, source)
	if err != nil {
		return err
	}
	arguments := append(append([]string{"build"}, flags...), fmt.Sprintf(linked, version), "-o", work+"/")
	if m.patch != (patch{}) {
		modfile, err := m.patch.apply(ctx, source, filepath.Join(work, "src"))
		if err != nil {
			return err
		}
		arguments = append(arguments, "-modfile="+modfile)
	}
	if _, err := run(ctx, source, append(arguments, "tool")...); err != nil {
		return err
	}
	if err := os.RemoveAll(filepath.Join(work, "src")); err != nil {
		return err
	}
	return os.Rename(work, folder)
}

// download is the folder of a module's sources, which may have to be fetched:
// "go list" knows no folder of a module that nothing was built of yet.
func download(ctx context.Context, source, module string) (folder string, err error) {
	out, err := run(ctx, source, "mod", "download", "-json", module)
	if err != nil {
		return "", err
	}
	var fetched struct{ Dir string }
	if err := json.Unmarshal([]byte(out), &fetched); err != nil {
		return "", fmt.Errorf("go mod download %s: %w", module, err)
	}
	if fetched.Dir == "" {
		return "", fmt.Errorf("go mod download %s names no folder: %s", module, out)
	}
	return fetched.Dir, nil
}

// keep copies the files into a new folder.
func (d data) keep(ctx context.Context, source, to string) error {
	from, err := download(ctx, source, d.from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	for _, folder := range d.folders {
		files, err := filepath.Glob(filepath.Join(from, folder, "*.yaml"))
		if err != nil {
			return err
		}
		if len(files) == 0 {
			return fmt.Errorf("%s has no YAML files in %s", d.from, folder)
		}
		for _, file := range files {
			if filepath.Base(file) == "kustomization.yaml" {
				continue
			}
			text, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			if err := os.WriteFile(filepath.Join(to, filepath.Base(file)), text, 0o644); err != nil {
				return err
			}
		}
	}
	return nil
}

// run is the go command in a folder of tools.
func run(ctx context.Context, dir string, args ...string) (string, error) {
	c := exec.CommandContext(ctx, "go", args...)
	c.Dir = dir
	c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=readonly -buildvcs=false", "GOWORK=off")
	var out, log strings.Builder
	c.Stdout = &out
	c.Stderr = io.Writer(&log)
	err := c.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return "", fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, log.String())
	}
	return out.String(), err
}
