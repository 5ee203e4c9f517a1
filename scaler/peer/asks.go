package peer

import (
	"context"
	"errors"
	"io"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v4"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"gpuscaler/scaler/demand"
	"gpuscaler/scaler/fleet"
	pb "gpuscaler/scaler/peer/peerpb"
	"gpuscaler/scaler/terms"
)

// askAgain is how soon a peer is asked again whose version reads no engines.
const askAgain = time.Minute

// Board is where it is known which engines are wanted.
type Board interface {
	// Of are the engines of a node that this scaler's triggers want.
	Of(node string) []demand.Ask
	// Updated is closed at the next change of Of.
	Updated() <-chan struct{}
	// Join takes in a peer that wants engines of this scaler's node.
	Join() *demand.Peer
}

// Ask reads the engines that a peer wants, for as long as the stream is open.
func (s *Server) Ask(stream grpc.ClientStreamingServer[pb.Asks, pb.AskResponse]) error {
	if s.board == nil {
		return status.Error(codes.Unimplemented, "no engines are read here (--engines=off)")
	}
	select {
	case s.asking <- struct{}{}:
		defer func() { <-s.asking }()
	default:
		return status.Errorf(codes.ResourceExhausted, "%d streams are open, and no more are allowed", mostStreams)
	}
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	asked := make(chan []demand.Ask)
	failed := make(chan error, 1)
	go func() {
		failed <- receive(ctx, stream, asked)
	}()
	p := s.board.Join()
	defer p.Leave()
	for {
		select {
		case asks := <-asked:
			p.Ask(asks)
		case err := <-failed:
			if errors.Is(err, io.EOF) {
				return stream.SendAndClose(&pb.AskResponse{})
			}
			return err
		case <-s.stopping:
			return status.Error(codes.Unavailable, "this scaler ends")
		}
	}
}

// receive hands on what a peer wants, until the stream ends, which Ask does by
// returning.
func receive(ctx context.Context, stream grpc.ClientStreamingServer[pb.Asks, pb.AskResponse], to chan<- []demand.Ask) error {
	for {
		in, err := stream.Recv()
		if err != nil {
			return err
		}
		asks, err := wants(in)
		if err != nil {
			return err
		}
		select {
		case to <- asks:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// wants are the engines that a message asks for. Nothing in it is believed.
func wants(in *pb.Asks) (asks []demand.Ask, err error) {
	if len(in.GetAsks()) > demand.MostAsks {
		return nil, status.Errorf(codes.InvalidArgument, "%d engines are asked for; at most %d are allowed", len(in.GetAsks()), demand.MostAsks)
	}
	for _, a := range in.GetAsks() {
		q := a.GetQuantile()
		if len(a.GetUid()) > mostID || a.GetPort() > 65535 || !(q >= 0 && q < 1) || a.GetPath() != "" && terms.CheckPath(a.GetPath()) != nil {
			return nil, status.Errorf(codes.InvalidArgument, "no engine can be asked for by UID %s, port %d, path %s, quantile %v", terms.Quote(a.GetUid()), a.GetPort(), terms.Quote(a.GetPath()), q)
		}
		if a.GetEngine() != "" && !slices.Contains(terms.Engines, a.GetEngine()) {
			continue // a newer version's: it is told that nothing is read
		}
		asks = append(asks, demand.Ask{
			EngineKey: fleet.EngineKey{UID: a.GetUid(), Engine: a.GetEngine(), Port: int(a.GetPort()), Path: a.GetPath()}, Quantile: q,
		})
	}
	return asks, nil
}

// ask asks a peer for the engines of its node that are wanted, until ctx is done. There
// is no stream while none are.
func (m *Mesh) ask(ctx context.Context, conn *grpc.ClientConn, node string) {
	retry := backoff.NewExponentialBackOff(backoff.WithInitialInterval(firstRetry), backoff.WithMaxInterval(lastRetry), backoff.WithMaxElapsedTime(0))
	for {
		updated := m.o.Board.Updated()
		if len(m.o.Board.Of(node)) == 0 {
			select {
			case <-ctx.Done():
				return
			case <-updated:
			}
			continue
		}
		began := time.Now()
		err := m.askFor(ctx, conn, node)
		wait := retry.NextBackOff()
		switch {
		case ctx.Err() != nil:
			return
		case status.Code(err) == codes.Unimplemented:
			m.o.Log.Warn("peer does not read the engines of its pods: triggers on engine metrics miss those", "node", node, "error", status.Convert(err).Message())
			wait = askAgain
		case time.Since(began) > lastRetry:
			retry.Reset()
			wait = firstRetry
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// askFor holds one stream until nothing is wanted or it ends.
func (m *Mesh) askFor(ctx context.Context, conn *grpc.ClientConn, node string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := pb.NewPeersClient(conn).Ask(ctx)
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { // ends with the stream, which cancel ends
		ended <- stream.RecvMsg(&pb.AskResponse{})
	}()
	var told []demand.Ask
	for {
		updated := m.o.Board.Updated()
		asks := m.o.Board.Of(node)
		if len(asks) == 0 {
			return stream.CloseSend()
		}
		if !slices.Equal(asks, told) {
			out := &pb.Asks{}
			for _, a := range asks {
				out.Asks = append(out.Asks, &pb.Ask{Uid: a.UID, Engine: a.Engine, Port: uint32(a.Port), Path: a.Path, Quantile: a.Quantile}) //nolint:gosec // a port
			}
			if err := stream.Send(out); err != nil && !errors.Is(err, io.EOF) { // EOF: ended says why
				return err
			}
			told = asks
		}
		select {
		case err := <-ended:
			return err
		case <-updated:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
