package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gpuscaler/deploy/e2e/process"
	"gpuscaler/nvmlsidecar/fakenvml"
)

// GPUResource is what pods ask for.
const GPUResource = "nvidia.com/gpu"

// GPUNode is a KWOK node with the real sidecar on the fake driver and the real
// scaler, joined by the real socket.
type GPUNode struct {
	Name string
	// Address is KEDA's port of the scaler, as scalerAddress has it; HTTP is
	// where /healthz, /readyz and /state are.
	Address, HTTP string
	// Scaler and Sidecar are the running programs; nil while stopped. PodResources
	// is the reader of Kubelet: both only with GPUNodeOptions.Workloads.
	Scaler, Sidecar, PodResources *process.Process
	Kubelet                       *Kubelet

	c          *Cluster
	o          GPUNodeOptions
	dir        string
	kubeconfig string // of the scaler
	control    *fakenvml.Control
}

// GPUNodeOptions say what a node has.
type GPUNodeOptions struct {
	Name string
	// Fixture is the recording that the driver plays.
	Fixture string
	// GPUs is how many the node offers to the scheduler; 0 is 8.
	GPUs int
	// Speed is how fast the recording plays; 0 is 1.
	Speed float64
	// Interval is the sidecar's; 0 is its default, a second.
	Interval time.Duration
	// ScalerFlags are added to the scaler's.
	ScalerFlags []string
	// Workloads makes triggers about the workload's own GPUs, as the component
	// pod-resources does. The node then offers the devices that it has.
	Workloads bool
	// Shared is how many pods may share a device; 0 is 1.
	Shared int
	// User is who the scaler is to the API server; "" is the service account of
	// the manifests, with their rights.
	User string
	// Labels are further ones of the node.
	Labels map[string]string
	// Listen is where the scaler listens for KEDA; "" is a free port of 127.0.0.1.
	Listen string
	// Peers are the peer ports of all nodes that hear of each other, PeerListen is
	// this one's.
	Peers      []string
	PeerListen string
}

// allowScalers gives the scalers of GPU nodes the identity and the rights that
// they have in pods.
func (c *Cluster) allowScalers(ctx context.Context) (err error) {
	for _, folder := range []string{"base", filepath.Join("components", "pod-resources")} {
		rights, err := os.ReadFile(filepath.Join(c.o.Deploy, folder, "rbac.yaml"))
		if err != nil {
			return err
		}
		if err := c.Apply(ctx, string(rights)); err != nil {
			return err
		}
	}
	c.scalers, err = c.Identity("scaler", "system:serviceaccount:gpuscaler:gpuscaler", nil, nil)
	return err
}

// AddGPUNode adds a node and waits until its scaler has readings.
func (c *Cluster) AddGPUNode(ctx context.Context, o GPUNodeOptions) (*GPUNode, error) {
	ports, err := freeEndpoints(2)
	if err != nil {
		return nil, err
	}
	if o.GPUs == 0 {
		o.GPUs = 8
	}
	n := &GPUNode{Name: o.Name, Address: ports[0].String(), HTTP: ports[1].String(), c: c, o: o, dir: c.file("nodes", o.Name)}
	if o.Listen != "" {
		n.Address = o.Listen
	}
	n.control = fakenvml.NewControl(filepath.Join(n.dir, "control"))
	if err := os.MkdirAll(n.dir, 0o755); err != nil {
		return nil, err
	}
	n.kubeconfig = c.scalers
	if o.User != "" {
		if n.kubeconfig, err = c.Identity("scaler-"+o.Name, o.User, nil, nil); err != nil {
			return nil, err
		}
	}
	if err := n.StartScaler(); err != nil {
		return nil, err
	}
	if err := n.StartSidecar(); err != nil {
		return nil, err
	}
	if err := n.WaitReady(ctx); err != nil {
		return nil, err
	}
	gpus := o.GPUs
	if o.Workloads {
		var err error
		if gpus, err = n.startKubelet(ctx); err != nil {
			return nil, err
		}
	}
	// Without the labels of GPU nodes: what DaemonSets do there is played, and here it is real.
	return n, c.AddFakeNode(ctx, o.Name, gpus, o.Labels)
}

// startKubelet has the node's devices told of, and says how many there are.
func (n *GPUNode) startKubelet(ctx context.Context) (int, error) {
	ids, err := n.devices(ctx)
	if err != nil {
		return 0, err
	}
	n.Kubelet = newKubelet(n.c, n.Name, filepath.Join(n.dir, "kubelet", "kubelet.sock"), ids, n.control)
	if err := n.Kubelet.Start(); err != nil {
		return 0, err
	}
	return len(ids), n.StartPodResources()
}

// devices are the ids that a device plugin would give the node's devices: an
// instance is one, and so is a GPU that is in one piece.
func (n *GPUNode) devices(ctx context.Context) ([]string, error) {
	var state struct{ Devices []struct{ ID, Parent string } }
	if err := getJSON(ctx, "http://"+n.HTTP+"/state", &state); err != nil {
		return nil, err
	}
	cut := map[string]bool{}
	for _, d := range state.Devices {
		cut[d.Parent] = true
	}
	var ids []string
	for _, d := range state.Devices {
		switch {
		case cut[d.ID]:
		case n.o.Shared > 1:
			for i := range n.o.Shared {
				ids = append(ids, fmt.Sprintf("%s::%d", d.ID, i))
			}
		default:
			ids = append(ids, d.ID)
		}
	}
	return ids, nil
}

// StartPodResources starts the reader of the node's kubelet.
func (n *GPUNode) StartPodResources() (err error) {
	n.PodResources, err = n.c.processes.Start(process.Spec{
		Name: n.Name + "-podresources", Path: filepath.Join(n.c.o.Product, "scaler"), Args: []string{
			"podresources", "--socket=" + n.socket(), "--kubelet-socket=" + n.Kubelet.socket, "--interval=1s",
		},
	})
	return err
}

// AddFakeNode registers a node that KWOK plays.
func (c *Cluster) AddFakeNode(ctx context.Context, name string, gpus int, labels map[string]string) error {
	resources := corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("64"), corev1.ResourceMemory: resource.MustParse("512Gi"),
		corev1.ResourceEphemeralStorage: resource.MustParse("1Ti"), corev1.ResourcePods: resource.MustParse("110"),
		GPUResource: resource.MustParse(strconv.Itoa(gpus)),
	}
	node := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, Annotations: map[string]string{kwokMark: "fake"},
			Labels: map[string]string{corev1.LabelHostname: name, corev1.LabelOSStable: "linux", corev1.LabelArchStable: "amd64"},
		},
		Spec:   corev1.NodeSpec{Taints: []corev1.Taint{{Key: kwokMark, Value: "fake", Effect: corev1.TaintEffectNoSchedule}}},
		Status: corev1.NodeStatus{Capacity: resources, Allocatable: resources},
	}
	maps.Copy(node.Labels, labels)
	if err := c.Client.Create(ctx, node); err != nil {
		return fmt.Errorf("node %s: %w", name, err)
	}
	return nil
}

var workloads = map[bool]string{false: "off", true: "auto"}

// StartScaler starts the scaler on the node's ports.
func (n *GPUNode) StartScaler() (err error) {
	n.Scaler, err = n.c.processes.Start(process.Spec{
		Name: n.Name + "-scaler", Path: filepath.Join(n.c.o.Product, "scaler"), Args: append([]string{
			"serve", "--nvml-socket=" + n.socket(), "--listen=" + n.Address, "--http=" + n.HTTP, "--node-name=" + n.Name, "--log-level=debug",
			"--kubeconfig=" + n.kubeconfig, "--workloads=" + workloads[n.o.Workloads],
			"--peers=" + strings.Join(n.o.Peers, ","), "--peer-listen=" + n.o.PeerListen,
		}, n.o.ScalerFlags...),
	})
	return err
}

// StartSidecar starts the reader on the fake driver.
func (n *GPUNode) StartSidecar() (err error) {
	args := []string{"--socket=" + n.socket(), "--nvml-library=" + filepath.Join(n.c.o.Product, fakenvml.Name)}
	if n.o.Interval > 0 {
		args = append(args, "--interval="+n.o.Interval.String())
	}
	env := []string{"FAKENVML_FIXTURE=" + n.o.Fixture, "FAKENVML_CONTROL=" + n.control.Path()}
	if n.o.Speed > 0 {
		env = append(env, fmt.Sprintf("FAKENVML_SPEED=%g", n.o.Speed))
	}
	n.Sidecar, err = n.c.processes.Start(process.Spec{
		Name: n.Name + "-sidecar", Path: filepath.Join(n.c.o.Product, "nvmlsidecar"), Args: args, Env: env,
	})
	return err
}

// WaitReady waits until the scaler has fresh readings.
func (n *GPUNode) WaitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	return Until(ctx, func(ctx context.Context) error {
		return answers(ctx, http.DefaultClient, "http://"+n.HTTP+"/readyz")
	}, n.Scaler, n.Sidecar)
}

// Driver controls the fake driver: load and faults, in the words of
// [fakenvml.Control].
func (n *GPUNode) Driver(lines ...string) error { return n.control.Set(lines...) }

// Stop ends both programs. The KWOK node stays.
func (n *GPUNode) Stop() error {
	err := errors.Join(n.Sidecar.Stop(), n.Scaler.Stop())
	if n.Kubelet != nil {
		err = errors.Join(err, n.PodResources.Stop())
		n.Kubelet.Stop()
	}
	return err
}

func (n *GPUNode) socket() string { return filepath.Join(n.dir, "nvml.sock") }

func getJSON(ctx context.Context, url string, into any) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	return json.NewDecoder(response.Body).Decode(into)
}
