// Command deviceplugin offers GPUs to a kubelet, as NVIDIA's device plugin does.
// It must not know whether they exist.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	api "k8s.io/kubelet/pkg/apis/deviceplugin/v1beta1"
)

// lookEvery is how often it looks whether the kubelet has another socket.
const lookEvery = 200 * time.Millisecond

type flags struct {
	Folder   string   `default:"/var/lib/kubelet/device-plugins" help:"The kubelet's folder for sockets."`
	Resource string   `default:"nvidia.com/gpu" help:"What pods ask for."`
	ID       []string `required:"" help:"The devices' ids."`
}

func main() {
	var f flags
	kong.Parse(&f, kong.Description("Offers devices to a kubelet."))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	for ctx.Err() == nil {
		if err := offer(ctx, f); err != nil {
			fmt.Fprintln(os.Stderr, "deviceplugin:", err) // a kubelet that is not there yet, mostly
		}
		select {
		case <-ctx.Done():
		case <-time.After(lookEvery):
		}
	}
}

// offer serves one life of a kubelet: it ends when the kubelet's socket is
// another one, because a starting kubelet removes the sockets of all plugins.
func offer(ctx context.Context, f flags) error {
	kubelet := filepath.Join(f.Folder, filepath.Base(api.KubeletSocket))
	registered, err := os.Stat(kubelet)
	if err != nil {
		return err
	}
	stop, err := serve(f)
	if err != nil {
		return err
	}
	defer stop()
	if err := register(ctx, f, kubelet); err != nil {
		return err
	}
	fmt.Fprintln(os.Stderr, "deviceplugin: registered", f.Resource, f.ID)
	for tick := time.Tick(lookEvery); ; {
		select {
		case <-ctx.Done():
			return nil
		case <-tick:
		}
		if now, err := os.Stat(kubelet); err != nil || !now.ModTime().Equal(registered.ModTime()) || !os.SameFile(now, registered) {
			return nil
		}
	}
}

// register tells the kubelet about our socket.
func register(ctx context.Context, f flags, kubelet string) error {
	c, err := grpc.NewClient("unix://"+kubelet, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	_, err = api.NewRegistrationClient(c).Register(ctx, &api.RegisterRequest{
		Version: api.Version, Endpoint: endpoint, ResourceName: f.Resource, Options: &api.DevicePluginOptions{},
	})
	return err
}
