// Package pods watches the pods of one node. It must not know what they hold.
package pods

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/rest"

	"gpuscaler/scaler/attribution"
	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/kubernetes"
	"gpuscaler/scaler/pod"
)

// Sink takes all pods of the node that have not ended, and the names of those that
// have.
type Sink interface {
	SetPods(all []fleet.Pod, now time.Time, ended ...attribution.Pod)
}

// Listener is told which pods came, went or changed their readiness, after the
// sink. It must not wait.
type Listener interface {
	PodsChanged(changed []fleet.Pod)
}

// Watch watches the pods of one node.
type Watch struct {
	client   rest.Interface
	node     string
	sink     Sink
	listener Listener
	log      *slog.Logger
	// told are the pods of before. Of Run alone.
	told map[string]fleet.Pod
}

// New prepares to watch the pods of a node. It asks nothing of the API server.
func New(config *rest.Config, node string, sink Sink, listener Listener, log *slog.Logger) (*Watch, error) {
	client, err := kubernetes.Core(config)
	if err != nil {
		return nil, fmt.Errorf("pods: %w", err)
	}
	return &Watch{client: client, node: node, sink: sink, listener: listener, log: log}, nil
}

// Run watches until ctx is done. While the API server cannot be reached it goes
// on trying, and what was told last stays.
func (w *Watch) Run(ctx context.Context) error {
	first := true
	kubernetes.Watch{
		Client: w.client, Resource: "pods", Type: &corev1.Pod{}, Strip: strip,
		Select: func(o *metav1.ListOptions) {
			o.FieldSelector = fields.OneTermEqualSelector("spec.nodeName", w.node).String()
		},
	}.Run(ctx, func(all []any) {
		if first {
			w.log.Info("the node's pods are known", "pods", len(all))
			first = false
		}
		w.tell(all)
	})
	return nil
}

// tell hands over the pods that count, and the names of those that have ended.
func (w *Watch) tell(objects []any) {
	now := time.Now()
	var all, changed []fleet.Pod
	var ended []attribution.Pod
	told := make(map[string]fleet.Pod)
	for _, object := range objects {
		o := object.(*corev1.Pod)
		if pod.Ended(o) {
			ended = append(ended, attribution.Pod{Namespace: o.Namespace, Name: o.Name})
			continue
		}
		p := pod.Describe(o)
		before, known := w.told[p.UID]
		remember(&p, before, now)
		if !known || before.Ready != p.Ready || before.Terminating != p.Terminating {
			changed = append(changed, p)
		}
		told[p.UID] = p
		all = append(all, p)
	}
	for uid, before := range w.told {
		if _, still := told[uid]; !still {
			changed = append(changed, before)
		}
	}
	w.told = told
	w.sink.SetPods(all, now, ended...)
	if len(changed) > 0 {
		w.listener.PodsChanged(changed)
	}
}

// remember adds to a pod what the watch has seen of it before: the API has but the
// last change of its readiness. before is zero if it has seen nothing.
func remember(p *fleet.Pod, before fleet.Pod, now time.Time) {
	p.WasReady = p.WasReady || before.WasReady
	if first := before.FirstReady; !first.IsZero() && (p.FirstReady.IsZero() || first.Before(p.FirstReady)) {
		p.FirstReady = first
	}
	if p.Seen = before.Seen; p.Seen == 0 {
		p.Seen = now.Unix()
	}
}

// strip keeps what tell looks at: the cache is to stay small whatever is in a pod.
func strip(object any) any {
	p, ok := object.(*corev1.Pod)
	if !ok {
		return object
	}
	small := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: p.Name, Namespace: p.Namespace, UID: p.UID, ResourceVersion: p.ResourceVersion,
			Labels: p.Labels, CreationTimestamp: p.CreationTimestamp, DeletionTimestamp: p.DeletionTimestamp,
		},
		Spec:   corev1.PodSpec{NodeName: p.Spec.NodeName, Containers: ports(p.Spec.Containers), InitContainers: ports(p.Spec.InitContainers)},
		Status: corev1.PodStatus{Phase: p.Status.Phase, StartTime: p.Status.StartTime, PodIP: p.Status.PodIP},
	}
	if owner := metav1.GetControllerOfNoCopy(p); owner != nil {
		small.OwnerReferences = []metav1.OwnerReference{{Kind: owner.Kind, Name: owner.Name, Controller: owner.Controller}}
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			small.Status.Conditions = []corev1.PodCondition{{Type: c.Type, Status: c.Status, LastTransitionTime: c.LastTransitionTime}}
		}
	}
	return small
}

// ports are the containers that declare any, with nothing else.
func ports(containers []corev1.Container) (all []corev1.Container) {
	for i := range containers {
		if c := &containers[i]; len(c.Ports) > 0 {
			all = append(all, corev1.Container{Name: c.Name, Ports: c.Ports, RestartPolicy: c.RestartPolicy})
		}
	}
	return all
}
