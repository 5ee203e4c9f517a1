package realnode

import (
	"context"
	"fmt"
	"os"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// NameService names a Service in /etc/hosts, as the cluster's DNS would if there
// were one, for programs of the cluster that are no pods: KEDA. The address is
// the Service's own, which kube-proxy makes work.
func (n *Node) NameService(ctx context.Context, namespace, name string) error {
	service := &corev1.Service{}
	if err := n.o.Cluster.Client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, service); err != nil {
		return err
	}
	// The file is mounted on its own: it can be written, and not replaced.
	f, err := os.OpenFile("/etc/hosts", os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	host := name + "." + namespace
	_, err = fmt.Fprintf(f, "%[1]s %[2]s.svc %[2]s.svc.cluster.local %[2]s\n", service.Spec.ClusterIP, host)
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return err
}
