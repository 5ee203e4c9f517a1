package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"gpuscaler/scaler/podresources"
	"gpuscaler/shared/snapshot"
	"gpuscaler/shared/snapshotpb"
	"gpuscaler/shared/stream"
)

type podresourcesCommand struct {
	Socket        string        `default:"/run/gpuscaler/nvml.sock" help:"Unix socket of the scaler."`
	KubeletSocket string        `default:"/var/lib/kubelet/pod-resources/kubelet.sock" placeholder:"FILE" help:"The kubelet's PodResources socket. It opens to uid 0 alone; in a container mount its folder, because the kubelet makes it anew."`
	Interval      time.Duration `default:"3s" help:"Time between two questions to the kubelet, 1s to 5s."`
	Resources     []string      `default:"nvidia.com/gpu,nvidia.com/gpu.shared,nvidia.com/mig-*" help:"Device plugins' resources that are GPUs, with * and ? as in file names. The default is what NVIDIA's device plugin has: other resources of nvidia.com are NICs and host devices."`
	Drivers       []string      `default:"gpu.nvidia.com" help:"DRA drivers whose devices are GPUs, likewise."`
	Once          bool          `help:"Print one answer as JSON and exit."`
	logOptions    `embed:""`
}

// Run asks the kubelet and writes to the scaler until ctx is done. It has no
// listener.
func (c *podresourcesCommand) Run(ctx context.Context) error {
	if c.Interval < time.Second || c.Interval > 5*time.Second {
		return fmt.Errorf("--interval: %v is outside 1s to 5s", c.Interval)
	}
	kubelet, err := podresources.New(c.KubeletSocket, c.Resources, c.Drivers)
	if err != nil {
		return fmt.Errorf("--kubelet-socket, --resources, --drivers: %w", err)
	}
	defer kubelet.Close()
	started := time.Now()
	read := func(ctx context.Context) *snapshot.Sample {
		limited, cancel := context.WithTimeout(ctx, c.Interval)
		defer cancel()
		a, err := kubelet.Read(limited)
		sample := &snapshot.Sample{Writer: "podresources", Version: version, Elapsed: time.Since(started), Allocation: a}
		if err != nil {
			sample.Error = snapshot.Text(err.Error())
		}
		return sample
	}
	if c.Once {
		return show(read(ctx))
	}
	log := c.logger(os.Stderr)
	log.Info("started", "version", version, "interval", c.Interval, "kubelet", c.KubeletSocket)
	out := stream.New(c.Socket, c.Interval, log)
	parts, ctx := errgroup.WithContext(ctx)
	parts.Go(func() error { out.Run(ctx); return nil })
	parts.Go(func() error { c.ask(ctx, read, out, log); return nil })
	return parts.Wait()
}

// ask asks at each interval, and says in the log when the kubelet stops
// answering and when it answers again.
func (c *podresourcesCommand) ask(ctx context.Context, read func(context.Context) *snapshot.Sample, out *stream.Stream, log *slog.Logger) {
	tick := time.NewTicker(c.Interval)
	defer tick.Stop()
	failing := ""
	for {
		sample := read(ctx)
		if ctx.Err() != nil {
			return
		}
		if (sample.Error == "") != (failing == "") {
			log.Warn("kubelet's state changed", "socket", c.KubeletSocket, "error", sample.Error)
		}
		failing = sample.Error
		out.Send(sample)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func show(s *snapshot.Sample) error {
	out, err := snapshotpb.JSON(s)
	if err != nil {
		return err
	}
	_, err = fmt.Println(string(out))
	return err
}
