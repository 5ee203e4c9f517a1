package main

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/alecthomas/kong"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	podresourcesv1 "k8s.io/kubelet/pkg/apis/podresources/v1"

	"gpuscaler/scaler/podresources"
)

type kubelet struct {
	podresourcesv1.UnimplementedPodResourcesListerServer
	answer *podresourcesv1.ListPodResourcesResponse
}

func (k *kubelet) List(context.Context, *podresourcesv1.ListPodResourcesRequest) (*podresourcesv1.ListPodResourcesResponse, error) {
	return k.answer, nil
}

// The names of NVIDIA's device plugin are GPUs (internal/rm/rm.go and
// api/config/v1 of NVIDIA/k8s-device-plugin): "gpu" for whole GPUs and for the
// instances of the MIG strategy "single", "mig-PROFILE" of "mixed", each with
// ".shared" under renameByDefault. The NICs of the SR-IOV device plugin, which
// have names of nvidia.com too, are none, and no pod that has but these counts.
func TestDefaultResources(t *testing.T) {
	gpu := map[string]bool{
		"nvidia.com/gpu":                true,
		"nvidia.com/gpu.shared":         true,
		"nvidia.com/mig-1g.18gb":        true,
		"nvidia.com/mig-1g.10gb.me":     true,
		"nvidia.com/mig-3g.40gb.shared": true,

		"nvidia.com/hostdev":          false,
		"nvidia.com/mlnxnics":         false,
		"nvidia.com/rdma_host_dev":    false,
		"nvidia.com/TU104GL_Tesla_T4": false, // KubeVirt's, whole
		"nvidia.com/GRID_T4-1Q":       false, // KubeVirt's vGPU
		"nvidia.com/gpu-h100":         false, // a name of one's own: --resources
		"rdma/rdma_shared_device_a":   false,
		"example.com/gpu":             false,
	}
	answer := &podresourcesv1.ListPodResourcesResponse{}
	for resource := range gpu {
		answer.PodResources = append(answer.PodResources, &podresourcesv1.PodResources{Namespace: "ns", Name: resource, Containers: []*podresourcesv1.ContainerResources{
			{Name: "c", Devices: []*podresourcesv1.ContainerDevices{{ResourceName: resource, DeviceIds: []string{"0000:65:00.0"}}}},
		}})
	}
	dir, err := os.MkdirTemp("", "k") // short, as the path of a Unix socket has to be
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	socket := filepath.Join(dir, "kubelet.sock")
	listener, err := net.Listen("unix", socket)
	require.NoError(t, err)
	server := grpc.NewServer()
	podresourcesv1.RegisterPodResourcesListerServer(server, &kubelet{answer: answer})
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)

	read := func(args ...string) map[string]bool {
		var cli commands
		parser, err := kong.New(&cli, kong.Vars{"version": version})
		require.NoError(t, err)
		_, err = parser.Parse(append([]string{"podresources", "--kubelet-socket", socket}, args...))
		require.NoError(t, err)
		c := &cli.PodResources
		reader, err := podresources.New(c.KubeletSocket, c.Resources, c.Drivers)
		require.NoError(t, err)
		defer reader.Close()
		a, err := reader.Read(t.Context())
		require.NoError(t, err)
		found := map[string]bool{}
		for _, in := range a.Containers {
			found[in.Pod] = true
		}
		return found
	}
	found := read()
	for resource, want := range gpu {
		assert.Equal(t, want, found[resource], resource)
	}
	assert.Equal(t, map[string]bool{"nvidia.com/gpu": true, "nvidia.com/gpu-h100": true}, read("--resources=nvidia.com/gpu,nvidia.com/gpu-*"))
}
