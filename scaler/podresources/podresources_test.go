package podresources

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	podresourcesv1 "k8s.io/kubelet/pkg/apis/podresources/v1"

	"gpuscaler/shared/snapshot"
)

// kubelet answers as one does.
type kubelet struct {
	podresourcesv1.UnimplementedPodResourcesListerServer
	answer *podresourcesv1.ListPodResourcesResponse
	hangs  bool
}

func (k *kubelet) List(ctx context.Context, _ *podresourcesv1.ListPodResourcesRequest) (*podresourcesv1.ListPodResourcesResponse, error) {
	if k.hangs {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return k.answer, nil
}

// serve listens on a new socket in the place of an old one, until stop.
func (k *kubelet) serve(t *testing.T, socket string) (stop func()) {
	t.Helper()
	_ = os.Remove(socket)
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	server := grpc.NewServer()
	podresourcesv1.RegisterPodResourcesListerServer(server, k)
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(l) }()
	stop = func() { server.Stop(); <-done }
	t.Cleanup(stop)
	return stop
}

func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "k") // short, as the path of a Unix socket has to be
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "kubelet.sock")
}

func newReader(t *testing.T, socket string) *Reader {
	t.Helper()
	r, err := New(socket, []string{"nvidia.com/gpu", "nvidia.com/gpu.shared", "nvidia.com/mig-*"}, []string{"gpu.nvidia.com"})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, r.Close()) })
	return r
}

func devices(resource string, ids ...string) *podresourcesv1.ContainerDevices {
	return &podresourcesv1.ContainerDevices{ResourceName: resource, DeviceIds: ids}
}

func pod(name string, containers ...*podresourcesv1.ContainerResources) *podresourcesv1.ListPodResourcesResponse {
	return &podresourcesv1.ListPodResourcesResponse{PodResources: []*podresourcesv1.PodResources{{Namespace: "ns", Name: name, Containers: containers}}}
}

func TestRead(t *testing.T) {
	socket := socketPath(t)
	claim := func(driver, device string) *podresourcesv1.ClaimResource {
		return &podresourcesv1.ClaimResource{DriverName: driver, PoolName: "node-1", DeviceName: device}
	}
	k := &kubelet{answer: pod("llm",
		// One entry a device, in any order, and one that is there twice.
		&podresourcesv1.ContainerResources{Name: "engine", Devices: []*podresourcesv1.ContainerDevices{
			devices("nvidia.com/gpu", "GPU-b"), devices("example.com/nic", "eth1"), devices("nvidia.com/mig-1g.18gb", "MIG-a"),
			devices("nvidia.com/gpu", "GPU-a"), devices("nvidia.com/gpu", "GPU-b"), devices("nvidia.com/gpu.shared"),
			devices("nvidia.com/hostdev", "0000:65:00.0"),
		}},
		&podresourcesv1.ContainerResources{Name: "no devices"},
		&podresourcesv1.ContainerResources{Name: "claims", DynamicResources: []*podresourcesv1.DynamicResource{{
			ClaimName: "c", ClaimNamespace: "ns",
			ClaimResources: []*podresourcesv1.ClaimResource{claim("gpu.nvidia.com", "gpu-0"), claim("nic.example.com", "eth1"), claim("gpu.nvidia.com", "gpu-0"), claim("gpu.nvidia.com", "")},
		}}},
	)}
	k.serve(t, socket)
	a, err := newReader(t, socket).Read(t.Context())
	require.NoError(t, err)
	assert.Equal(t, &snapshot.Allocation{Containers: []snapshot.Container{
		{Namespace: "ns", Pod: "llm", Name: "engine", Plugin: []snapshot.PluginDevices{
			{Resource: "nvidia.com/gpu", IDs: []string{"GPU-a", "GPU-b"}},
			{Resource: "nvidia.com/mig-1g.18gb", IDs: []string{"MIG-a"}},
		}},
		{Namespace: "ns", Pod: "llm", Name: "claims", Claimed: []snapshot.ClaimedDevice{{Driver: "gpu.nvidia.com", Pool: "node-1", Device: "gpu-0", Claim: "c"}}},
	}}, a)
}

// No pod with a GPU is an answer.
func TestReadNothing(t *testing.T) {
	socket := socketPath(t)
	(&kubelet{answer: &podresourcesv1.ListPodResourcesResponse{}}).serve(t, socket)
	a, err := newReader(t, socket).Read(t.Context())
	require.NoError(t, err)
	assert.Equal(t, &snapshot.Allocation{}, a)
}

// A dense node's answer is beyond the 4 MiB that gRPC takes by itself.
func TestReadLarge(t *testing.T) {
	socket := socketPath(t)
	memory := &podresourcesv1.ContainerMemory{MemoryType: strings.Repeat("m", 8<<20)}
	(&kubelet{answer: pod("p", &podresourcesv1.ContainerResources{Memory: []*podresourcesv1.ContainerMemory{memory}})}).serve(t, socket)
	_, err := newReader(t, socket).Read(t.Context())
	require.NoError(t, err)
}

// A kubelet that comes late, restarts with a new socket, and hangs in between.
func TestKubeletComesAndGoes(t *testing.T) {
	socket := socketPath(t)
	r := newReader(t, socket)
	_, err := r.Read(t.Context())
	require.Equal(t, codes.Unavailable, status.Code(err), "%v", err)

	for i := range 3 {
		k := &kubelet{answer: pod(fmt.Sprint("pod-", i), &podresourcesv1.ContainerResources{Devices: []*podresourcesv1.ContainerDevices{devices("nvidia.com/gpu", "GPU-a")}})}
		stop := k.serve(t, socket)
		started := time.Now()
		require.Eventually(t, func() bool {
			a, err := r.Read(t.Context())
			return err == nil && a.Containers[0].Pod == fmt.Sprint("pod-", i)
		}, 2*lastRetry, 10*time.Millisecond)
		t.Logf("back after %s", time.Since(started))
		stop()
	}

	(&kubelet{hangs: true}).serve(t, socket)
	require.Eventually(t, func() bool {
		limited, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		_, err := r.Read(limited)
		return status.Code(err) == codes.DeadlineExceeded
	}, 2*lastRetry, 10*time.Millisecond)
}

func TestBadPattern(t *testing.T) {
	_, err := New("/s", []string{"nvidia.com/*", "["}, nil)
	require.EqualError(t, err, `"[": syntax error in pattern`)
	_, err = New("/s", nil, []string{"a\\"})
	require.EqualError(t, err, `"a\\": syntax error in pattern`)
}
