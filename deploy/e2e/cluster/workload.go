package cluster

import (
	"context"
	"fmt"

	kedav1alpha1 "github.com/kedacore/keda/v2/apis/keda/v1alpha1"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Workload is a Deployment of one GPU a pod in a namespace of its own.
type Workload struct {
	Name, Namespace string
	c               *Cluster
}

// deployment has the workload's name, its node (empty: any fake one) and its
// replicas. No image is pulled: KWOK plays the pods.
const deployment = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s}
spec:
  replicas: %[3]d
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}}
    spec:
      nodeSelector: %[2]s
      tolerations: [{key: kwok.x-k8s.io/node, operator: Exists}]
      containers:
      - {name: engine, image: engine, resources: {limits: {nvidia.com/gpu: 1}}}
`

// AddWorkload creates a namespace with a Deployment, both of that name, on a
// node (empty: on any fake one).
func (c *Cluster) AddWorkload(ctx context.Context, name, node string, replicas int) (*Workload, error) {
	w := &Workload{Name: name, Namespace: name, c: c}
	if err := c.Client.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}); err != nil {
		return nil, err
	}
	selector := "{}"
	if node != "" {
		selector = "{kubernetes.io/hostname: " + node + "}"
	}
	return w, c.ApplyIn(ctx, name, fmt.Sprintf(deployment, name, selector, replicas))
}

// Apply applies manifests in the workload's namespace.
func (w *Workload) Apply(ctx context.Context, manifests string) error {
	return w.c.ApplyIn(ctx, w.Namespace, manifests)
}

// Replicas is how many the Deployment asks for and how many are ready.
func (w *Workload) Replicas(ctx context.Context) (wanted, ready int, err error) {
	d := &appsv1.Deployment{}
	if err := w.c.Client.Get(ctx, w.key(w.Name), d); err != nil {
		return 0, 0, err
	}
	return int(*d.Spec.Replicas), int(d.Status.ReadyReplicas), nil
}

// ScaledObject is the workload's ScaledObject, which has its name.
func (w *Workload) ScaledObject(ctx context.Context) (*kedav1alpha1.ScaledObject, error) {
	o := &kedav1alpha1.ScaledObject{}
	return o, w.c.Client.Get(ctx, w.key(w.Name), o)
}

// HPA is what KEDA made of the ScaledObject.
func (w *Workload) HPA(ctx context.Context) (*autoscalingv2.HorizontalPodAutoscaler, error) {
	h := &autoscalingv2.HorizontalPodAutoscaler{}
	return h, w.c.Client.Get(ctx, w.key("keda-hpa-"+w.Name), h)
}

// Events are the messages about the workload's ScaledObject and HPA, as
// "kubectl describe" shows them.
func (w *Workload) Events(ctx context.Context) ([]string, error) {
	list := &corev1.EventList{}
	if err := w.c.Client.List(ctx, list, client.InNamespace(w.Namespace)); err != nil {
		return nil, err
	}
	var messages []string
	for _, e := range list.Items {
		messages = append(messages, fmt.Sprintf("%s %s %s: %s", e.InvolvedObject.Kind, e.InvolvedObject.Name, e.Reason, e.Message))
	}
	return messages, nil
}

func (w *Workload) key(name string) client.ObjectKey {
	return client.ObjectKey{Namespace: w.Namespace, Name: name}
}
