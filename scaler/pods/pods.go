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

	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/kubernetes"
	"gpuscaler/scaler/pod"
)

// Sink takes all pods of the node.
type Sink interface {
	SetPods(all []fleet.Pod, now time.Time)
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

// tell hands over the pods that count. One that has been seen ready was.
func (w *Watch) tell(objects []any) {
	var all, changed []fleet.Pod
	told := make(map[string]fleet.Pod)
	for _, object := range objects {
		o := object.(*corev1.Pod)
		if pod.Ended(o) {
			continue
		}
		p := pod.Describe(o)
		before, known := w.told[p.UID]
		p.WasReady = p.WasReady || before.WasReady
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
	w.sink.SetPods(all, time.Now())
	if len(changed) > 0 {
		w.listener.PodsChanged(changed)
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
		Spec:   corev1.PodSpec{NodeName: p.Spec.NodeName},
		Status: corev1.PodStatus{Phase: p.Status.Phase, StartTime: p.Status.StartTime},
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
