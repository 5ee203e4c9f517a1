// Package cluster runs a real Kubernetes and a real KEDA as plain processes,
// with GPU nodes that have no GPU: KWOK nodes with the real sidecar on the fake
// driver and the real scaler, and one real node with a kubelet and containers.
// It must not know what is tested on it.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gpuscaler/deploy/e2e/binaries"
	"gpuscaler/deploy/e2e/pki"
	"gpuscaler/deploy/e2e/process"
)

// Options say what the cluster is made of.
type Options struct {
	Binaries *binaries.Set
	// Product is the folder with scaler, nvmlsidecar and the fake driver.
	Product string
	// Deploy is the repository's folder deploy: the scalers of GPU nodes have the
	// rights of its manifests and no others.
	Deploy string
	// Dir is where the cluster keeps its data and logs. It must be short: Unix
	// sockets are in it.
	Dir string
	// DefaultPeriods leaves the HPA's periods as a user finds them: it looks every
	// 15 s and waits 5 minutes before it scales down. Else it is 1 s and 3 s.
	DefaultPeriods bool
	// NodeIP is the address that a real node and its pods reach the API server at;
	// it must be of a network namespace of our own. Empty: loopback only.
	NodeIP string
	// Progress is told what is going on.
	Progress func(string)
}

// Cluster is a running cluster.
type Cluster struct {
	// Client may do everything.
	Client client.Client
	// Kubeconfig is a file for kubectl, with the same rights.
	Kubeconfig string
	// Usage says what pods use of a CPU.
	Usage *Usage

	o         Options
	processes *process.Group
	own       []*process.Process // of the cluster; not those of nodes, which tests end
	api, etcd endpoint
	ca        *pki.CA // of the API server, its clients and KEDA
	scalers   string  // kubeconfig of GPU nodes' scalers
	rest      *rest.Config
	web       *http.Client // of the API server
	// watched reads from a watch, what is some milliseconds old; unwatch ends it.
	watched client.Reader
	unwatch func() error
}

// Start brings a cluster up; it takes some ten seconds. When it fails nothing
// is left but the logs.
func Start(ctx context.Context, o Options) (_ *Cluster, err error) {
	c := &Cluster{o: o, processes: process.NewGroup(filepath.Join(o.Dir, "logs"))}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.Stop())
		}
	}()
	for _, dir := range []string{"logs", "pki", "etcd", "nodes"} {
		if err := os.MkdirAll(filepath.Join(o.Dir, dir), 0o755); err != nil {
			return nil, err
		}
	}
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"Kubernetes", c.startControlPlane},
		{"fake nodes", c.startKWOK},
		{"resource metrics", c.startUsage},
		{"KEDA", c.startKEDA},
		{"gpuscaler's rights", c.allowScalers},
	} {
		started := time.Now()
		if err := step.do(ctx); err != nil {
			return nil, fmt.Errorf("starting %s: %w", step.name, err)
		}
		if err := c.Ended(); err != nil {
			return nil, err
		}
		o.Progress(fmt.Sprintf("started %s in %s", step.name, time.Since(started).Round(100*time.Millisecond)))
	}
	return c, nil
}

// start starts a program that the cluster cannot do without.
func (c *Cluster) start(s process.Spec) (*process.Process, error) {
	p, err := c.processes.Start(s)
	if err == nil {
		c.own = append(c.own, p)
	}
	return p, err
}

// Ended is an error when a program that the cluster cannot do without has ended:
// nothing that is waited for will come.
func (c *Cluster) Ended() error {
	var errs []error
	for _, p := range c.own {
		errs = append(errs, p.Ended())
	}
	return errors.Join(errs...)
}

// Stop ends everything that was started, in reverse order.
func (c *Cluster) Stop() error {
	var err error
	if c.unwatch != nil {
		err = c.unwatch()
	}
	return errors.Join(err, c.processes.Stop(), c.Usage.stop())
}

// Logs is the folder of the logs.
func (c *Cluster) Logs() string { return filepath.Join(c.o.Dir, "logs") }

// Processes is where further programs of the cluster may be started.
func (c *Cluster) Processes() *process.Group { return c.processes }

// file is a path in the cluster's folder.
func (c *Cluster) file(path ...string) string {
	return filepath.Join(append([]string{c.o.Dir}, path...)...)
}

// Until repeats check until it succeeds. When ctx ends first, or one of the
// programs that it depends on ends, the error says what was wrong last.
func Until(ctx context.Context, check func(context.Context) error, needs ...*process.Process) error {
	for {
		last := check(ctx)
		if last == nil {
			return nil
		}
		for _, p := range needs {
			if err := p.Ended(); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), last)
		case <-time.After(100 * time.Millisecond):
		}
	}
}
