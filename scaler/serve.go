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
	"gpuscaler/scaler/evaluate"
	"gpuscaler/scaler/events"
	"gpuscaler/scaler/externalscaler"
	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/ingest"
	"gpuscaler/scaler/kubernetes"
	"gpuscaler/scaler/pods"
	"gpuscaler/scaler/replay"
	"gpuscaler/scaler/resourceslices"
	"gpuscaler/scaler/servertls"
	"gpuscaler/scaler/status"
	"gpuscaler/scaler/workload"
	"gpuscaler/shared/fixture"
	"gpuscaler/shared/snapshot"
)

type serveCommand struct {
	NVMLSocket            string        `name:"nvml-socket" default:"/run/gpuscaler/nvml.sock" help:"Unix socket to listen on for readers. Empty: none."`
	NVMLUID               int           `name:"nvml-uid" default:"-1" help:"Only user whose readers of devices are accepted. -1: any that may open the socket."`
	PodResourcesUID       int           `name:"podresources-uid" default:"-1" help:"Only user whose readers of the kubelet are accepted; goes with --nvml-uid. -1: none, or with no --nvml-uid any."`
	Replay                string        `placeholder:"FILE" help:"Play this fixture for ever instead of listening for readers."`
	Listen                string        `default:":6000" help:"Address for KEDA's calls, gRPC health and reflection."`
	HTTP                  string        `name:"http" default:":8080" help:"Address for /healthz, /readyz and /state. Empty: none."`
	TLSCert               string        `name:"tls-cert-file" placeholder:"FILE" help:"Certificate of KEDA's port, in PEM form. Read again when it changes, as are the two below. Empty: plaintext."`
	TLSKey                string        `name:"tls-private-key-file" placeholder:"FILE" help:"Its key."`
	ClientCA              string        `name:"client-ca-file" placeholder:"FILE" help:"CA whose client certificates are let in; all others are not. Empty: clients need none."`
	Profiles              string        `placeholder:"DIR" help:"Folder with further profiles, reloaded when they change."`
	StaleAfter            time.Duration `default:"10s" help:"Age from which a reading is no data."`
	AttributionStaleAfter time.Duration `default:"2m" help:"Age from which what the kubelet and the API server told of a workload's pods is no data."`
	Tolerance             float64       `default:"0.1" help:"The HPA's: how far from 1 the ratio of mean and target may be with nothing done."`
	NodeName              string        `help:"Name of this node, as Kubernetes has it. Default: the host's."`

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
	log := c.logger(os.Stderr)
	node := fleet.NewLocal(c.NodeName, c.StaleAfter, log, time.Now())
	store, err := profiles.NewStore(c.Profiles, log)
	if err != nil {
		return err
	}
	ready := func(now time.Time) error { return node.Node().Ready(now, c.StaleAfter) }
	service := externalscaler.NewService(fleet.New(node), store, c.StaleAfter, log)

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
	withAPI, err := c.useKubernetes(service, node, log)
	if err != nil {
		return err
	}
	run = append(run, withAPI...)
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

// useKubernetes adds what needs the Kubernetes API, if there is one to be used.
func (c *serveCommand) useKubernetes(service *externalscaler.Service, node *fleet.Local, log *slog.Logger) (run []func(context.Context) error, err error) {
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
	recorder, err := events.New(config, c.NodeName, log)
	if err != nil {
		return nil, err
	}
	service.TellRefusals(recorder)
	log.Info("bad metadata is told by events on the ScaledObject", "kubernetes", config.Host)
	if c.Workloads == "off" {
		return []func(context.Context) error{recorder.Run}, nil
	}
	workloads, err := workload.New(config, log)
	if err != nil {
		return nil, err
	}
	service.UseWorkloads(workloads, evaluate.Limits{
		StaleAfter: c.StaleAfter, AttributionStaleAfter: c.AttributionStaleAfter, Tolerance: c.Tolerance,
	})
	watch, err := pods.New(config, c.NodeName, node, workloads, log)
	if err != nil {
		return nil, err
	}
	claims, err := resourceslices.New(config, c.NodeName, node, log)
	if err != nil {
		return nil, err
	}
	return []func(context.Context) error{recorder.Run, workloads.Run, watch.Run, claims.Run}, nil
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
		Path: c.NVMLSocket, UIDs: c.uids(), FrameTimeout: c.StaleAfter, Log: log,
		Connect: func(uid int) ingest.Sink { return c.role(uid, node.Connect()) },
	})
	if err != nil {
		return nil, err
	}
	log.Info("listening for readers", "socket", c.NVMLSocket, "uids", c.uids())
	return l.Run, nil
}

// uids are the users whose readers are accepted; none are all.
func (c *serveCommand) uids() (uids []int) {
	if c.NVMLUID < 0 {
		return nil
	}
	if uids = []int{c.NVMLUID}; c.PodResourcesUID >= 0 {
		uids = append(uids, c.PodResourcesUID)
	}
	return uids
}

// role is what a user's readers may say: those of --nvml-uid what devices there
// are, those of --podresources-uid which pods hold them.
func (c *serveCommand) role(uid int, to ingest.Sink) ingest.Sink {
	if c.NVMLUID < 0 || c.NVMLUID == c.PodResourcesUID {
		return to
	}
	return &limited{to, uid == c.NVMLUID, uid == c.PodResourcesUID}
}

// limited refuses what its writer has no business to say.
type limited struct {
	ingest.Sink
	devices, allocation bool
}

// Apply hands a sample on.
func (l *limited) Apply(s *snapshot.Sample, now time.Time) error {
	if len(s.Devices) > 0 && !l.devices {
		return fmt.Errorf("this user's readers may not report devices: it is not --nvml-uid")
	}
	if s.Allocation != nil && !l.allocation {
		return fmt.Errorf("this user's readers may not say which pods hold devices: it is not --podresources-uid")
	}
	return l.Sink.Apply(s, now)
}
