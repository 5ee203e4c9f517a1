package externalscaler

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	pb "github.com/kedacore/keda/v2/pkg/scalers/externalscaler"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
)

const (
	// connectionAge makes KEDA, which keeps one connection per address for
	// ever, look for new pods now and then.
	connectionAge = 5 * time.Minute
	// connectionGrace is how long a connection that is too old may keep its
	// streams.
	connectionGrace = 15 * time.Minute
	// stopGrace bounds what a shutdown waits for calls in progress.
	stopGrace = 3 * time.Second
	// healthPeriod is how often staleness is looked at for gRPC health.
	healthPeriod = 500 * time.Millisecond
	// maxRequest leaves room for metadata that is too large to be told so.
	maxRequest = 2 << 20
	// liveness is the gRPC health service that says only that the process
	// works: a scaler without fresh data must not be restarted for it.
	liveness = "liveness"
)

// Server is KEDA's service with gRPC health and reflection on one port.
type Server struct {
	service *Service
	grpc    *grpc.Server
	health  *health.Server
	// ready says why the data cannot be served, or nil.
	ready func(now time.Time) error
	log   *slog.Logger
}

// NewServer makes a server around a service; ready decides gRPC health. Without
// secure it is plaintext.
func NewServer(service *Service, ready func(now time.Time) error, secure *tls.Config, log *slog.Logger) *Server {
	s := &Server{service: service, health: health.NewServer(), ready: ready, log: log}
	options := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxRequest),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionAge:      connectionAge,
			MaxConnectionAgeGrace: connectionGrace,
			Time:                  time.Minute,
			Timeout:               20 * time.Second,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
	}
	if secure != nil {
		options = append(options, grpc.Creds(credentials.NewTLS(secure)))
	}
	s.grpc = grpc.NewServer(options...)
	pb.RegisterExternalScalerServer(s.grpc, service)
	healthpb.RegisterHealthServer(s.grpc, s.health)
	reflection.Register(s.grpc)
	s.health.SetServingStatus(liveness, healthpb.HealthCheckResponse_SERVING)
	s.updateHealth()
	return s
}

// Run serves on l until ctx is done, then ends streams cleanly, lets calls
// finish, and returns nil. It closes l.
func (s *Server) Run(ctx context.Context, l net.Listener) error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.watch(ctx)
		s.shutdown()
	}()
	// ErrServerStopped: ctx was done before serving began.
	if err := s.grpc.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serving gRPC: %w", err)
	}
	<-done
	return nil
}

// watch keeps gRPC health up to date until ctx is done.
func (s *Server) watch(ctx context.Context) {
	tick := time.NewTicker(healthPeriod)
	defer tick.Stop()
	for {
		updated := s.service.fleet.Updated()
		s.updateHealth()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-updated:
		}
	}
}

func (s *Server) updateHealth() {
	state := healthpb.HealthCheckResponse_SERVING
	if s.ready(time.Now()) != nil {
		state = healthpb.HealthCheckResponse_NOT_SERVING
	}
	s.health.SetServingStatus("", state)
	s.health.SetServingStatus(pb.ExternalScaler_ServiceDesc.ServiceName, state)
}

func (s *Server) shutdown() {
	s.health.Shutdown()
	s.service.Stop()
	late := time.AfterFunc(stopGrace, func() {
		s.log.Warn("calls did not end in time, closing their connections", "after", stopGrace)
		s.grpc.Stop()
	})
	defer late.Stop()
	s.grpc.GracefulStop()
}
