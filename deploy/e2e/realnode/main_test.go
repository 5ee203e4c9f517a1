package realnode

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"gpuscaler/deploy/e2e/binaries"
	"gpuscaler/deploy/e2e/namespaces"
)

// workVar tells the process inside where the one outside has built everything.
// Set by hand it is a folder of an earlier run, to build nothing.
const workVar = "GPUSCALER_REALNODE_WORK"

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	if os.Geteuid() == 0 && os.Getenv(workVar) == "" {
		work, err := build(context.Background())
		defer func() { _ = os.RemoveAll(work) }()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		if err := os.Setenv(workVar, work); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	code, err := namespaces.Run(m.Run)
	switch {
	case errors.Is(err, namespaces.ErrNotRoot):
		fmt.Println("skipped:", err)
		return 0
	case err != nil:
		fmt.Fprintln(os.Stderr, err)
	}
	return code
}

// build makes everything that the namespaces have no means to make.
func build(ctx context.Context) (work string, err error) {
	if err := Check(); err != nil {
		return "", err
	}
	if work, err = os.MkdirTemp("", "gpus-node-"); err != nil {
		return "", err
	}
	source, err := filepath.Abs("..")
	if err != nil {
		return work, err
	}
	repo := filepath.Dir(filepath.Dir(source))
	if err := Build(ctx, BuildOptions{Repo: repo, Source: source, To: filepath.Join(work, "parts"), Progress: progress}); err != nil {
		return work, err
	}
	_, err = binaries.Build(ctx, binaries.Options{Source: source, RealNode: true, Progress: progress})
	return work, err
}

var began = time.Now()

func progress(line string) {
	fmt.Fprintf(os.Stderr, "%6.1f s  %s\n", time.Since(began).Seconds(), line)
}
