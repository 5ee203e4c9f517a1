package cluster

import (
	"context"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Service is what kube-proxy makes of a Service: an address that leads to one of its ready
// pods, and that refuses connections while there is none.
type Service struct {
	// Address is a host and port of loopback.
	Address string

	w    *Workload
	stop context.CancelFunc
	all  sync.WaitGroup

	mu       sync.Mutex
	listener net.Listener
	open     map[net.Conn]struct{}
}

// Serve leads an address to the workload's pods, at EnginePort.
func (w *Workload) Serve() (*Service, error) {
	free, err := freeEndpoints(1)
	if err != nil {
		return nil, err
	}
	ctx, stop := context.WithCancel(context.Background())
	s := &Service{Address: free[0].String(), w: w, stop: stop, open: map[net.Conn]struct{}{}}
	s.all.Go(func() { s.run(ctx) })
	return s, nil
}

// Stop refuses connections from now on, and breaks off those that there are.
func (s *Service) Stop() {
	s.stop()
	s.mu.Lock()
	for c := range s.open {
		_ = c.Close()
	}
	s.mu.Unlock()
	s.all.Wait()
}

// run listens while there is a ready pod.
func (s *Service) run(ctx context.Context) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	defer s.listen(ctx, false)
	for {
		s.listen(ctx, len(s.ready(ctx)) > 0)
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (s *Service) listen(ctx context.Context, yes bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case yes == (s.listener != nil):
	case !yes:
		_ = s.listener.Close()
		s.listener = nil
	default:
		l, err := net.Listen("tcp", s.Address)
		if err != nil {
			return // the next time
		}
		s.listener = l
		s.all.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				s.all.Go(func() { s.lead(ctx, c) })
			}
		})
	}
}

// lead leads a connection to one of the pods.
func (s *Service) lead(ctx context.Context, from net.Conn) {
	defer func() { _ = from.Close() }()
	for _, address := range s.ready(ctx) {
		to, err := net.DialTimeout("tcp", address, time.Second)
		if err != nil {
			continue // it has just ended
		}
		s.both(from, to)
		return
	}
}

func (s *Service) both(from, to net.Conn) {
	s.mu.Lock()
	s.open[from], s.open[to] = struct{}{}, struct{}{}
	s.mu.Unlock()
	var all sync.WaitGroup
	for _, pair := range [][2]net.Conn{{from, to}, {to, from}} {
		all.Go(func() {
			_, _ = io.Copy(pair[1], pair[0])
			_ = pair[0].Close()
			_ = pair[1].Close()
		})
	}
	all.Wait()
	s.mu.Lock()
	delete(s.open, from)
	delete(s.open, to)
	s.mu.Unlock()
}

// ready are the addresses of the ready pods, in an order by chance.
func (s *Service) ready(ctx context.Context) (all []string) {
	pods := &corev1.PodList{}
	if s.w.c.watched.List(ctx, pods, client.InNamespace(s.w.Namespace), client.MatchingLabels{"app": s.w.Name}) != nil {
		return nil
	}
	for i := range pods.Items {
		if p := &pods.Items[i]; Serves(p) && p.Status.PodIP != "" {
			all = append(all, net.JoinHostPort(p.Status.PodIP, "8000"))
		}
	}
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all
}
