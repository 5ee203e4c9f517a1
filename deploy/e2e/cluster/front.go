package cluster

import (
	"path/filepath"
	"strings"

	"gpuscaler/deploy/e2e/process"
)

// Front is a scaler with no node of its own, which answers for its peers'.
type Front struct {
	Name, Address string
	Scaler        *process.Process
	c             *Cluster
	flags         []string
}

// StartFront starts a front that listens for KEDA on address.
func (c *Cluster) StartFront(name, address string, peers []string, flags ...string) (*Front, error) {
	f := &Front{Name: name, Address: address, c: c, flags: append([]string{
		"serve", "--nvml-socket=", "--listen=" + address, "--http=", "--node-name=" + name, "--log-level=debug",
		"--kubeconfig=" + c.scalers, "--peers=" + strings.Join(peers, ","),
	}, flags...)}
	return f, f.Start()
}

// Start starts it again.
func (f *Front) Start() (err error) {
	f.Scaler, err = f.c.processes.Start(process.Spec{Name: f.Name, Path: filepath.Join(f.c.o.Product, "scaler"), Args: f.flags})
	return err
}
