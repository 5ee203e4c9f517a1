package cluster

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"gpuscaler/deploy/e2e/pki"
	"gpuscaler/deploy/e2e/process"
)

// clusterIPs is where Services have their addresses.
const (
	clusterIPs  = "10.96.0.0/16"
	firstIP     = "10.96.0.1" // the API server's own Service
	masters     = "system:masters"
	startWithin = time.Minute
)

// startControlPlane starts etcd, the API server, the controllers and the
// scheduler, and waits for the API server.
func (c *Cluster) startControlPlane(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	ports, err := freeEndpoints(5)
	if err != nil {
		return err
	}
	etcd, etcdPeer, controllers, scheduler := ports[0], ports[1], ports[2], ports[3]
	c.api, c.etcd = ports[4], etcd
	if err := c.makeCertificates(); err != nil {
		return err
	}
	if _, err := c.start(process.Spec{
		Name: "etcd", Path: c.o.Binaries.Path("cluster", "server"), Args: []string{
			"--name=e2e", "--data-dir=" + c.file("etcd"), "--unsafe-no-fsync",
			"--listen-client-urls=http://" + etcd.String(), "--advertise-client-urls=http://" + etcd.String(),
			"--listen-peer-urls=http://" + etcdPeer.String(), "--initial-advertise-peer-urls=http://" + etcdPeer.String(),
			"--initial-cluster=e2e=http://" + etcdPeer.String(), "--log-level=warn",
		},
	}); err != nil {
		return err
	}
	api, err := c.startAPIServer()
	if err != nil {
		return err
	}
	c.rest = &rest.Config{Host: "https://" + c.api.String(), QPS: -1}
	c.rest.CAFile, c.rest.CertFile, c.rest.KeyFile = c.file("pki", "ca.crt"), c.file("pki", "admin.crt"), c.file("pki", "admin.key")
	web, err := rest.HTTPClientFor(c.rest)
	if err != nil {
		return err
	}
	c.web = web
	if err := Until(ctx, func(ctx context.Context) error { return c.get(ctx, "/readyz") }, api); err != nil {
		return err
	}
	if err := c.newClients(); err != nil {
		return err
	}
	return c.startControllers(controllers, scheduler)
}

func (c *Cluster) startAPIServer() (*process.Process, error) {
	bind, advertise, reconciler := "127.0.0.1", "127.0.0.1", "none"
	if c.o.NodeIP != "" {
		bind, advertise, reconciler = "0.0.0.0", c.o.NodeIP, "lease"
	}
	return c.start(process.Spec{
		Name: "kube-apiserver", Path: c.o.Binaries.Path("cluster", "kube-apiserver"), Args: []string{
			"--etcd-servers=http://" + c.etcd.String(),
			"--bind-address=" + bind, "--secure-port=" + c.api.port, "--advertise-address=" + advertise,
			"--endpoint-reconciler-type=" + reconciler,
			"--tls-cert-file=" + c.file("pki", "apiserver.crt"), "--tls-private-key-file=" + c.file("pki", "apiserver.key"),
			"--client-ca-file=" + c.file("pki", "ca.crt"),
			"--service-account-issuer=https://kubernetes.default.svc",
			"--service-account-key-file=" + c.file("pki", "tokens.key"), "--service-account-signing-key-file=" + c.file("pki", "tokens.key"),
			"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
			"--requestheader-client-ca-file=" + c.file("pki", "ca.crt"), "--requestheader-allowed-names=front-proxy",
			"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
			"--requestheader-extra-headers-prefix=X-Remote-Extra-",
			"--proxy-client-cert-file=" + c.file("pki", "front-proxy.crt"), "--proxy-client-key-file=" + c.file("pki", "front-proxy.key"),
			"--service-cluster-ip-range=" + clusterIPs, "--allow-privileged",
			"--kubelet-client-certificate=" + c.file("pki", "admin.crt"), "--kubelet-client-key=" + c.file("pki", "admin.key"),
			"--kubelet-preferred-address-types=InternalIP", "--profiling=false",
		},
	})
}

// Outage takes the API server away while f runs.
func (c *Cluster) Outage(ctx context.Context, f func()) error {
	i := slices.IndexFunc(c.own, func(p *process.Process) bool { return p.Name == "kube-apiserver" })
	api := c.own[i]
	c.own = slices.Delete(c.own, i, i+1)
	api.Kill()
	f()
	api, err := c.startAPIServer()
	if err != nil {
		return err
	}
	return Until(ctx, func(ctx context.Context) error { return c.get(ctx, "/readyz") }, api)
}

// startControllers starts the parts of the control plane that use the API
// server as others do.
func (c *Cluster) startControllers(controllers, scheduler endpoint) error {
	identities := map[string]string{"admin": "admin", "controllers": "controllers", "scheduler": "scheduler"}
	for file, pair := range identities {
		if err := c.writeKubeconfig(file, pair); err != nil {
			return err
		}
	}
	c.Kubeconfig = c.file("admin.kubeconfig")
	periods := []string{"--horizontal-pod-autoscaler-sync-period=1s", "--horizontal-pod-autoscaler-downscale-stabilization=3s"}
	if c.o.DefaultPeriods {
		periods = nil
	}
	config := c.file("controllers.kubeconfig")
	if _, err := c.start(process.Spec{
		Name: "kube-controller-manager", Path: c.o.Binaries.Path("cluster", "kube-controller-manager"), Args: append([]string{
			"--kubeconfig=" + config, "--authentication-kubeconfig=" + config, "--authorization-kubeconfig=" + config,
			"--bind-address=127.0.0.1", "--secure-port=" + controllers.port, "--leader-elect=false", "--profiling=false",
			"--use-service-account-credentials", "--service-account-private-key-file=" + c.file("pki", "tokens.key"),
			"--root-ca-file=" + c.file("pki", "ca.crt"), "--flex-volume-plugin-dir=" + c.file("flexvolume"), "--kube-api-qps=200", "--kube-api-burst=400",
		}, periods...),
	}); err != nil {
		return err
	}
	config = c.file("scheduler.kubeconfig")
	_, err := c.start(process.Spec{
		Name: "kube-scheduler", Path: c.o.Binaries.Path("cluster", "kube-scheduler"), Args: []string{
			"--kubeconfig=" + config, "--authentication-kubeconfig=" + config, "--authorization-kubeconfig=" + config,
			"--bind-address=127.0.0.1", "--secure-port=" + scheduler.port, "--leader-elect=false", "--profiling=false",
		},
	})
	return err
}

// makeCertificates writes the certificates of everything in the cluster.
func (c *Cluster) makeCertificates() error {
	var err error
	if c.ca, err = pki.NewCA("gpuscaler-e2e"); err != nil {
		return err
	}
	if err := os.WriteFile(c.file("pki", "ca.crt"), c.ca.PEM, 0o644); err != nil {
		return err
	}
	hosts := []string{"127.0.0.1", "localhost", firstIP, "kubernetes", "kubernetes.default", "kubernetes.default.svc"}
	if c.o.NodeIP != "" {
		hosts = append(hosts, c.o.NodeIP)
	}
	for _, p := range []struct {
		file, name string
		groups     []string
		hosts      []string
	}{
		{"apiserver", "kube-apiserver", nil, hosts},
		{"admin", "admin", []string{masters}, nil},
		{"controllers", "system:kube-controller-manager", nil, nil},
		{"scheduler", "system:kube-scheduler", nil, nil},
		{"front-proxy", "front-proxy", nil, nil},
		{"keda", "keda-operator", []string{masters}, []string{"127.0.0.1", "localhost", "keda-metrics-apiserver.keda.svc"}},
	} {
		pair, err := c.ca.Sign(p.name, p.groups, p.hosts)
		if err != nil {
			return err
		}
		if err := pair.Write(c.file("pki"), p.file); err != nil {
			return err
		}
	}
	key, err := pki.NewKey()
	if err != nil {
		return err
	}
	return os.WriteFile(c.file("pki", "tokens.key"), key, 0o600)
}

// Identity makes a certificate pki/FILE and a FILE.kubeconfig for another user of the API
// server, and returns the kubeconfig's path. Hosts are for programs that serve as well.
func (c *Cluster) Identity(file, name string, groups, hosts []string) (string, error) {
	pair, err := c.ca.Sign(name, groups, hosts)
	if err != nil {
		return "", err
	}
	if err := pair.Write(c.file("pki"), file); err != nil {
		return "", err
	}
	return c.file(file + ".kubeconfig"), c.writeKubeconfig(file, file)
}

func (c *Cluster) writeKubeconfig(file, pair string) error {
	config := clientcmdapi.NewConfig()
	config.Clusters["e2e"] = &clientcmdapi.Cluster{Server: "https://" + c.api.String(), CertificateAuthority: c.file("pki", "ca.crt")}
	config.AuthInfos["e2e"] = &clientcmdapi.AuthInfo{
		ClientCertificate: c.file("pki", pair+".crt"), ClientKey: c.file("pki", pair+".key"),
	}
	config.Contexts["e2e"] = &clientcmdapi.Context{Cluster: "e2e", AuthInfo: "e2e"}
	config.CurrentContext = "e2e"
	if err := clientcmd.WriteToFile(*config, c.file(file+".kubeconfig")); err != nil {
		return fmt.Errorf("kubeconfig %s: %w", file, err)
	}
	return nil
}
