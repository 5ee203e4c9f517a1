// Package peer tells other scalers of this one's node, and hears of theirs: one
// gRPC stream from each, on which the newest state is sent every few seconds. It
// must not know what is done with it.
package peer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"gpuscaler/scaler/fleet"
	pb "gpuscaler/scaler/peer/peerpb"
)

const (
	// Pings find out about the other side of a connection that is half open.
	pingEvery   = 10 * time.Second
	pingTimeout = 5 * time.Second
	// lifetime is that of a stream, less up to a fifth at random. The clocks of two
	// nodes drift apart, which looks like delay, by no more than a second in it.
	lifetime = 30 * time.Minute
	// soonest is how soon after a message another may follow, if pods changed.
	soonest = 200 * time.Millisecond
	// mostStreams is how many a server has at once.
	mostStreams = 512
	// mostRequest is how large a request may be, in bytes: demand.MostAsks with the longest
	// paths.
	mostRequest = 96 << 10
)

// Own is where the node is known that a server tells of.
type Own interface {
	Own() *fleet.Node
	// Before is another one by its name, as it was before its scaler started with a boot
	// number; nil where that is not known.
	Before(name string, boot uint64) *fleet.Node
	// Updated is closed at the next change.
	Updated() <-chan struct{}
}

// Server tells peers of this scaler's own node.
type Server struct {
	pb.UnimplementedPeersServer
	own      Own
	board    Board // nil: no engines are read
	version  string
	interval time.Duration
	log      *slog.Logger
	grpc     *grpc.Server
	stopping chan struct{}
	streams  chan struct{} // a token each
	asking   chan struct{} // likewise, of Ask
}

// NewServer makes a server that tells of the node every interval, and has the engines
// read that peers ask for, unless board is nil. Without credentials it is plaintext.
func NewServer(own Own, board Board, version string, interval time.Duration, secure credentials.TransportCredentials, log *slog.Logger) *Server {
	s := &Server{
		own: own, board: board, version: version, interval: interval, log: log,
		stopping: make(chan struct{}), streams: make(chan struct{}, mostStreams), asking: make(chan struct{}, mostStreams),
	}
	options := []grpc.ServerOption{
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time: pingEvery, Timeout: pingTimeout,
			// New streams come with a new handshake, and so with certificates that are in use.
			MaxConnectionAge: lifetime, MaxConnectionAgeGrace: lifetime,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: pingEvery / 2, PermitWithoutStream: true}),
		grpc.MaxRecvMsgSize(mostRequest), grpc.MaxConcurrentStreams(8), grpc.ConnectionTimeout(pingTimeout),
	}
	if secure != nil {
		options = append(options, grpc.Creds(secure))
	}
	s.grpc = grpc.NewServer(options...)
	pb.RegisterPeersServer(s.grpc, s)
	return s
}

// Run serves on l until ctx is done, and closes it.
func (s *Server) Run(ctx context.Context, l net.Listener) error {
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		close(s.stopping)
		late := time.AfterFunc(time.Second, s.grpc.Stop)
		defer late.Stop()
		s.grpc.GracefulStop()
	})
	defer stop()
	if err := s.grpc.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("serving peers: %w", err)
	}
	<-done
	return nil
}

// Watch sends the node's state: at once, every interval, and when its pods have
// changed. Who reads slowly gets the newest, and not all.
func (s *Server) Watch(r *pb.WatchRequest, stream grpc.ServerStreamingServer[pb.State]) error {
	select {
	case s.streams <- struct{}{}:
		defer func() { <-s.streams }()
	default:
		return status.Errorf(codes.ResourceExhausted, "%d streams are open, and no more are allowed", mostStreams)
	}
	s.log.Debug("peer listens", "name", r.GetName(), "version", r.GetVersion())
	defer s.log.Debug("peer has gone", "name", r.GetName())
	old := time.NewTimer(lifetime - rand.N(lifetime/5)) //nolint:gosec // jitter
	defer old.Stop()
	tick := time.NewTicker(s.interval)
	defer tick.Stop()
	e := &encoder{version: s.version, start: time.Now()}
	var sent time.Time
	for due := true; ; {
		updated := s.own.Updated()
		n, now := s.own.Own(), time.Now()
		if due || e.podsChanged(n) && now.Sub(sent) >= soonest {
			state := e.encode(n, now)
			if sent.IsZero() && r.GetName() != n.Name {
				state.Recalled = recalled(s.own.Before(r.GetName(), r.GetBoot()), now)
			}
			if err := stream.Send(state); err != nil {
				return err
			}
			sent, due = now, false
		}
		select {
		case <-updated:
		case <-tick.C:
			due = true
		case <-old.C:
			return nil
		case <-s.stopping:
			return nil
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}
