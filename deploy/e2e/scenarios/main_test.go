// Package scenarios tells what users see of gpuscaler on a real Kubernetes with
// a real KEDA. Each story has a namespace, a GPU node and a workload of its own,
// and all share one cluster. A new story is one more file.
package scenarios

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"gpuscaler/deploy/e2e/binaries"
	"gpuscaler/deploy/e2e/cluster"
)

var (
	shared  *cluster.Cluster
	product string
	repo    string
	set     *binaries.Set
)

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) (code int) {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "gpus-e2e-")
	if err != nil {
		return fail(err)
	}
	defer func() {
		if code == 0 {
			_ = os.RemoveAll(dir)
			return
		}
		fmt.Fprintln(os.Stderr, "logs are in", filepath.Join(dir, "*", "logs"))
	}()
	if repo, err = filepath.Abs("../../.."); err != nil {
		return fail(err)
	}
	product = filepath.Join(dir, "bin")
	if set, err = binaries.Build(ctx, binaries.Options{Source: "..", Progress: progress}); err != nil {
		return fail(err)
	}
	progress("building the product")
	if err := binaries.Product(ctx, repo, product); err != nil {
		return fail(err)
	}
	shared, err = cluster.Start(ctx, cluster.Options{Binaries: set, Product: product, Dir: filepath.Join(dir, "a"), Progress: progress})
	if err != nil {
		return fail(err)
	}
	defer func() {
		if err := shared.Stop(); err != nil {
			code = fail(err)
		}
	}()
	return m.Run()
}

func fail(err error) int {
	fmt.Fprintln(os.Stderr, err)
	return 1
}

var began = time.Now()

func progress(line string) {
	fmt.Fprintf(os.Stderr, "%6s  %s\n", time.Since(began).Round(time.Second), line)
}
