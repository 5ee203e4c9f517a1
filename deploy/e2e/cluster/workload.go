package cluster

import (
	"context"
	"errors"
	"fmt"

	kedav1alpha1 "github.com/kedacore/keda/v2/apis/keda/v1alpha1"
	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Workload is a Deployment or StatefulSet of one GPU a pod.
type Workload struct {
	Name, Namespace string
	// Kind is Deployment or StatefulSet.
	Kind string
	// Slow has its pods played by the node's Kubelet, which may take its time.
	Slow bool
	// Engine has an engine run in each of its pods: the flags of cmd/llmengine. Its pods are
	// ready when it answers.
	Engine string
	// Claims has its pods ask for their GPUs by resource claims (DRA); the node has
	// to have published its devices.
	Claims bool
	// Monitors has its pods have all GPUs of their node by such claims, for administrative
	// access: they are monitors.
	Monitors bool
	// Selector is that of the nodes where its pods may be, in the place of one
	// node's name.
	Selector map[string]string
	c        *Cluster
}

// manifest has the workload's name, the selector of its node, its replicas, its
// kind, the annotations of its pods, and how the container and the pod ask for a
// GPU. No image is pulled: KWOK plays the pods.
const manifest = `
apiVersion: apps/v1
kind: %[4]s
metadata: {name: %[1]s}
spec:
  replicas: %[3]d
  selector: {matchLabels: {app: %[1]s}}
  template:
    metadata: {labels: {app: %[1]s}, annotations: {%[5]s}}
    spec:
      nodeSelector: %[2]s
      tolerations: [{key: kwok.x-k8s.io/node, operator: Exists}]
      containers:
      - {name: engine, image: engine, resources: %[6]s}
%[7]s`

// evenly has the pods of a workload spread over its nodes.
const evenly = "      topologySpreadConstraints: [{maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: %s}}}]\n"

// How pods ask for their GPU: of the device plugin, or by a claim of their own.
const (
	limits = "{limits: {nvidia.com/gpu: 1}}"
	claims = "{claims: [{name: gpu}]}"
	claim  = "      resourceClaims: [{name: gpu, resourceClaimTemplateName: gpu}]\n"
)

// AddWorkload creates a namespace with a Deployment, both of that name, on a
// node (empty: on any fake one); options change what it is before.
func (c *Cluster) AddWorkload(ctx context.Context, name, node string, replicas int, options ...func(*Workload)) (*Workload, error) {
	w := c.Workload(name, name)
	for _, option := range options {
		option(w)
	}
	if err := c.Client.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: w.labels()}}); err != nil {
		return nil, err
	}
	return w, w.Deploy(ctx, node, replicas)
}

// Workload is a Deployment of a namespace that is there already; Deploy creates it.
func (c *Cluster) Workload(namespace, name string) *Workload {
	return &Workload{Name: name, Namespace: namespace, Kind: "Deployment", c: c}
}

// Named is another workload in the same namespace.
func (w *Workload) Named(name string) *Workload {
	return &Workload{Name: name, Namespace: w.Namespace, Kind: w.Kind, c: w.c}
}

// Deploy creates the workload on a node (empty: on any fake one).
func (w *Workload) Deploy(ctx context.Context, node string, replicas int) error {
	selector := "{}"
	if node != "" {
		selector = "{kubernetes.io/hostname: " + node + "}"
	}
	annotations := ""
	if w.Slow {
		annotations = kwokCustom + ": custom"
	}
	resources, more := limits, ""
	if w.Engine != "" {
		annotations = fmt.Sprintf("%s: custom, %s: %q", kwokCustom, engineMark, w.Engine)
		resources += fmt.Sprintf(", ports: [{name: http, containerPort: %d}]", EnginePort)
	}
	for key, value := range w.Selector {
		selector = "{" + key + ": " + value + "}"
		more = fmt.Sprintf(evenly, w.Name)
	}
	if w.Claims {
		resources, more = claims, more+claim
		if err := w.Apply(ctx, w.claimTemplate()); err != nil {
			return err
		}
	}
	return w.Apply(ctx, fmt.Sprintf(manifest, w.Name, selector, replicas, w.Kind, annotations, resources, more))
}

// Retire has nothing scale the workload any more. What is left of a story would go on
// being asked for every second, by KEDA and the HPA, until the cluster ends.
func (w *Workload) Retire(ctx context.Context) error {
	return errors.Join(
		w.c.Client.DeleteAllOf(ctx, &kedav1alpha1.ScaledObject{}, client.InNamespace(w.Namespace)),
		w.c.Client.DeleteAllOf(ctx, &autoscalingv2.HorizontalPodAutoscaler{}, client.InNamespace(w.Namespace)),
	)
}

// PlayedPod creates a pod that is said to be ready at an address: the caller runs what is in
// it. It has no readiness of its own.
func (c *Cluster) PlayedPod(ctx context.Context, pod *corev1.Pod, ip string) error {
	metav1.SetMetaDataAnnotation(&pod.ObjectMeta, kwokCustom, "custom")
	metav1.SetMetaDataAnnotation(&pod.ObjectMeta, playedMark, "elsewhere")
	if err := c.Client.Create(ctx, pod); err != nil {
		return err
	}
	now := metav1.Now()
	pod.Status.Phase, pod.Status.StartTime, pod.Status.PodIP, pod.Status.PodIPs = corev1.PodRunning, &now, ip, []corev1.PodIP{{IP: ip}}
	setReady(pod, corev1.ConditionTrue, now)
	return c.Client.Status().Update(ctx, pod)
}

// Scale sets the replicas, as "kubectl scale" does.
func (w *Workload) Scale(ctx context.Context, replicas int) error {
	scale := &autoscalingv1.Scale{Spec: autoscalingv1.ScaleSpec{Replicas: int32(replicas)}}
	return w.c.Client.SubResource("scale").Update(ctx, w.object(), client.WithSubResourceBody(scale))
}

// Apply applies manifests in the workload's namespace.
func (w *Workload) Apply(ctx context.Context, manifests string) error {
	return w.c.ApplyIn(ctx, w.Namespace, manifests)
}

// Remove deletes what manifests have in the workload's namespace, or in none.
func (w *Workload) Remove(ctx context.Context, manifests string) error {
	objects, err := Objects(manifests)
	for _, o := range objects {
		if o.GetNamespace() == "" {
			o.SetNamespace(w.Namespace) // without meaning for what has none
		}
		err = errors.Join(err, w.c.Client.Delete(ctx, o))
	}
	return err
}

// Replicas is how many are asked for and how many are ready.
func (w *Workload) Replicas(ctx context.Context) (wanted, ready int, err error) {
	if w.Kind == "StatefulSet" {
		o := &appsv1.StatefulSet{}
		if err := w.c.watched.Get(ctx, w.key(w.Name), o); err != nil {
			return 0, 0, err
		}
		return int(*o.Spec.Replicas), int(o.Status.ReadyReplicas), nil
	}
	o := &appsv1.Deployment{}
	if err := w.c.watched.Get(ctx, w.key(w.Name), o); err != nil {
		return 0, 0, err
	}
	return int(*o.Spec.Replicas), int(o.Status.ReadyReplicas), nil
}

func (w *Workload) object() *unstructured.Unstructured {
	o := &unstructured.Unstructured{}
	o.SetAPIVersion("apps/v1")
	o.SetKind(w.Kind)
	o.SetNamespace(w.Namespace)
	o.SetName(w.Name)
	return o
}

// ScaledObject is the workload's ScaledObject, which has its name.
func (w *Workload) ScaledObject(ctx context.Context) (*kedav1alpha1.ScaledObject, error) {
	o := &kedav1alpha1.ScaledObject{}
	return o, w.c.watched.Get(ctx, w.key(w.Name), o)
}

// HPA is what KEDA made of the ScaledObject.
func (w *Workload) HPA(ctx context.Context) (*autoscalingv2.HorizontalPodAutoscaler, error) {
	h := &autoscalingv2.HorizontalPodAutoscaler{}
	return h, w.c.watched.Get(ctx, w.key("keda-hpa-"+w.Name), h)
}

// Annotate sets an annotation of the ScaledObject; an empty value removes it.
func (w *Workload) Annotate(ctx context.Context, key, value string) error {
	o := &kedav1alpha1.ScaledObject{}
	if err := w.c.Client.Get(ctx, w.key(w.Name), o); err != nil {
		return err
	}
	before := o.DeepCopy()
	if value == "" {
		delete(o.Annotations, key)
	} else {
		metav1.SetMetaDataAnnotation(&o.ObjectMeta, key, value)
	}
	return w.c.Client.Patch(ctx, o, client.MergeFrom(before))
}

// Described are the messages that "kubectl describe scaledobject" shows: the
// object's own events, known by its UID, and its conditions.
func (w *Workload) Described(ctx context.Context) ([]string, error) {
	o, err := w.ScaledObject(ctx)
	if err != nil {
		return nil, err
	}
	return w.messages(ctx, func(e *corev1.Event) bool { return e.InvolvedObject.UID == o.UID })
}

// Messages are the events of the namespace and the conditions of the
// ScaledObject.
func (w *Workload) Messages(ctx context.Context) ([]string, error) {
	return w.messages(ctx, func(*corev1.Event) bool { return true })
}

func (w *Workload) messages(ctx context.Context, of func(*corev1.Event) bool) ([]string, error) {
	list := &corev1.EventList{}
	if err := w.c.watched.List(ctx, list, client.InNamespace(w.Namespace)); err != nil {
		return nil, err
	}
	var messages []string
	for _, e := range list.Items {
		if !of(&e) {
			continue
		}
		messages = append(messages, fmt.Sprintf("%s %s: %s: %s", e.InvolvedObject.Kind, e.InvolvedObject.Name, e.Reason, e.Message))
	}
	o, err := w.ScaledObject(ctx)
	for _, c := range o.Status.Conditions {
		messages = append(messages, fmt.Sprintf("ScaledObject %s: %s=%s: %s: %s", o.Name, c.Type, c.Status, c.Reason, c.Message))
	}
	return messages, err
}

func (w *Workload) key(name string) client.ObjectKey {
	return client.ObjectKey{Namespace: w.Namespace, Name: name}
}
