package realnode

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"gpuscaler/deploy/e2e/namespaces"
	"gpuscaler/deploy/e2e/process"
)

// kubeletConfig has the node's address, its folder and its cgroup. What is
// switched off is either another machine's business (tunables, chains of
// iptables, OOM scores) or would make tests depend on this one's free space.
const kubeletConfig = `
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: %[1]s
readOnlyPort: 0
healthzPort: 0
tlsCertFile: %[2]s.crt
tlsPrivateKeyFile: %[2]s.key
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: false}
  x509: {clientCAFile: %[3]s}
authorization: {mode: AlwaysAllow}
containerRuntimeEndpoint: unix://` + containerdSocket + `
cgroupDriver: cgroupfs
cgroupRoot: /%[4]s
failCgroupV1: false
enforceNodeAllocatable: [pods]
evictionHard: {memory.available: 0%%, nodefs.available: 0%%, nodefs.inodesFree: 0%%, imagefs.available: 0%%, imagefs.inodesFree: 0%%}
imageGCHighThresholdPercent: 100
oomScoreAdj: 0
makeIPTablesUtilChains: false
failSwapOn: false
resolvConf: ""
podLogsDir: %[5]s/logs/pods
volumePluginDir: %[5]s/flexvolume
nodeStatusUpdateFrequency: 1s
nodeStatusReportFrequency: 1s
registerWithTaints:
- {key: nvidia.com/gpu, value: present, effect: NoSchedule}
`

// kubeletRoot is the kubelet's folder.
const kubeletRoot = "/var/lib/kubelet"

// mountKubeletRoot gives the kubelet a file system of its own. It looks once, at
// its start, for how much room its folder has, and cAdvisor answers for
// whichever mount of the same file system a map yields first. While containerd
// reads an image in, that may be one that is gone a moment later: the node then
// offers no ephemeral storage for as long as the kubelet runs.
func (n *Node) mountKubeletRoot(context.Context) error {
	if err := os.MkdirAll(kubeletRoot, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("tmpfs", kubeletRoot, "tmpfs", 0, "mode=755"); err != nil {
		return fmt.Errorf("mounting the kubelet's folder: %w", err)
	}
	return nil
}

// startKubelet starts the kubelet, which registers the node with the label and
// the taint that GPU nodes have.
func (n *Node) startKubelet() (err error) {
	kubeconfig, err := n.o.Cluster.Identity(n.Name, "system:node:"+n.Name, []string{"system:nodes"}, []string{namespaces.NodeIP, n.Name})
	if err != nil {
		return err
	}
	pki := filepath.Join(filepath.Dir(kubeconfig), "pki")
	config := n.file("kubelet.yaml")
	text := fmt.Appendf(nil, kubeletConfig, namespaces.NodeIP, filepath.Join(pki, n.Name), filepath.Join(pki, "ca.crt"), namespaces.Cgroup(), n.o.Dir)
	if err := os.WriteFile(config, text, 0o644); err != nil {
		return err
	}
	n.Kubelet, err = n.processes.Start(process.Spec{
		Name: "kubelet", Path: n.o.Binaries.Path("kubelet", "kubelet"), Args: []string{
			"--config=" + config, "--kubeconfig=" + kubeconfig, "--node-ip=" + namespaces.NodeIP,
			"--hostname-override=" + n.Name, "--node-labels=nvidia.com/gpu.present=true",
		},
	})
	return err
}

// proxyConfig has the kubeconfig and the node's name. All traffic to Services
// is masqueraded, because answers between two pods of the bridge would not
// come by otherwise. The limits of conntrack are the machine's.
const proxyConfig = `
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
clientConnection: {kubeconfig: %s}
hostnameOverride: %s
clusterCIDR: ` + podNetwork + `
bindAddress: ` + namespaces.NodeIP + `
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
iptables: {masqueradeAll: true, minSyncPeriod: 100ms}
conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
`

// startProxy starts what makes the addresses of Services work.
func (n *Node) startProxy() error {
	kubeconfig, err := n.o.Cluster.Identity("kube-proxy", "system:kube-proxy", nil, nil)
	if err != nil {
		return err
	}
	config := n.file("kube-proxy.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, proxyConfig, kubeconfig, n.Name), 0o644); err != nil {
		return err
	}
	n.Proxy, err = n.processes.Start(process.Spec{
		Name: "kube-proxy", Path: n.o.Binaries.Path("cluster", "kube-proxy"), Args: []string{"--config=" + config},
	})
	return err
}
