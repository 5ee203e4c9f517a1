package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	podresourcesv1 "k8s.io/kubelet/pkg/apis/podresources/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gpuscaler/nvmlsidecar/fakenvml"
)

// Kubelet is the part of a kubelet that KWOK does not play: it gives the node's
// devices to the pods that are bound to it (or looks up what the scheduler gave their claims), tells who has which by the
// PodResources API, and plays the pods of workloads that are Slow.
type Kubelet struct {
	podresourcesv1.UnimplementedPodResourcesListerServer
	node   string
	socket string
	ids    []string // of the devices that there are
	c      *Cluster

	mu      sync.Mutex
	given   map[string][]string // by pod's UID
	server  *grpc.Server
	serving sync.WaitGroup
	loading time.Duration // from running to ready, of slow pods
	stop    context.CancelFunc

	// Of play alone: the engines that run in pods, and how the driver is told of them.
	engines  map[types.UID]*engine
	observed time.Time // when it was told last
	driver   *fakenvml.Control
	web      *http.Client
}

func newKubelet(c *Cluster, node, socket string, ids []string, driver *fakenvml.Control) *Kubelet {
	return &Kubelet{c: c, node: node, socket: socket, ids: ids, given: map[string][]string{}, engines: map[types.UID]*engine{}, driver: driver, web: newWeb()}
}

// Start listens, on a new socket.
func (k *Kubelet) Start() error {
	if err := os.MkdirAll(filepath.Dir(k.socket), 0o755); err != nil {
		return err
	}
	if err := os.Remove(k.socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	l, err := net.Listen("unix", k.socket)
	if err != nil {
		return err
	}
	k.server = grpc.NewServer()
	podresourcesv1.RegisterPodResourcesListerServer(k.server, k)
	server := k.server
	k.serving.Go(func() { _ = server.Serve(l) })
	ctx, stop := context.WithCancel(context.Background())
	k.stop = stop
	k.serving.Go(func() { k.play(ctx) })
	return nil
}

// Loading says how long it takes slow pods from now on to become ready.
func (k *Kubelet) Loading(d time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.loading = d
}

// play plays the slow pods of the node until ctx is done.
func (k *Kubelet) play(ctx context.Context) {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		pods := &corev1.PodList{}
		if k.c.watched.List(ctx, pods, client.MatchingFields{onNode: k.node}) != nil {
			continue // it comes again
		}
		k.mu.Lock()
		loading := k.loading
		k.mu.Unlock()
		for i := range pods.Items {
			switch pod := &pods.Items[i]; { // what fails comes again
			case pod.Annotations[engineMark] != "":
				_ = k.stepEngine(ctx, pod)
			case pod.Annotations[kwokCustom] != "" && pod.Annotations[playedMark] == "":
				_ = k.step(ctx, pod, loading)
			}
		}
		k.endEngines(pods.Items)
		k.observe(ctx, pods.Items)
	}
}

// step takes a pod one step on its way: running, ready, gone.
func (k *Kubelet) step(ctx context.Context, pod *corev1.Pod, loading time.Duration) error {
	now := metav1.Now()
	switch {
	case pod.DeletionTimestamp != nil:
		return k.c.Client.Delete(ctx, pod, client.GracePeriodSeconds(0))
	case pod.Status.Phase == corev1.PodPending:
		pod.Status.Phase, pod.Status.StartTime = corev1.PodRunning, &now
		setReady(pod, corev1.ConditionFalse, now)
	case pod.Status.StartTime != nil && now.Sub(pod.Status.StartTime.Time) >= loading && !isReady(pod):
		setReady(pod, corev1.ConditionTrue, now)
	default:
		return nil
	}
	return k.c.Client.Status().Update(ctx, pod)
}

func isReady(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

func setReady(pod *corev1.Pod, ready corev1.ConditionStatus, now metav1.Time) {
	pod.Status.Conditions = slices.DeleteFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.PodReady })
	pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{Type: corev1.PodReady, Status: ready, LastTransitionTime: now})
}

// Stop ends it, as when the kubelet restarts. What pods have stays theirs.
func (k *Kubelet) Stop() {
	if k.server != nil {
		k.stop()
		k.server.Stop()
		k.server = nil
	}
	k.serving.Wait()
}

// List answers as a kubelet does: one entry for each device.
func (k *Kubelet) List(ctx context.Context, _ *podresourcesv1.ListPodResourcesRequest) (*podresourcesv1.ListPodResourcesResponse, error) {
	pods := &corev1.PodList{}
	if err := k.c.watched.List(ctx, pods, client.MatchingFields{onNode: k.node}); err != nil {
		return nil, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.free(pods.Items)
	answer := &podresourcesv1.ListPodResourcesResponse{}
	for i := range pods.Items {
		pod := &pods.Items[i]
		if ended(pod) {
			continue
		}
		c := &podresourcesv1.ContainerResources{Name: pod.Spec.Containers[0].Name}
		if len(pod.Spec.ResourceClaims) > 0 {
			var err error
			if c.DynamicResources, err = k.claimed(ctx, pod); err != nil {
				return nil, err
			}
		}
		ids, err := k.give(pod)
		if err != nil {
			return nil, err
		}
		if len(c.DynamicResources) > 0 {
			ids = nil // they are not the device plugin's
		}
		for _, id := range ids {
			c.Devices = append(c.Devices, &podresourcesv1.ContainerDevices{ResourceName: GPUResource, DeviceIds: []string{id}})
		}
		answer.PodResources = append(answer.PodResources, &podresourcesv1.PodResources{
			Name: pod.Name, Namespace: pod.Namespace, Containers: []*podresourcesv1.ContainerResources{c},
		})
	}
	return answer, nil
}

// Devices are the ids that the workload's pods have on a node.
func (w *Workload) Devices(ctx context.Context, n *GPUNode) (ids []string, err error) {
	pods, err := w.Pods(ctx)
	for i := range pods {
		ids = append(ids, n.Kubelet.Given(&pods[i])...)
	}
	return ids, err
}

// Pods are the workload's, the oldest first.
func (w *Workload) Pods(ctx context.Context) ([]corev1.Pod, error) {
	pods := &corev1.PodList{}
	if err := w.c.watched.List(ctx, pods, client.InNamespace(w.Namespace), client.MatchingLabels{"app": w.Name}); err != nil {
		return nil, err
	}
	slices.SortFunc(pods.Items, func(a, b corev1.Pod) int {
		return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
	})
	return pods.Items, nil
}

// Keep has a ReplicaSet delete the pod after all others.
// (https://kubernetes.io/docs/concepts/workloads/controllers/replicaset/#pod-deletion-cost)
func (w *Workload) Keep(ctx context.Context, pod *corev1.Pod) error {
	before := pod.DeepCopy()
	metav1.SetMetaDataAnnotation(&pod.ObjectMeta, corev1.PodDeletionCost, "1000")
	return w.c.Client.Patch(ctx, pod, client.MergeFrom(before))
}

// Serves says that a pod is ready and not about to end.
func Serves(pod *corev1.Pod) bool { return pod.DeletionTimestamp == nil && isReady(pod) }

// Given are the ids that a pod has.
func (k *Kubelet) Given(pod *corev1.Pod) []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.given[string(pod.UID)]
}

// free takes back what pods have that are gone.
func (k *Kubelet) free(pods []corev1.Pod) {
	for uid := range k.given {
		if !slices.ContainsFunc(pods, func(p corev1.Pod) bool { return string(p.UID) == uid && !ended(&p) }) {
			delete(k.given, uid)
		}
	}
}

// give is what a pod has, of what is free if it is new.
func (k *Kubelet) give(pod *corev1.Pod) ([]string, error) {
	uid := string(pod.UID)
	if ids, ok := k.given[uid]; ok {
		return ids, nil
	}
	quantity := pod.Spec.Containers[0].Resources.Limits[GPUResource]
	wanted := int(quantity.Value())
	taken := map[string]bool{}
	for _, ids := range k.given {
		for _, id := range ids {
			taken[id] = true
		}
	}
	var ids []string
	for _, id := range k.ids {
		if len(ids) < wanted && !taken[id] {
			ids = append(ids, id)
		}
	}
	if len(ids) < wanted {
		return nil, fmt.Errorf("node %s has too few devices for pod %s: it wants %d", k.node, pod.Name, wanted)
	}
	k.given[uid] = ids
	return ids, nil
}

func ended(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded
}
