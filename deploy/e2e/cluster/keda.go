package cluster

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"

	kedav1alpha1 "github.com/kedacore/keda/v2/apis/keda/v1alpha1"

	"gpuscaler/deploy/e2e/process"
)

// kedaObjects are what KEDA's own manifests have and these processes need.
// %s are the CA (base64) and the adapter's port.
const kedaObjects = `
apiVersion: v1
kind: Namespace
metadata: {name: keda}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: keda-external-metrics-reader}
rules: [{apiGroups: [external.metrics.k8s.io], resources: ["*"], verbs: ["*"]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: keda-hpa-controller-external-metrics}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: keda-external-metrics-reader}
subjects: [{kind: ServiceAccount, name: horizontal-pod-autoscaler, namespace: kube-system}]
---
# The adapter is a process on this host.
apiVersion: v1
kind: Service
metadata: {name: keda-metrics-apiserver, namespace: keda}
spec: {type: ExternalName, externalName: localhost, ports: [{port: %[2]s}]}
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1beta1.external.metrics.k8s.io}
spec:
  service: {name: keda-metrics-apiserver, namespace: keda, port: %[2]s}
  group: external.metrics.k8s.io
  version: v1beta1
  groupPriorityMinimum: 100
  versionPriority: 100
  caBundle: %[1]s
`

// startKEDA starts KEDA's operator and metrics adapter and waits until the HPA
// can ask for external metrics.
func (c *Cluster) startKEDA(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	ports, err := freeEndpoints(5)
	if err != nil {
		return err
	}
	operatorMetrics, probes, service, adapter, adapterMetrics := ports[0], ports[1], ports[2], ports[3], ports[4]
	if err := c.applyKEDA(ctx, adapter); err != nil {
		return err
	}
	certs, err := c.kedaCertificates()
	if err != nil {
		return err
	}
	if err := c.writeKubeconfig("keda", "keda"); err != nil {
		return err
	}
	config := c.file("keda.kubeconfig")
	env := []string{"POD_NAMESPACE=keda", "KEDA_CLUSTER_OBJECT_NAMESPACE=keda", "WATCH_NAMESPACE="}
	operator, err := c.start(process.Spec{
		Name: "keda-operator", Path: c.o.Binaries.Path("cluster", "operator"), Env: env, Args: []string{
			"--kubeconfig=" + config, "--cert-dir=" + certs, "--metrics-bind-address=" + operatorMetrics.String(),
			"--health-probe-bind-address=" + probes.String(), "--metrics-service-bind-address=" + service.String(),
			"--kube-api-qps=200", "--kube-api-burst=400", "--zap-log-level=debug", "--zap-time-encoding=rfc3339nano",
		},
	})
	if err != nil {
		return err
	}
	metrics, err := c.start(process.Spec{
		Name: "keda-adapter", Path: c.o.Binaries.Path("cluster", "adapter"), Env: env, Args: []string{
			"--kubeconfig=" + config, "--lister-kubeconfig=" + config,
			"--authentication-kubeconfig=" + config, "--authorization-kubeconfig=" + config,
			"--bind-address=127.0.0.1", "--secure-port=" + adapter.port, "--port=" + adapterMetrics.port, "--cert-dir=" + certs,
			"--tls-cert-file=" + c.file("pki", "keda.crt"), "--tls-private-key-file=" + c.file("pki", "keda.key"),
			"--client-ca-file=" + c.file("pki", "ca.crt"), "--metrics-service-address=localhost:" + service.port,
		},
	})
	if err != nil {
		return err
	}
	return Until(ctx, func(ctx context.Context) error {
		return errors.Join(
			answers(ctx, http.DefaultClient, "http://"+probes.String()+"/readyz"),
			c.get(ctx, "/apis/external.metrics.k8s.io/v1beta1"))
	}, operator, metrics)
}

// applyKEDA creates KEDA's types and waits until the API server serves them.
func (c *Cluster) applyKEDA(ctx context.Context, adapter endpoint) error {
	if err := c.applyData(ctx, "cluster", "keda"); err != nil {
		return err
	}
	if err := c.Apply(ctx, fmt.Sprintf(kedaObjects, base64PEM(c.ca.PEM), adapter.port)); err != nil {
		return err
	}
	return Until(ctx, func(ctx context.Context) error {
		return c.Client.List(ctx, &kedav1alpha1.ScaledObjectList{})
	})
}

// kedaCertificates is the folder that operator and adapter trust each other by.
func (c *Cluster) kedaCertificates() (string, error) {
	dir := c.file("pki", "keda")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	for from, to := range map[string]string{"ca.crt": "ca.crt", "keda.crt": "tls.crt", "keda.key": "tls.key"} {
		text, err := os.ReadFile(c.file("pki", from))
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(c.file("pki", "keda", to), text, 0o600); err != nil {
			return "", err
		}
	}
	return dir, nil
}
