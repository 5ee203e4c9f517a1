// Command cluster is a real Kubernetes with KEDA and gpuscaler for a person to
// look at: three GPU nodes, and an LLM service with engines in its pods and a day of
// users, which scales on what waits in the engines. Ctrl-C removes everything.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/alecthomas/kong"

	"gpuscaler/deploy/e2e/binaries"
	"gpuscaler/deploy/e2e/cluster"
)

type flags struct {
	Repo string        `default:"../.." help:"Root of the repository."`
	For  time.Duration `env:"RUN_FOR" help:"End by itself after this time. 0: never."`
}

func main() {
	var f flags
	kong.Parse(&f, kong.Description("A real Kubernetes with KEDA, three GPU nodes without a GPU, and an LLM service that scales."))
	os.Exit(run(f))
}

func run(f flags) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := show(ctx, f); err != nil {
		fmt.Fprintln(os.Stderr, "cluster:", err)
		return 1
	}
	return 0
}

var began = time.Now()

// say tells how far it is, after how many seconds.
func say(line string) { fmt.Printf("%5.0f s  %s\n", time.Since(began).Seconds(), line) }

// show brings the cluster up and follows it until ctx is done, which is no
// error, whatever it interrupts.
func show(ctx context.Context, f flags) (err error) {
	dir, err := os.MkdirTemp("", "gpus-cluster-")
	if err != nil {
		return err
	}
	defer func() {
		if err == nil {
			err = os.RemoveAll(dir)
			return
		}
		fmt.Fprintln(os.Stderr, "logs are in", filepath.Join(dir, "logs"))
	}()
	c, s, err := bringUp(ctx, f.Repo, dir)
	if err == nil {
		err = follow(ctx, f.For, s)
	}
	if ctx.Err() != nil {
		err = nil
	}
	if c != nil {
		say("ending all processes")
		err = errors.Join(err, c.Stop())
	}
	return err
}

// bringUp builds and starts everything and says how to look at it. The cluster
// is not nil when it has to be stopped, even after an error.
func bringUp(ctx context.Context, repo, dir string) (*cluster.Cluster, *scene, error) {
	repo, err := filepath.Abs(repo)
	if err != nil {
		return nil, nil, err
	}
	set, err := binaries.Build(ctx, binaries.Options{Source: filepath.Join(repo, "deploy", "e2e"), Progress: say})
	if err != nil {
		return nil, nil, err
	}
	say("building gpuscaler")
	if err := binaries.Product(ctx, repo, filepath.Join(dir, "bin")); err != nil {
		return nil, nil, err
	}
	engine := exec.CommandContext(ctx, "go", "build", "-o", filepath.Join(dir, "bin", "llmengine"), "./cmd/llmengine")
	engine.Dir = filepath.Join(repo, "deploy", "e2e")
	if out, err := engine.CombinedOutput(); err != nil {
		return nil, nil, fmt.Errorf("building llmengine: %w\n%s", err, out)
	}
	c, err := cluster.Start(ctx, cluster.Options{
		Binaries: set, Product: filepath.Join(dir, "bin"), Deploy: filepath.Join(repo, "deploy"), Dir: dir, Progress: say,
	})
	if err != nil {
		return nil, nil, err
	}
	s, err := setScene(ctx, c, filepath.Join(repo, "testdata"))
	if err != nil {
		return c, nil, err
	}
	fmt.Printf("\n  export KUBECONFIG=%s\n  export PATH=%s:$PATH    # has kubectl\n  kubectl get scaledobject,hpa,pods -o wide\n  kubectl describe scaledobject llm\n"+
		"  %s load --url=http://%s --rate=12    # more users\n\nCtrl-C ends and removes it.\n\n",
		c.Kubeconfig, filepath.Dir(set.Path("cluster", "kubectl")), filepath.Join(dir, "bin", "llmengine"), s.service.Address)
	return c, s, nil
}

// follow follows the scene for a time, 0 for ever, or until ctx is done.
func follow(ctx context.Context, length time.Duration, s *scene) error {
	if length > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, length)
		defer cancel()
	}
	return s.follow(ctx)
}
