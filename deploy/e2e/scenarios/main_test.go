// Package scenarios tells what users see of gpuscaler on a real Kubernetes with
// a real KEDA. Each story has a namespace, a GPU node and a workload of its own,
// and all share one cluster. A new story is one more file.
package scenarios

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpuscaler/deploy/e2e/binaries"
	"gpuscaler/deploy/e2e/cluster"
	"gpuscaler/deploy/e2e/namespaces"
	"gpuscaler/deploy/e2e/realnode"
)

var (
	repo   = mustAbs("../../..")
	deploy = filepath.Join(repo, "deploy")
	// work is the folder of this run; product, in it, has what ships.
	work, product string
	set           *binaries.Set
	// shared is the cluster of all stories that name no other.
	shared *cluster.Cluster
)

// plain is a cluster with the periods that a user finds, for the few stories
// that need one to themselves.
var plain = sync.OnceValues(func() (*cluster.Cluster, error) {
	c, err := cluster.Start(context.Background(), cluster.Options{
		Binaries: set, Product: product, Deploy: deploy, Dir: filepath.Join(work, "b"), DefaultPeriods: true, Progress: func(string) {},
	})
	if err == nil {
		running = append(running, c)
	}
	return c, err
})

// running are the clusters that end with the run.
var running []*cluster.Cluster

func untouched(t *testing.T) *cluster.Cluster {
	t.Helper()
	c, err := plain()
	require.NoError(t, err)
	return c
}

// workVar tells the program in the namespaces where the one outside has built
// everything: in there is no way to a module proxy.
const workVar = "GPUSCALER_E2E_WORK"

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

// testMain runs all stories, as root in namespaces with a real node. The logs of
// a run that fails are kept.
func testMain(m *testing.M) (code int) {
	ctx := context.Background()
	var err error
	if work = os.Getenv(workVar); work == "" {
		if os.Getenv("CI") != "" && os.Geteuid() != 0 {
			return failed(namespaces.ErrNotRoot) // before all the building
		}
		work, err = prepare(ctx)
		defer func() {
			if code == 0 || code > 128 { // a signal's: nobody wants to look into it
				_ = os.RemoveAll(work)
			}
		}()
		if err != nil {
			return failed(err)
		}
	}
	code, err = namespaces.Run(func() int { return inCluster(ctx, m.Run) })
	if errors.Is(err, namespaces.ErrNotRoot) {
		progress("without root there is no real node: its stories are skipped")
		return inCluster(ctx, m.Run)
	}
	if err != nil {
		return failed(err)
	}
	return code
}

// prepare builds everything into a folder of this run.
func prepare(ctx context.Context) (work string, err error) {
	root := os.Geteuid() == 0
	if root {
		if err := realnode.Check(); err != nil {
			return "", err
		}
	}
	if work, err = os.MkdirTemp("", "gpus-e2e-"); err != nil {
		return "", err
	}
	// Containers' users have to find what is mounted from here.
	if err := os.Chmod(work, 0o755); err != nil {
		return work, err
	}
	if _, err := binaries.Build(ctx, binaries.Options{Source: "..", RealNode: root, Helm: true, Gateway: true, Progress: progress}); err != nil {
		return work, err
	}
	progress("building the product")
	if err := binaries.Product(ctx, repo, filepath.Join(work, "bin")); err != nil {
		return work, err
	}
	out, err := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(work, "cluster"), "../cmd/cluster").CombinedOutput()
	if err == nil {
		out, err = exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(work, "bin", "llmengine"), "../cmd/llmengine").CombinedOutput()
	}
	if err != nil {
		return work, fmt.Errorf("%w: %s", err, out)
	}
	if root {
		err = realnode.Build(ctx, realnode.BuildOptions{Repo: repo, Source: filepath.Dir(mustAbs(".")), To: filepath.Join(work, "parts"), Progress: progress})
	}
	return work, errors.Join(err, os.Setenv(workVar, work))
}

// inCluster runs the stories in the shared cluster, which ends with them.
func inCluster(ctx context.Context, run func() int) (code int) {
	o := cluster.Options{Deploy: deploy, Dir: filepath.Join(work, "a"), Progress: progress}
	if namespaces.Inside() {
		o.NodeIP = namespaces.NodeIP
	}
	product = filepath.Join(work, "bin")
	var err error
	if set, err = binaries.Build(ctx, binaries.Options{Source: "..", RealNode: namespaces.Inside(), Helm: true, Gateway: true, Progress: progress}); err != nil {
		return failed(err)
	}
	o.Binaries, o.Product = set, product
	if shared, err = cluster.Start(ctx, o); err != nil {
		return failed(err)
	}
	running = append(running, shared)
	defer func() {
		for _, c := range running {
			if err := c.Stop(); err != nil {
				code = failed(err)
			}
		}
	}()
	if code = run(); code != 0 {
		return failed(nil)
	}
	return 0
}

func failed(err error) int {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	fmt.Fprintln(os.Stderr, "logs are in", filepath.Join(work, "*", "logs"))
	return 1
}

func mustAbs(path string) string {
	path, err := filepath.Abs(path)
	if err != nil {
		panic(err) // the working folder is gone
	}
	return path
}

var began = time.Now()

func progress(line string) {
	fmt.Fprintf(os.Stderr, "%6s  %s\n", time.Since(began).Round(time.Second), line)
}
