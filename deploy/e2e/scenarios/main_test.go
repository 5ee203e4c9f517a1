// Package scenarios tells what users see of gpuscaler on a real Kubernetes with
// a real KEDA. Each story has a namespace, a GPU node and a workload of its own,
// and all share one cluster. A new story is one more file.
package scenarios

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpuscaler/deploy/e2e/binaries"
	"gpuscaler/deploy/e2e/cluster"
)

var (
	repo = func() string {
		path, err := filepath.Abs("../../..")
		if err != nil {
			panic(err)
		}
		return path
	}()
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
		Binaries: set, Product: product, Dir: filepath.Join(work, "b"), DefaultPeriods: true, Progress: func(string) {},
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

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

// testMain runs all stories; the logs of a run that fails are kept.
func testMain(m *testing.M) int {
	ctx := context.Background()
	var err error
	if work, err = os.MkdirTemp("", "gpus-e2e-"); err != nil {
		return failed(err)
	}
	if err := prepare(ctx); err != nil {
		return failed(err)
	}
	code, err := inCluster(ctx, m.Run)
	if err != nil || code != 0 {
		return failed(err)
	}
	if err := os.RemoveAll(work); err != nil {
		return failed(err)
	}
	return 0
}

// prepare builds everything.
func prepare(ctx context.Context) (err error) {
	if set, err = binaries.Build(ctx, binaries.Options{Source: "..", Progress: progress}); err != nil {
		return err
	}
	progress("building the product")
	product = filepath.Join(work, "bin")
	return binaries.Product(ctx, repo, product)
}

// inCluster runs the stories in the shared cluster, which ends with them.
func inCluster(ctx context.Context, run func() int) (code int, err error) {
	shared, err = cluster.Start(ctx, cluster.Options{Binaries: set, Product: product, Dir: filepath.Join(work, "a"), Progress: progress})
	if err != nil {
		return 1, err
	}
	running = append(running, shared)
	defer func() {
		for _, c := range running {
			err = errors.Join(err, c.Stop())
		}
	}()
	return run(), nil
}

func failed(err error) int {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	fmt.Fprintln(os.Stderr, "logs are in", filepath.Join(work, "*", "logs"))
	return 1
}

var began = time.Now()

func progress(line string) {
	fmt.Fprintf(os.Stderr, "%6s  %s\n", time.Since(began).Round(time.Second), line)
}
