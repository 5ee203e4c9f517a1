package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"gpuscaler/profiles"
	"gpuscaler/scaler/externalscaler"
	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/ingest"
	"gpuscaler/scaler/replay"
	"gpuscaler/scaler/status"
	"gpuscaler/shared/fixture"
)

type serveCommand struct {
	NVMLSocket string        `name:"nvml-socket" default:"/run/gpuscaler/nvml.sock" help:"Unix socket to listen on for readers. Empty: none."`
	NVMLUID    int           `name:"nvml-uid" default:"-1" help:"Only user whose readers are accepted. -1: any that may open the socket."`
	Replay     string        `placeholder:"FILE" help:"Play this fixture for ever instead of listening for readers."`
	Listen     string        `default:":6000" help:"Address for KEDA's calls, gRPC health and reflection."`
	HTTP       string        `name:"http" default:":8080" help:"Address for /healthz, /readyz and /state. Empty: none."`
	Profiles   string        `placeholder:"DIR" help:"Folder with further profiles, reloaded when they change."`
	StaleAfter time.Duration `default:"10s" help:"Age from which a reading is no data."`
	NodeName   string        `help:"Name of this node, for messages. Default: the host's."`

	logOptions `embed:""`
}

// Run serves until ctx is done. The first part that fails ends all others.
func (c *serveCommand) Run(ctx context.Context) error {
	if c.StaleAfter < time.Second || c.StaleAfter > time.Hour {
		return fmt.Errorf("--stale-after: %v is outside 1s to 1h", c.StaleAfter)
	}
	if c.NodeName == "" {
		c.NodeName, _ = os.Hostname()
	}
	log := c.logger(os.Stderr)
	node := fleet.NewLocal(c.NodeName, c.StaleAfter, log, time.Now())
	store, err := profiles.NewStore(c.Profiles, log)
	if err != nil {
		return err
	}
	parts, ctx := errgroup.WithContext(ctx)
	if err := c.source(ctx, parts, node, log); err != nil {
		return err
	}
	parts.Go(func() error { return store.Run(ctx) })

	ready := func(now time.Time) error { return node.Node().Ready(now, c.StaleAfter) }
	listener, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return fmt.Errorf("--listen: %w", err)
	}
	service := externalscaler.NewService(node, store, c.StaleAfter, log)
	server := externalscaler.NewServer(service, ready, log)
	parts.Go(func() error { return server.Run(ctx, listener) })

	httpAddress := ""
	if c.HTTP != "" {
		listener, err := net.Listen("tcp", c.HTTP)
		if err != nil {
			return fmt.Errorf("--http: %w", err)
		}
		httpAddress = listener.Addr().String()
		parts.Go(func() error { return status.Run(ctx, listener, status.Handler(node.Node, ready), log) })
	}
	log.Info("serving", "version", version, "node", c.NodeName,
		"listen", listener.Addr().String(), "http", httpAddress, "tls", false)
	err = parts.Wait()
	log.Info("stopped", "error", err)
	return err
}

// source starts what the readings come from.
func (c *serveCommand) source(ctx context.Context, parts *errgroup.Group, node *fleet.Local, log *slog.Logger) error {
	if c.Replay != "" {
		f, err := fixture.Load(c.Replay)
		if err != nil {
			return fmt.Errorf("--replay: %w", err)
		}
		log.Info("replaying", "file", c.Replay, "samples", len(f.Samples), "period", f.Period())
		parts.Go(func() error { return replay.Run(ctx, f, node.Connect()) })
		return nil
	}
	if c.NVMLSocket == "" {
		log.Warn("no --nvml-socket and no --replay: this scaler has no data and will answer Unavailable")
		return nil
	}
	l, err := ingest.Listen(ingest.Options{
		Path: c.NVMLSocket, UID: c.NVMLUID, FrameTimeout: c.StaleAfter, Log: log,
		Connect: func() ingest.Sink { return node.Connect() },
	})
	if err != nil {
		return err
	}
	log.Info("listening for readers", "socket", c.NVMLSocket, "uid", c.NVMLUID)
	parts.Go(func() error { return l.Run(ctx) })
	return nil
}
