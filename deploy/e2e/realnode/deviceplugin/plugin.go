package main

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"google.golang.org/grpc"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// endpoint is the name of our socket.
const endpoint = "gpus.sock"

// plugin answers the kubelet.
type plugin struct {
	api.UnimplementedDevicePluginServer
	ids []string
}

// serve listens until stop is called.
func serve(f flags) (stop func(), err error) {
	path := filepath.Join(f.Folder, endpoint)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	s := grpc.NewServer()
	api.RegisterDevicePluginServer(s, &plugin{ids: f.ID})
	go func() { _ = s.Serve(l) }() // ends with stop
	return s.Stop, nil
}

// GetDevicePluginOptions says that we want to be asked nothing more.
func (*plugin) GetDevicePluginOptions(context.Context, *api.Empty) (*api.DevicePluginOptions, error) {
	return &api.DevicePluginOptions{}, nil
}

// ListAndWatch names the devices; they stay as they are.
func (p *plugin) ListAndWatch(_ *api.Empty, out grpc.ServerStreamingServer[api.ListAndWatchResponse]) error {
	list := &api.ListAndWatchResponse{}
	for _, id := range p.ids {
		list.Devices = append(list.Devices, &api.Device{ID: id, Health: api.Healthy})
	}
	if err := out.Send(list); err != nil {
		return err
	}
	<-out.Context().Done() // the kubelet drops the devices when this returns
	return nil
}

// Allocate answers as NVIDIA's does by default: the container's environment
// names its devices, and the container runtime does the rest.
func (*plugin) Allocate(_ context.Context, asked *api.AllocateRequest) (*api.AllocateResponse, error) {
	answer := &api.AllocateResponse{}
	for _, c := range asked.ContainerRequests {
		answer.ContainerResponses = append(answer.ContainerResponses, &api.ContainerAllocateResponse{
			Envs: map[string]string{"NVIDIA_VISIBLE_DEVICES": strings.Join(c.DevicesIds, ",")},
		})
	}
	return answer, nil
}
