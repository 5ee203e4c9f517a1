package externalscaler

import (
	"math/rand/v2"
	"time"

	pb "github.com/kedacore/keda/v2/pkg/scalers/externalscaler"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// StreamIsActive sends the state at once, at every change, and true again at
// each heartbeat, because KEDA drops some. While data is missing it sends
// nothing. It ends cleanly when the server stops or the stream is old.
func (s *Service) StreamIsActive(ref *pb.ScaledObjectRef, stream grpc.ServerStreamingServer[pb.IsActiveResponse]) error {
	changed := s.profiles.Changed()
	t, err := s.trigger(ref)
	if err != nil {
		return err
	}
	heartbeat := time.NewTicker(t.PollInterval)
	defer heartbeat.Stop()
	old := time.NewTimer(lifetime())
	defer old.Stop()
	sent, last, beat := false, false, false
	for {
		s.asked()
		updated := s.fleet.Updated() // taken before the data: no change is missed
		queue := s.queueUpdated(&t)
		active, err := s.active(&t, ref)
		if err == nil && (!sent || active != last || (active && beat)) {
			if err := stream.Send(&pb.IsActiveResponse{Result: active}); err != nil {
				return err
			}
			sent, last = true, active
		}
		beat = false
		select {
		case <-updated:
		case <-queue:
		case <-changed:
			changed = s.profiles.Changed()
			if t, err = s.trigger(ref); err != nil {
				return err
			}
		case <-heartbeat.C:
			beat = true
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-old.C:
			return nil
		case <-s.stopping:
			return nil
		}
	}
}

// StreamMetricSpec sends the spec at once and again when a profile changed it.
func (s *Service) StreamMetricSpec(ref *pb.ScaledObjectRef, stream grpc.ServerStreamingServer[pb.GetMetricSpecResponse]) error {
	var last *pb.GetMetricSpecResponse
	old := time.NewTimer(lifetime())
	defer old.Stop()
	for {
		changed := s.profiles.Changed()
		t, err := s.trigger(ref)
		if err != nil {
			return err
		}
		if now := spec(&t); !proto.Equal(now, last) {
			if err := stream.Send(now); err != nil {
				return err
			}
			last = now
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-old.C:
			return nil
		case <-s.stopping:
			return nil
		}
	}
}

// lifetime is how long a stream lives: within the grace that an ageing
// connection has, so that it ends by our hand (KEDA reopens it after 2 s) and
// never by a reset, and spread so that not all end at once.
func lifetime() time.Duration {
	return connectionGrace - time.Duration(rand.Int64N(int64(connectionGrace/4))) - time.Minute //nolint:gosec // jitter
}
