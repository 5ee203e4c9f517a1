package realnode

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	corev1 "k8s.io/api/core/v1"
	podresources "k8s.io/kubelet/pkg/apis/podresources/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gpuscaler/deploy/e2e/binaries"
	"gpuscaler/deploy/e2e/cluster"
	"gpuscaler/deploy/e2e/namespaces"
)

// lab is a cluster with a real node.
type lab struct {
	*testing.T
	ctx     context.Context
	cluster *cluster.Cluster
	node    *Node
	repo    string
	o       Options
}

// newLab starts a cluster with a node that plays a fixture.
func newLab(t *testing.T, recording string) *lab {
	if !namespaces.Inside() {
		t.Skip("needs root")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	t.Cleanup(cancel)
	source, err := filepath.Abs("..")
	require.NoError(t, err)
	l := &lab{T: t, ctx: ctx, repo: filepath.Dir(filepath.Dir(source))}
	set, err := binaries.Build(ctx, binaries.Options{Source: source, RealNode: true, Progress: progress})
	require.NoError(t, err)
	dir, err := os.MkdirTemp("", "gpus-") // t.TempDir's is too long for sockets
	require.NoError(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log("logs are in", dir)
			return
		}
		require.NoError(t, os.RemoveAll(dir))
	})
	product := filepath.Join(l.repo, "bin") // as "make images" has made it
	l.cluster, err = cluster.Start(ctx, cluster.Options{Binaries: set, Product: product, Deploy: filepath.Dir(source), Dir: filepath.Join(dir, "c"), NodeIP: namespaces.NodeIP, Progress: progress})
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, l.cluster.Stop())
		progress("cluster is down")
	})
	l.o = Options{
		Cluster: l.cluster, Binaries: set, Product: product, Parts: filepath.Join(os.Getenv(workVar), "parts"),
		Dir: filepath.Join(dir, "n"), Fixture: filepath.Join(l.repo, "testdata", recording), Progress: progress,
	}
	l.node, err = Start(ctx, l.o)
	require.NoError(t, err)
	t.Cleanup(func() {
		require.NoError(t, l.node.Stop())
		progress("node is down")
	})
	return l
}

const gpuPod = `
apiVersion: v1
kind: Pod
metadata: {name: engine, namespace: default}
spec:
  terminationGracePeriodSeconds: 0
  tolerations: [{key: nvidia.com/gpu, operator: Exists}]
  containers:
  - {name: engine, image: ` + PauseImage + `, resources: {limits: {nvidia.com/gpu: 1}}}
`

// TestGPUPod gives a pod one of two GPUs, before and after the kubelet and the
// whole node were restarted.
func TestGPUPod(t *testing.T) {
	l := newLab(t, "two-60-80.csv")
	for _, restart := range []func() error{
		func() error { return nil },
		func() error { return l.node.RestartKubelet(l.ctx) },
		func() error {
			require.NoError(t, l.node.Stop())
			again, err := Start(l.ctx, l.o)
			if err == nil {
				l.node = again
			}
			return err
		},
	} {
		require.NoError(t, restart())
		require.NoError(t, l.cluster.Apply(l.ctx, gpuPod))
		pod := l.ready("engine")
		progress("pod with a GPU is ready")
		given := l.devices(pod.Name)
		require.Len(t, given, 1)
		require.Contains(t, l.node.GPUs, given[0])
		containers, err := l.node.Containers(l.ctx, pod.Namespace, pod.Name)
		require.NoError(t, err)
		env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", containers[0].PID))
		require.NoError(t, err)
		require.Contains(t, string(env), "NVIDIA_VISIBLE_DEVICES="+given[0]+"\x00")
		require.NoError(t, l.cluster.Client.Delete(l.ctx, pod))
		require.NoError(t, cluster.Until(l.ctx, func(ctx context.Context) error {
			if client.IgnoreNotFound(l.cluster.Client.Get(ctx, client.ObjectKeyFromObject(pod), pod)) == nil && len(l.devices("engine")) == 0 {
				return nil
			}
			return errors.New("the pod is still there")
		}))
	}
}

// ready waits for a pod.
func (l *lab) ready(name string) *corev1.Pod {
	l.Helper()
	pod := &corev1.Pod{}
	require.NoError(l, cluster.Until(l.ctx, func(ctx context.Context) error {
		if err := l.cluster.Client.Get(ctx, client.ObjectKey{Namespace: "default", Name: name}, pod); err != nil {
			return err
		}
		for _, c := range pod.Status.Conditions {
			if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
				return nil
			}
		}
		return fmt.Errorf("not ready: %v", pod.Status)
	}))
	return pod
}

// devices are the GPUs that the kubelet says a pod has.
func (l *lab) devices(pod string) []string {
	c := podresources.NewPodResourcesListerClient(l.dial("unix:///var/lib/kubelet/pod-resources/kubelet.sock"))
	list, err := c.List(l.ctx, &podresources.ListPodResourcesRequest{})
	require.NoError(l, err)
	var found []string
	for _, p := range list.PodResources {
		for _, container := range p.Containers {
			for _, d := range container.Devices {
				if p.Name == pod && d.ResourceName == cluster.GPUResource {
					found = append(found, d.DeviceIds...)
				}
			}
		}
	}
	return found
}

func (l *lab) dial(target string) *grpc.ClientConn {
	c, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(l, err)
	l.Cleanup(func() { _ = c.Close() })
	return c
}
