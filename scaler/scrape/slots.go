package scrape

import (
	"context"
	"sync"
)

const (
	// atOnce is how many pages are read at the same time, ofNamespace how many of one
	// namespace's pods: those that hang take the time of their own namespace alone.
	atOnce      = 16
	ofNamespace = 4
)

// Slots bound how many pages are read at the same time. Its methods may be called
// concurrently.
type Slots struct {
	all chan struct{}

	mu         sync.Mutex
	namespaces map[string]*places
}

// places are those of one namespace.
type places struct {
	taken chan struct{}
	users int // that have one or wait for one
}

// NewSlots makes some that are all free.
func NewSlots() *Slots {
	return &Slots{all: make(chan struct{}, atOnce), namespaces: map[string]*places{}}
}

// Take waits for a slot for a pod of a namespace. Who got one calls free; ok is false when
// ctx is done.
func (s *Slots) Take(ctx context.Context, namespace string) (free func(), ok bool) {
	s.mu.Lock()
	p := s.namespaces[namespace]
	if p == nil {
		p = &places{taken: make(chan struct{}, ofNamespace)}
		s.namespaces[namespace] = p
	}
	p.users++
	s.mu.Unlock()
	leave := func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if p.users--; p.users == 0 {
			delete(s.namespaces, namespace)
		}
	}
	select {
	case p.taken <- struct{}{}:
	case <-ctx.Done():
		leave()
		return nil, false
	}
	select {
	case s.all <- struct{}{}:
	case <-ctx.Done():
		<-p.taken
		leave()
		return nil, false
	}
	return func() {
		<-s.all
		<-p.taken
		leave()
	}, true
}
