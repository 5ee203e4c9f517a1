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
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"gpuscaler/profiles"
	"gpuscaler/scaler/evaluate"
	"gpuscaler/scaler/events"
	"gpuscaler/scaler/exporter"
	"gpuscaler/scaler/externalscaler"
	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/ingest"
	"gpuscaler/scaler/kubernetes"
	"gpuscaler/scaler/meter"
	"gpuscaler/scaler/pods"
	"gpuscaler/scaler/replay"
	"gpuscaler/scaler/resourceslices"
	"gpuscaler/scaler/servertls"
	"gpuscaler/scaler/status"
	"gpuscaler/scaler/workload"
	"gpuscaler/shared/fixture"
)

type serveCommand struct {
	NVMLSocket            string        `name:"nvml-socket" default:"/run/gpuscaler/nvml.sock" help:"Unix socket to listen on for readers. Empty: none."`
	NVMLUID               int           `name:"nvml-uid" default:"-1" help:"Only user whose readers of devices are accepted. -1: any that may open the socket."`
	PodResourcesUID       int           `name:"podresources-uid" default:"-1" help:"Only user whose readers of the kubelet are accepted; goes with --nvml-uid. -1: none, or with no --nvml-uid any."`
	Replay                string        `placeholder:"FILE" help:"Play this fixture for ever instead of listening for readers."`
	Listen                string        `default:":6000" help:"Address for KEDA's calls, gRPC health and reflection."`
	HTTP                  string        `name:"http" default:":8080" help:"Address for /metrics, /healthz, /readyz and /state. Empty: none."`
	TLSCert               string        `name:"tls-cert-file" placeholder:"FILE" help:"Certificate of KEDA's port, in PEM form. Read again when it changes, as are the two below. Empty: plaintext."`
	TLSKey                string        `name:"tls-private-key-file" placeholder:"FILE" help:"Its key."`
	ClientCA              string        `name:"client-ca-file" placeholder:"FILE" help:"CA whose client certificates are let in; all others are not. Empty: clients need none."`
	Profiles              string        `placeholder:"DIR" help:"Folder with further profiles, reloaded when they change."`
	StaleAfter            time.Duration `default:"10s" help:"Age from which a reading is no data."`
	AttributionStaleAfter time.Duration `default:"2m" help:"Age from which what the kubelet and the API server told of a workload's pods is no data."`
	Tolerance             float64       `default:"0.1" help:"The HPA's: how far from 1 the ratio of mean and target may be with nothing done."`
	NodeName              string        `help:"Name of this node, as Kubernetes has it. Default: the host's."`
	peerOptions           `embed:""`
	engineOptions         `embed:""`

	Workloads  string `enum:"auto,off" default:"auto" help:"auto: a trigger that names no scope is about the GPUs of its own workload's pods, where there is a Kubernetes API. off: about this node's; scope: workload is refused."`
	Kubernetes string `name:"kubernetes" enum:"auto,off" default:"auto" help:"auto: use the Kubernetes API if there is one, as the pod's service account or as --kubeconfig says. off: never."`
	Kubeconfig string `placeholder:"FILE" help:"How to reach the Kubernetes API where there is no service account."`
	logOptions `embed:""`
}

// Run serves until ctx is done. The first part that fails ends all others.
func (c *serveCommand) Run(ctx context.Context) error {
	if c.StaleAfter < time.Second || c.StaleAfter > time.Hour {
		return fmt.Errorf("--stale-after: %v is outside 1s to 1h", c.StaleAfter)
	}
	for flag, uid := range map[string]int{"--nvml-uid": c.NVMLUID, "--podresources-uid": c.PodResourcesUID} {
		if uid < -1 || uid >= math.MaxUint32 {
			return fmt.Errorf("%s: %d is no user id; allowed are -1 and 0 to %d", flag, uid, uint32(math.MaxUint32-1))
		}
	}
	if c.PodResourcesUID >= 0 && c.NVMLUID < 0 {
		return fmt.Errorf("--podresources-uid: %d without --nvml-uid lets everybody in; give both, or neither", c.PodResourcesUID)
	}
	if c.AttributionStaleAfter < c.StaleAfter || c.AttributionStaleAfter > time.Hour {
		return fmt.Errorf("--attribution-stale-after: %v is outside %v (--stale-after) to 1h", c.AttributionStaleAfter, c.StaleAfter)
	}
	if !(c.Tolerance >= 0 && c.Tolerance < 1) {
		return fmt.Errorf("--tolerance: %v is outside 0 to below 1", c.Tolerance)
	}
	if c.NodeName == "" {
		c.NodeName, _ = os.Hostname()
	}
	if c.Kubernetes == "off" && c.Kubeconfig != "" {
		return fmt.Errorf("--kubeconfig: contradicts --kubernetes=off; leave one of them out")
	}
	if err := c.checkPeers(); err != nil {
		return err
	}
	log := c.logger(os.Stderr)
	var node *fleet.Local
	var used *meter.Meter
	if c.hasNode() {
		node = fleet.NewLocal(c.NodeName, c.StaleAfter, log, time.Now())
		used = meter.New(c.AttributionStaleAfter)
		node.Observe(used.Observe)
	}
	nodes := fleet.New(node)
	store, err := profiles.NewStore(c.Profiles, log)
	if err != nil {
		return err
	}
	service := externalscaler.NewService(nodes, store, c.StaleAfter, log)

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
	api, err := c.kubernetes(log)
	if err != nil {
		return err
	}
	workloads, withAPI, err := c.useKubernetes(api, service, node, log)
	if err != nil {
		return err
	}
	if workloads != nil {
		workloads.UseProfiles(store)
	}
	board, withEngines := c.useEngines(workloads, nodes, node, service, log)
	withServices, err := c.useServices(api, workloads, service, log)
	if err != nil {
		return err
	}
	mesh, withPeers, err := c.usePeers(api, nodes, workloads, board, service, log)
	if err != nil {
		return err
	}
	ready := func(now time.Time) error {
		if own := nodes.Own(); own != nil {
			return own.Ready(now, c.StaleAfter)
		}
		return mesh.Ready(now, c.StaleAfter)
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
	run = slices.Concat(run, withAPI, withPeers, withEngines, withServices)
	httpAddress := ""
	if c.HTTP != "" {
		var health exporter.Workloads // not a nil *workload.Resolver
		if workloads != nil {
			health = workloads
		}
		web, err := net.Listen("tcp", c.HTTP)
		if err != nil {
			return fmt.Errorf("--http: %w", err)
		}
		httpAddress = web.Addr().String()
		handler := status.Handler(nodes, ready, exporter.Handler(exporter.Options{
			Node: c.NodeName, Version: version, Fleet: nodes, Meter: used, Triggers: service, Workloads: health,
			StaleAfter: c.StaleAfter, AttributionStaleAfter: c.AttributionStaleAfter,
		}))
		run = append(run, func(ctx context.Context) error { return status.Run(ctx, web, handler, log) })
	}
	if node != nil {
		source, err := c.source(node, log)
		if err != nil {
			return err
		}
		run = append(run, source)
	}

	parts, ctx := errgroup.WithContext(ctx)
	for _, part := range run {
		parts.Go(func() error { return part(ctx) })
	}
	log.Info("serving", "version", version, "node", c.NodeName, "listen", keda.Addr().String(), "http", httpAddress, "tls", secure.Mode())
	err = parts.Wait()
	log.Info("stopped", "error", err)
	return err
}

// kubernetes is how to reach the Kubernetes API; nil if there is none to be used.
func (c *serveCommand) kubernetes(log *slog.Logger) (*rest.Config, error) {
	if c.Kubernetes == "off" {
		return nil, nil
	}
	klog.SetSlogLogger(log) // where client-go logs to
	config, err := kubernetes.Config(c.Kubeconfig, "gpuscaler/"+version)
	if errors.Is(err, kubernetes.ErrNone) {
		log.Info("no workloads: triggers are about this node's GPUs; and no events on ScaledObjects with bad metadata: "+
			"KEDA's log alone says what is wrong with them", "reason", err)
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("--kubeconfig: %w", err)
	}
	return config, nil
}

// useKubernetes adds what needs the Kubernetes API, if there is one: what knows
// workloads is nil where nothing does.
func (c *serveCommand) useKubernetes(config *rest.Config, service *externalscaler.Service, node *fleet.Local, log *slog.Logger) (*workload.Resolver, []func(context.Context) error, error) {
	if config == nil {
		return nil, nil, nil
	}
	recorder, err := events.New(config, c.NodeName, log)
	if err != nil {
		return nil, nil, err
	}
	service.TellRefusals(recorder)
	log.Info("bad metadata is told by events on the ScaledObject", "kubernetes", config.Host)
	run := []func(context.Context) error{recorder.Run}
	if c.Workloads == "off" {
		return nil, run, nil
	}
	workloads, err := workload.New(config, log)
	if err != nil {
		return nil, nil, err
	}
	run = append(run, workloads.Run)
	service.UseWorkloads(workloads, evaluate.Limits{
		StaleAfter: c.StaleAfter, AttributionStaleAfter: c.AttributionStaleAfter, Tolerance: c.Tolerance,
	})
	if node == nil {
		return workloads, run, nil
	}
	watch, err := pods.New(config, c.NodeName, node, workloads, log)
	if err != nil {
		return nil, nil, err
	}
	claims, err := resourceslices.New(config, c.NodeName, node, log)
	if err != nil {
		return nil, nil, err
	}
	return workloads, append(run, watch.Run, claims.Run), nil
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
	l, err := ingest.Listen(ingest.Options{
		Path: c.NVMLSocket, UIDs: c.uids(), FrameTimeout: c.StaleAfter, Log: log,
		Connect: func(uid int) ingest.Sink { return c.role(uid, node.Connect()) },
	})
	if err != nil {
		return nil, err
	}
	log.Info("listening for readers", "socket", c.NVMLSocket, "uids", c.uids())
	return l.Run, nil
}
