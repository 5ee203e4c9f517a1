// Package realnode adds a real node to a cluster: kubelet, containerd with
// runc, kube-proxy, a device plugin and NVIDIA's container runtime, the last two
// our own stand-ins, and the fake driver as the node's. It runs in the
// namespaces of package namespaces only. It must not know what pods run on it.
package realnode

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gpuscaler/deploy/e2e/binaries"
	"gpuscaler/deploy/e2e/cluster"
	"gpuscaler/deploy/e2e/namespaces"
	"gpuscaler/deploy/e2e/process"
	"gpuscaler/deploy/e2e/realnode/driver"
	"gpuscaler/nvmlsidecar/fakenvml"
	"gpuscaler/shared/fixture"
)

// startWithin is how long the node may take to become ready.
const startWithin = time.Minute

// runtimeClass is what NVIDIA's operator creates on every cluster.
const runtimeClass = `
apiVersion: node.k8s.io/v1
kind: RuntimeClass
metadata: {name: nvidia}
handler: nvidia
`

// Options say what the node has.
type Options struct {
	Cluster  *cluster.Cluster
	Binaries *binaries.Set
	// Product is the folder with the fake driver; Parts is what Build filled.
	Product, Parts string
	// Dir is where the node keeps its configuration and logs.
	Dir string
	// Name is the node's; empty is gpu-real.
	Name string
	// Fixture is the recording that the driver plays; its GPUs are what the
	// node offers.
	Fixture string
	// Progress is told what is going on.
	Progress func(string)
}

// Node is a running node.
type Node struct {
	Name string
	// Containerd, Kubelet, Proxy and Plugin are the running programs.
	Containerd, Kubelet, Proxy, Plugin *process.Process
	// GPUs are the ids of what the node offers.
	GPUs []string

	o         Options
	processes *process.Group
}

// Start brings the node up and waits until it is ready and offers its GPUs.
// When it fails nothing is left but the logs. Only one node can be up at a time.
func Start(ctx context.Context, o Options) (_ *Node, err error) {
	if !namespaces.Inside() {
		return nil, errors.New("a real node has to be started inside namespaces.Run")
	}
	if err := Check(); err != nil {
		return nil, err
	}
	if o.Name == "" {
		o.Name = "gpu-real"
	}
	n := &Node{Name: o.Name, o: o, processes: process.NewGroup(filepath.Join(o.Dir, "logs"))}
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("node %s: %w", o.Name, err), n.Stop())
		}
	}()
	for _, dir := range []string{"logs", "logs/pods", "cni", "flexvolume"} {
		if err := os.MkdirAll(n.file(dir), 0o755); err != nil {
			return nil, err
		}
	}
	started := time.Now()
	for _, step := range []func(context.Context) error{
		n.installDriver, n.mountKubeletRoot, n.startContainerd, n.startKubernetes, n.waitReady,
	} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	o.Progress(fmt.Sprintf("node %s is up (%s)", n.Name, time.Since(started).Round(100*time.Millisecond)))
	return n, nil
}

// installDriver puts the fake driver where the node has its own.
func (n *Node) installDriver(context.Context) error {
	f, err := fixture.Load(n.o.Fixture)
	if err != nil {
		return err
	}
	for _, d := range f.At(0).Devices {
		if d.Parent == "" {
			n.GPUs = append(n.GPUs, d.ID)
		}
	}
	if err := os.MkdirAll(driver.Folder, 0o755); err != nil {
		return err
	}
	if err := copyFile(filepath.Join(n.o.Product, fakenvml.Name), driver.Library); err != nil {
		return err
	}
	return copyFile(n.o.Fixture, driver.Fixture)
}

// Driver controls the fake driver: load and faults, in the words of
// [fakenvml.Control].
func (n *Node) Driver(lines ...string) error {
	beside := driver.Control + ".new"
	if err := fakenvml.NewControl(beside).Set(lines...); err != nil {
		return err
	}
	// Users in containers have to read it.
	if err := os.Chmod(beside, 0o644); err != nil {
		return err
	}
	return os.Rename(beside, driver.Control)
}

// startKubernetes starts the kubelet and what goes with it, while the images
// are read in.
func (n *Node) startKubernetes(ctx context.Context) error {
	var all errgroup.Group
	for _, image := range []string{"pause", "scaler", "nvmlsidecar"} {
		all.Go(func() error { return n.importImage(ctx, filepath.Join(n.o.Parts, image+".tar")) })
	}
	all.Go(func() error { return n.o.Cluster.Apply(ctx, runtimeClass) })
	all.Go(n.startKubelet)
	all.Go(n.startProxy)
	all.Go(n.startPlugin)
	return all.Wait()
}

// startPlugin starts the device plugin; it waits for the kubelet by itself.
func (n *Node) startPlugin() (err error) {
	var args []string
	for _, id := range n.GPUs {
		args = append(args, "--id="+id)
	}
	n.Plugin, err = n.processes.Start(process.Spec{Name: "deviceplugin", Path: filepath.Join(n.o.Parts, "deviceplugin"), Args: args})
	return err
}

// waitReady waits until the node is ready and has its GPUs, by a report from
// now on.
func (n *Node) waitReady(ctx context.Context) error {
	started := time.Now()
	return cluster.Until(ctx, func(ctx context.Context) error {
		node := &corev1.Node{}
		if err := n.o.Cluster.Client.Get(ctx, client.ObjectKey{Name: n.Name}, node); err != nil {
			return err
		}
		i := slices.IndexFunc(node.Status.Conditions, func(c corev1.NodeCondition) bool { return c.Type == corev1.NodeReady })
		if i < 0 || node.Status.Conditions[i].LastHeartbeatTime.Before(&metav1.Time{Time: started}) {
			return errors.New("the kubelet has not reported yet")
		}
		if c := node.Status.Conditions[i]; c.Status != corev1.ConditionTrue {
			return fmt.Errorf("not ready: %s", c.Message)
		}
		gpus := node.Status.Allocatable[cluster.GPUResource]
		if gpus.Value() != int64(len(n.GPUs)) {
			return fmt.Errorf("it offers %d GPUs instead of %d", gpus.Value(), len(n.GPUs))
		}
		if disk := node.Status.Allocatable.StorageEphemeral(); disk.IsZero() { // no pod of ours could go there
			return fmt.Errorf("it offers no ephemeral storage: allocatable %v of %v", node.Status.Allocatable, node.Status.Capacity)
		}
		return nil
	}, n.Containerd, n.Kubelet, n.Proxy, n.Plugin)
}

// RestartKubelet ends the kubelet and starts it again; containers go on
// meanwhile. It returns when the node is ready and has its GPUs again.
func (n *Node) RestartKubelet(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	if err := n.Kubelet.Stop(); err != nil {
		return err
	}
	if err := n.startKubelet(); err != nil {
		return err
	}
	return n.waitReady(ctx)
}

// Logs is the folder of the logs, those of pods included.
func (n *Node) Logs() string { return n.file("logs") }

// file is a path in the node's folder.
func (n *Node) file(path ...string) string {
	return filepath.Join(append([]string{n.o.Dir}, path...)...)
}

// output runs a program to its end; what it wrote is in the error only.
func output(c *exec.Cmd) error {
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w\n%s", c.Args, err, out)
	}
	return nil
}

func copyFile(from, to string) error {
	text, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, text, 0o644)
}
