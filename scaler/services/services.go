// Package services reads one metric of the pods behind a Service, over HTTP, twice a second,
// and of those alone that a trigger asks for. Which pods these are says the Service's own
// selector: addresses that somebody wrote by hand are never read. It must not know what is
// decided by the figures.
package services

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"k8s.io/client-go/rest"

	"gpuscaler/scaler/evaluate"
	"gpuscaler/scaler/scrape"
	"gpuscaler/scaler/trigger"
)

const (
	// interval is how often a pod is read: the first request is heard within it.
	interval = 500 * time.Millisecond
	// timeout is the longest that one answer may take.
	timeout = 2 * time.Second
	// period is how often it is asked which pods a Service has. After a pod could not be
	// read it is at once, and then as often as before by and by.
	period = 5 * time.Second
	// wanted is for how long a Service is read after somebody asked.
	wanted = 5 * time.Minute
	// mostServices and mostOfNamespace bound what is read for names that anyone can make up,
	// mostPods the pods of one Service.
	mostServices    = 256
	mostOfNamespace = 16
	mostPods        = 32
)

// Reader reads Services. Its methods may be called concurrently.
type Reader struct {
	api   *api
	log   *slog.Logger
	stale time.Duration // from when on what a pod told is too old
	held  time.Duration // for how long the pods are taken for those that there were, while the API server is silent
	slots *scrape.Slots
	large scrape.Large
	// parsing has one answer parsed at a time: decoded, a hostile one takes some MiB.
	parsing sync.Mutex
	wake    chan struct{}

	mu      sync.Mutex
	sources map[key]*source
	updated chan struct{}
}

// key tells what is read from what else is.
type key struct {
	namespace string
	trigger.Service
}

// source is one Service that is read.
type source struct {
	asked   time.Time // guarded by Reader.mu
	running bool      // likewise
	stop    context.CancelFunc
	queue   atomic.Pointer[evaluate.Queue]
}

// New makes a reader. It asks nobody anything before somebody asks it. What pods told is
// good for stale, which pods there are for held.
func New(config *rest.Config, stale, held time.Duration, log *slog.Logger) (*Reader, error) {
	a, err := newAPI(config)
	if err != nil {
		return nil, err
	}
	return &Reader{
		api: a, log: log, stale: stale, held: held, slots: scrape.NewSlots(), large: scrape.NewLarge(),
		wake: make(chan struct{}, 1), sources: map[key]*source{}, updated: make(chan struct{}),
	}, nil
}

// Queue is what is known of a Service of a namespace, which is read from now on; nil: nothing
// has been read yet. It does not wait.
func (r *Reader) Queue(namespace string, s trigger.Service) *evaluate.Queue {
	k := key{namespace, s}
	r.mu.Lock()
	defer r.mu.Unlock()
	one := r.sources[k]
	if one == nil {
		ofNamespace := 0
		for other := range r.sources {
			if other.namespace == namespace {
				ofNamespace++
			}
		}
		if len(r.sources) >= mostServices || ofNamespace >= mostOfNamespace {
			return &evaluate.Queue{Failure: fail(evaluate.Unavailable, "service: %d Services are read already, %d of them of namespace %s; so many more are not read", len(r.sources), ofNamespace, namespace)}
		}
		one = &source{}
		r.sources[k] = one
		select {
		case r.wake <- struct{}{}:
		default:
		}
	}
	one.asked = time.Now()
	return one.queue.Load()
}

// Updated is closed at the next change of what some Service tells.
func (r *Reader) Updated() <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.updated
}

// Run reads until ctx is done.
func (r *Reader) Run(ctx context.Context) error {
	var all sync.WaitGroup
	defer all.Wait()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		r.follow(ctx, &all)
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-r.wake:
		}
	}
}

// follow begins to read what is asked for, and ends the rest.
func (r *Reader) follow(ctx context.Context, all *sync.WaitGroup) {
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	for k, one := range r.sources {
		switch {
		case now.Sub(one.asked) >= wanted:
			if delete(r.sources, k); one.running {
				one.stop()
			}
			r.log.Info("Service is read no longer", "namespace", k.namespace, "service", k.String())
		case !one.running:
			of, stop := context.WithCancel(ctx)
			one.stop, one.running = stop, true
			read := newReading(r, k)
			all.Go(func() { read.run(of, one) })
		}
	}
}

// publish hands on what is known of a Service.
func (r *Reader) publish(one *source, q *evaluate.Queue) {
	before := one.queue.Swap(q)
	if before != nil && before.Last == q.Last && before.Unused == q.Unused && (before.Failure == nil) == (q.Failure == nil) && len(before.Unread) == len(q.Unread) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.updated)
	r.updated = make(chan struct{})
}
