package peer

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v4"
	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"gpuscaler/scaler/fleet"
	pb "gpuscaler/scaler/peer/peerpb"
	"gpuscaler/scaler/terms"
)

const (
	// idle is for how long peers are listened to after somebody asked.
	idle = 10 * time.Minute
	// settling is the longest that it may take, after the first question, until all
	// peers have been heard or could not be.
	settling = 30 * time.Second
	// A stream that broke is opened again so soon, at first and at last.
	firstRetry = 200 * time.Millisecond
	lastRetry  = 5 * time.Second
	// lookAgain is the longest wait while there is no connection. gRPC has a pace of
	// its own to make one; two that wait for each other would take 13 s.
	lookAgain = time.Second
	// ownRetry is how soon an address is tried again that was this scaler's own.
	ownRetry = time.Minute
	// connecting is how many connections are made at once.
	connecting = 128
	// breath is between two messages of a stream.
	breath = 20 * time.Millisecond
	// mostState is how large a message may be, in bytes. A node of 8 GPUs with 7 MIG
	// instances each needs some 40 KiB.
	mostState = 1 << 20
	// Buffers of a connection, in bytes: there are thousands of them, with a
	// message of some KiB every few seconds.
	readBuffer  = 2 << 10
	writeBuffer = 1 << 10
	// departed is how long a node is remembered whose peer has left, sweep how often
	// that is looked at.
	departed = 30 * time.Second
	sweep    = 10 * time.Second
)

// Discovery finds peers.
type Discovery interface {
	// Run tells of all peers each time that they change, until ctx is done: by host
	// and port the name of the node that each is on, or host and port again where
	// that is not known. An error ends it for good.
	Run(ctx context.Context, found func(peers map[string]string)) error
}

// address is where a peer listens.
type address struct{ target, name string }

// Listener is told which pods came, went or changed their readiness. It must not
// wait.
type Listener interface {
	PodsChanged(changed []fleet.Pod)
}

// Options say how peers are listened to.
type Options struct {
	Fleet     *fleet.Fleet
	Discovery Discovery
	// Listener may be nil.
	Listener Listener
	// Board is where it is known which engines of peers' nodes are wanted; nil: none are.
	Board Board
	// Secure are the credentials of connections to peers; nil is plaintext.
	Secure credentials.TransportCredentials
	// Name and Version are those of this scaler, for the logs of others.
	Name, Version string
	Log           *slog.Logger
}

// Mesh listens to all peers while somebody asks.
type Mesh struct {
	o          Options
	began      time.Time
	asked      atomic.Int64 // when somebody did, after began; 0: never
	wake       chan struct{}
	opened     atomic.Int64 // when the streams were, after began; 0: they are not
	discovered atomic.Bool
	slots      chan struct{} // of connecting
	idle       time.Duration // see idle
	sweep      time.Duration // see sweep
}

// NewMesh makes a mesh. It connects to nobody before somebody asks.
func NewMesh(o Options) *Mesh {
	return &Mesh{o: o, began: time.Now(), wake: make(chan struct{}, 1), slots: make(chan struct{}, connecting), idle: idle, sweep: sweep}
}

// Asked says that somebody wants to know of other nodes. It does not wait.
func (m *Mesh) Asked() {
	now := int64(time.Since(m.began)) + 1
	// Once in a while is often enough: this is on the way of each call.
	if last := m.asked.Load(); last != 0 && now-last < int64(time.Second) {
		return
	}
	m.asked.Store(now)
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// Settled says whether each peer has been heard or could not be: else what is
// missing may be there in a moment.
func (m *Mesh) Settled() bool {
	opened := m.opened.Load()
	if opened == 0 {
		return false
	}
	if !m.discovered.Load() {
		return false
	}
	return m.o.Fleet.Waiting() == 0 || time.Since(m.began)-time.Duration(opened) >= settling
}

// Ready says why nothing can be answered for lack of peers, or nil. Who has not
// been asked yet, or has just begun to listen, or has no peers, is ready.
func (m *Mesh) Ready(now time.Time, staleAfter time.Duration) error {
	if m.opened.Load() == 0 || !m.Settled() {
		return nil
	}
	nodes, unheard := m.o.Fleet.Nodes(), m.o.Fleet.Unheard()
	for _, n := range nodes {
		if now.Sub(n.Heard) <= staleAfter {
			return nil
		}
	}
	if len(nodes)+len(unheard) == 0 {
		return nil
	}
	return fmt.Errorf("nothing heard for %s from any of %d peers", staleAfter, len(nodes)+len(unheard))
}

// Run listens to peers, while somebody asks, until ctx is done.
func (m *Mesh) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.wake:
		}
		if err := m.listen(ctx); err != nil {
			return err
		}
	}
}

// listen listens to all peers until nobody has asked for a while.
func (m *Mesh) listen(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var streams sync.WaitGroup
	defer func() {
		cancel()
		streams.Wait()
		m.opened.Store(0)
		m.discovered.Store(false)
		m.o.Fleet.Forget(time.Now().Add(longest), 0)
	}()
	m.opened.Store(int64(time.Since(m.began)) + 1)
	m.o.Log.Info("listening to peers", "for", m.idle)
	known := map[address]context.CancelFunc{}
	found := make(chan map[string]string)
	failed := make(chan error, 1)
	streams.Go(func() {
		failed <- m.o.Discovery.Run(ctx, func(all map[string]string) {
			select {
			case found <- all:
			case <-ctx.Done():
			}
		})
	})
	tick := time.NewTicker(m.sweep)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-failed:
			if err != nil {
				return fmt.Errorf("finding peers: %w", err)
			}
			failed = nil // what it found stays
		case all := <-found:
			m.follow(ctx, &streams, known, all)
			// Who has a node is a peer itself: none at all are not the right ones.
			m.discovered.Store(len(all) > 0 || m.o.Fleet.Own() == nil)
			if !m.discovered.Load() {
				m.o.Log.Warn("no peers are found, not even this scaler")
			}
		case <-m.wake:
		case <-tick.C:
			m.o.Fleet.Forget(time.Now(), departed)
			if time.Since(m.began)-time.Duration(m.asked.Load()) >= m.idle {
				m.o.Log.Info("nobody asks: no longer listening to peers", "for", m.idle)
				return nil
			}
		}
	}
}

// follow opens streams to new peers and ends those to peers that are no more.
func (m *Mesh) follow(ctx context.Context, streams *sync.WaitGroup, known map[address]context.CancelFunc, all map[string]string) {
	came, went := 0, 0
	for a, stop := range known {
		if name, still := all[a.target]; !still || name != a.name {
			stop()
			delete(known, a)
			went++
		}
	}
	for target, name := range all {
		a := address{target, name}
		if own := m.o.Fleet.Own(); known[a] != nil || own != nil && own.Name == name {
			continue
		}
		came++
		of, stop := context.WithCancel(ctx)
		known[a] = stop
		peer := m.o.Fleet.Join(a.name) // now, so that it is missed at once
		streams.Go(func() {
			defer peer.Leave()
			m.watch(of, a, peer)
		})
	}
	if came+went > 0 {
		m.o.Log.Info("peers changed", "came", came, "went", went, "peers", len(known))
	}
}

// watch listens to one peer until ctx is done.
func (m *Mesh) watch(ctx context.Context, a address, peer *fleet.Peer) {
	secure := m.o.Secure
	if secure == nil {
		secure = insecure.NewCredentials()
	}
	conn, err := grpc.NewClient("passthrough:///"+a.target,
		grpc.WithTransportCredentials(secure), grpc.WithNoProxy(), grpc.WithDisableServiceConfig(), grpc.WithIdleTimeout(0),
		grpc.WithReadBufferSize(readBuffer), grpc.WithWriteBufferSize(writeBuffer),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(mostState)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingEvery, Timeout: pingTimeout}),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: lastRetry, Backoff: grpcbackoff.Config{
			BaseDelay: firstRetry, Multiplier: 1.6, Jitter: 0.2, MaxDelay: lastRetry,
		}}))
	if err != nil {
		m.o.Log.Error("peer's address", "peer", a.name, "target", a.target, "error", err)
		return
	}
	defer func() { _ = conn.Close() }()
	retry := backoff.NewExponentialBackOff(backoff.WithInitialInterval(firstRetry), backoff.WithMaxInterval(lastRetry), backoff.WithMaxElapsedTime(0))
	told := "" // the last trouble
	for {
		heard, err := m.stream(ctx, conn, a, peer)
		peer.Silent()
		if ctx.Err() != nil {
			return
		}
		wait := retry.NextBackOff()
		switch {
		case errors.Is(err, fleet.ErrOwn):
			peer.Leave()
			wait = ownRetry
		case errors.Is(err, io.EOF): // its time was over
			retry.Reset()
			wait = firstRetry
		case heard:
			retry.Reset()
			wait = retry.NextBackOff()
			fallthrough
		default:
			if heard || told != err.Error() {
				m.o.Log.Warn("peer is not heard", "peer", a.name, "target", a.target, "error", err)
			}
			told = err.Error()
			if conn.GetState() != connectivity.Ready {
				wait = min(wait, lookAgain)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
	}
}

// stream hears one stream to its end, and says whether it told of anything.
func (m *Mesh) stream(ctx context.Context, conn *grpc.ClientConn, a address, peer *fleet.Peer) (heard bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	select {
	case m.slots <- struct{}{}:
	case <-ctx.Done():
		return false, ctx.Err()
	}
	free := sync.OnceFunc(func() { <-m.slots })
	defer free()
	request := &pb.WatchRequest{Name: m.o.Name, Version: m.o.Version}
	if own := m.o.Fleet.Own(); own != nil {
		request.Boot = own.Boot
	}
	stream, err := pb.NewPeersClient(conn).Watch(ctx, request)
	if err != nil {
		return false, err
	}
	var asking sync.WaitGroup // ends with ctx, and both with this stream
	defer asking.Wait()
	defer cancel()
	d := &decoder{}
	for {
		state, err := stream.Recv()
		free()
		if err != nil {
			return heard, err
		}
		n, err := d.decode(state, time.Now())
		if err != nil {
			return heard, fmt.Errorf("what it says makes no sense: %w", err)
		}
		if a.name != a.target && a.name != n.Name { // Kubernetes knows where it is
			return heard, fmt.Errorf("it says that it is on node %s", terms.Quote(n.Name))
		}
		if len(state.GetRecalled()) > 0 {
			m.o.Fleet.Recall(recall(state.GetRecalled(), d.layout.GetWindows()))
		}
		before, taken, err := peer.Apply(n)
		if err != nil {
			return heard, err
		}
		if !heard {
			m.o.Log.Debug("peer is heard", "peer", a.name, "node", n.Name)
			if m.o.Board != nil {
				asking.Go(func() { m.ask(ctx, conn, n.Name) })
			}
		}
		heard = true
		if taken && m.o.Listener != nil && state.GetLayout() != nil {
			if changed := changes(before, n); len(changed) > 0 {
				m.o.Listener.PodsChanged(changed)
			}
		}
		select { // who talks much is heard less
		case <-ctx.Done():
			return heard, ctx.Err()
		case <-time.After(breath):
		}
	}
}

// changes are the pods that came, went or changed their readiness.
func changes(before, after *fleet.Node) (changed []fleet.Pod) {
	var was []*fleet.Pod
	if before != nil {
		was = before.Pods
	}
	for _, p := range after.Pods {
		i := slices.IndexFunc(was, func(b *fleet.Pod) bool { return b.UID == p.UID })
		if i < 0 || was[i].Ready != p.Ready || was[i].Terminating != p.Terminating {
			changed = append(changed, *p)
		}
	}
	for _, b := range was {
		if after.Pod(b.UID) == nil {
			changed = append(changed, *b)
		}
	}
	return changed
}
