package realnode

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"gpuscaler/deploy/e2e/cluster"
	"gpuscaler/deploy/e2e/process"
)

// The folders of containerd are its own defaults: the namespaces have empty
// ones there, in memory.
const (
	containerdState  = "/run/containerd"
	containerdSocket = containerdState + "/containerd.sock"
	// tasks has a folder for each container of Kubernetes.
	tasks = containerdState + "/io.containerd.runtime.v2.task/k8s.io"
)

// containerdConfig has the stand-in for NVIDIA's runtime, the folder of CNI
// plugins and that of their configuration. The plugins that are disabled look
// after folders outside the namespaces or are never used.
const containerdConfig = `version = 2
disabled_plugins = [
  "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + PauseImage + `"
  disable_apparmor = true
  # Root's rights may end before the right to lower a process's OOM score.
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "overlayfs"
  default_runtime_name = "runc"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
  SystemdCgroup = false
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nvidia]
  runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nvidia.options]
  SystemdCgroup = false
  BinaryName = %q
[plugins."io.containerd.grpc.v1.cri".cni]
  bin_dir = %q
  conf_dir = %q
`

// podNetwork is where pods have their addresses.
const podNetwork = "10.244.0.0/24"

// bridge joins the pods; the node is its gateway.
const bridge = "cni0"

const cniConfig = `{
  "cniVersion": "0.4.0",
  "name": "pods",
  "plugins": [{
    "type": "bridge", "bridge": "` + bridge + `", "isGateway": true, "hairpinMode": true,
    "ipam": {"type": "host-local", "ranges": [[{"subnet": "` + podNetwork + `"}]], "routes": [{"dst": "0.0.0.0/0"}]}
  }]
}
`

// startContainerd starts containerd and waits until it answers.
func (n *Node) startContainerd(ctx context.Context) error {
	config := n.file("containerd.toml")
	text := fmt.Appendf(nil, containerdConfig, filepath.Join(n.o.Parts, "nvidiaruntime"), cniFolder, n.file("cni"))
	if err := os.WriteFile(config, text, 0o644); err != nil {
		return err
	}
	if err := os.WriteFile(n.file("cni", "pods.conflist"), []byte(cniConfig), 0o644); err != nil {
		return err
	}
	path, err := exec.LookPath("containerd")
	if err != nil {
		return err
	}
	n.Containerd, err = n.processes.Start(process.Spec{Name: "containerd", Path: path, Args: []string{"--config=" + config}})
	if err != nil {
		return err
	}
	return cluster.Until(ctx, func(context.Context) error {
		c, err := net.DialTimeout("unix", containerdSocket, time.Second)
		if err != nil {
			return err
		}
		return c.Close()
	}, n.Containerd)
}

// importImage gives containerd an image under the name that its archive carries.
func (n *Node) importImage(ctx context.Context, archive string) error {
	return output(exec.CommandContext(ctx, "ctr", "--namespace=k8s.io", "images", "import", archive))
}
