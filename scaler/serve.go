package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"os"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/klog/v2"

	"gpuscaler/profiles"
	"gpuscaler/scaler/events"
	"gpuscaler/scaler/externalscaler"
	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/ingest"
	"gpuscaler/scaler/kubernetes"
	"gpuscaler/scaler/replay"
	"gpuscaler/scaler/servertls"
	"gpuscaler/scaler/status"
	"gpuscaler/shared/fixture"
)

type serveCommand struct {
	NVMLSocket string        `name:"nvml-socket" default:"/run/gpuscaler/nvml.sock" help:"Unix socket to listen on for readers. Empty: none."`
	NVMLUID    int           `name:"nvml-uid" default:"-1" help:"Only user whose readers are accepted. -1: any that may open the socket."`
	Replay     string        `placeholder:"FILE" help:"Play this fixture for ever instead of listening for readers."`
	Listen     string        `default:":6000" help:"Address for KEDA's calls, gRPC health and reflection."`
	HTTP       string        `name:"http" default:":8080" help:"Address for /healthz, /readyz and /state. Empty: none."`
	TLSCert    string        `name:"tls-cert-file" placeholder:"FILE" help:"Certificate of KEDA's port, in PEM form. Read again when it changes, as are the two below. Empty: plaintext."`
	TLSKey     string        `name:"tls-private-key-file" placeholder:"FILE" help:"Its key."`
	ClientCA   string        `name:"client-ca-file" placeholder:"FILE" help:"CA whose client certificates are let in; all others are not. Empty: clients need none."`
	Profiles   string        `placeholder:"DIR" help:"Folder with further profiles, reloaded when they change."`
	StaleAfter time.Duration `default:"10s" help:"Age from which a reading is no data."`
	NodeName   string        `help:"Name of this node, for messages. Default: the host's."`

	Kubernetes string `name:"kubernetes" enum:"auto,off" default:"auto" help:"auto: use the Kubernetes API if there is one, as the pod's service account or as --kubeconfig says. off: never."`
	Kubeconfig string `placeholder:"FILE" help:"How to reach the Kubernetes API where there is no service account."`
	logOptions `embed:""`
}

// Run serves until ctx is done. The first part that fails ends all others.
func (c *serveCommand) Run(ctx context.Context) error {
	if c.StaleAfter < time.Second || c.StaleAfter > time.Hour {
		return fmt.Errorf("--stale-after: %v is outside 1s to 1h", c.StaleAfter)
	}
	if c.NVMLUID < -1 || c.NVMLUID >= math.MaxUint32 {
		return fmt.Errorf("--nvml-uid: %d is no user id; allowed are -1 (any) and 0 to %d", c.NVMLUID, uint32(math.MaxUint32-1))
	}
	if c.NodeName == "" {
		c.NodeName, _ = os.Hostname()
	}
	if c.Kubernetes == "off" && c.Kubeconfig != "" {
		return fmt.Errorf("--kubeconfig: contradicts --kubernetes=off; leave one of them out")
	}
	log := c.logger(os.Stderr)
	node := fleet.NewLocal(c.NodeName, c.StaleAfter, log, time.Now())
	store, err := profiles.NewStore(c.Profiles, log)
	if err != nil {
		return err
	}
	ready := func(now time.Time) error { return node.Node().Ready(now, c.StaleAfter) }
	service := externalscaler.NewService(node, store, c.StaleAfter, log)

	// Everything that may be refused comes before the first part runs.
	secure, err := servertls.New(servertls.Files{
		Certificate: servertls.File{Flag: "tls-cert-file", Path: c.TLSCert},
		Key:         servertls.File{Flag: "tls-private-key-file", Path: c.TLSKey},
		ClientCA:    servertls.File{Flag: "client-ca-file", Path: c.ClientCA},
	}, log)
	if err != nil {
		return err
	}
	if secure.Mode() == "off" {
		log.Warn("KEDA's port is plaintext: whoever is on the network can read and change its answers; " +
			"--tls-cert-file and --tls-private-key-file encrypt it, --client-ca-file keeps out clients without a certificate")
	}
	encryption := secure.Config(&tls.Config{MinVersion: tls.VersionTLS12})
	keda, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return fmt.Errorf("--listen: %w", err)
	}
	run := []func(context.Context) error{
		store.Run,
		secure.Run,
		func(ctx context.Context) error {
			return externalscaler.NewServer(service, ready, encryption, log).Run(ctx, keda)
		},
	}
	recorder, err := c.recorder(log)
	if err != nil {
		return err
	}
	if recorder != nil {
		service.TellRefusals(recorder)
		run = append(run, recorder.Run)
	}
	httpAddress := ""
	if c.HTTP != "" {
		web, err := net.Listen("tcp", c.HTTP)
		if err != nil {
			return fmt.Errorf("--http: %w", err)
		}
		httpAddress = web.Addr().String()
		run = append(run, func(ctx context.Context) error {
			return status.Run(ctx, web, status.Handler(node.Node, ready), log)
		})
	}
	source, err := c.source(node, log)
	if err != nil {
		return err
	}
	run = append(run, source)

	parts, ctx := errgroup.WithContext(ctx)
	for _, part := range run {
		parts.Go(func() error { return part(ctx) })
	}
	log.Info("serving", "version", version, "node", c.NodeName, "listen", keda.Addr().String(), "http", httpAddress, "tls", secure.Mode())
	err = parts.Wait()
	log.Info("stopped", "error", err)
	return err
}

// recorder is what tells users of bad metadata, or nil where there is no
// Kubernetes API to be used.
func (c *serveCommand) recorder(log *slog.Logger) (*events.Recorder, error) {
	if c.Kubernetes == "off" {
		return nil, nil
	}
	klog.SetSlogLogger(log) // where client-go logs to
	config, err := kubernetes.Config(c.Kubeconfig, "gpuscaler/"+version)
	if errors.Is(err, kubernetes.ErrNone) {
		log.Info("no events on ScaledObjects with bad metadata: KEDA's log alone says what is wrong with them", "reason", err)
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("--kubeconfig: %w", err)
	}
	log.Info("bad metadata is told by events on the ScaledObject", "kubernetes", config.Host)
	return events.New(config, c.NodeName, log)
}

// source is the part that the readings come from.
func (c *serveCommand) source(node *fleet.Local, log *slog.Logger) (func(context.Context) error, error) {
	if c.Replay != "" {
		f, err := fixture.Load(c.Replay)
		if err != nil {
			return nil, fmt.Errorf("--replay: %w", err)
		}
		log.Info("replaying", "file", c.Replay, "samples", len(f.Samples), "period", f.Period())
		return func(ctx context.Context) error { return replay.Run(ctx, f, node.Connect()) }, nil
	}
	if c.NVMLSocket == "" {
		log.Warn("no --nvml-socket and no --replay: this scaler has no data and will answer Unavailable")
		return func(context.Context) error { return nil }, nil
	}
	l, err := ingest.Listen(ingest.Options{
		Path: c.NVMLSocket, UID: c.NVMLUID, FrameTimeout: c.StaleAfter, Log: log,
		Connect: func() ingest.Sink { return node.Connect() },
	})
	if err != nil {
		return nil, err
	}
	log.Info("listening for readers", "socket", c.NVMLSocket, "uid", c.NVMLUID)
	return l.Run, nil
}
