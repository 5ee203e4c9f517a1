// Package engines reads the inference engines in this node's pods, over HTTP, once a
// second, and of those alone that somebody asks for. What a pod answers is a stranger's:
// answers are bounded, and nothing in them leads to another address. It must not know
// what is decided by the figures.
package engines

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"gpuscaler/scaler/demand"
	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/scrape"
)

const (
	// interval is how often an engine is read.
	interval = time.Second
	// linger is for how long an engine is read after nobody wants it any more: a peer that
	// asks again after its stream has ended finds the windows filled.
	linger = 10 * time.Second
	// mostWays is in how many ways the engine of one pod is read: triggers may name other
	// ports and paths.
	mostWays = 4
)

// Node is where this node's pods are known, and what is taken over of their engines.
type Node interface {
	Node() *fleet.Node
	SetEngines(all map[fleet.EngineKey]*fleet.Engine, now time.Time)
}

// Asks is where it is known which engines are wanted. It must not wait.
type Asks interface {
	Here() []demand.Ask
}

// Reader reads engines.
type Reader struct {
	node  Node
	asks  Asks
	log   *slog.Logger
	slots *scrape.Slots
	large scrape.Large
	// linger is how long: see linger.
	linger time.Duration
	// parsing has one answer parsed at a time: decoded, a hostile one takes some MiB.
	parsing sync.Mutex

	mu    sync.Mutex
	known map[fleet.EngineKey]*fleet.Engine
	dirty bool
}

// New makes a reader. It connects to nobody before somebody asks.
func New(node Node, asks Asks, log *slog.Logger) *Reader {
	return &Reader{node: node, asks: asks, log: log, slots: scrape.NewSlots(), large: scrape.NewLarge(), linger: linger, known: map[fleet.EngineKey]*fleet.Engine{}}
}

// Run reads until ctx is done.
func (r *Reader) Run(ctx context.Context) error {
	var all sync.WaitGroup
	defer all.Wait()
	following := map[fleet.EngineKey]*target{}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		r.follow(ctx, &all, following)
		r.publish(time.Now())
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// follow begins to read what is asked for, and ends the rest.
func (r *Reader) follow(ctx context.Context, all *sync.WaitGroup, following map[fleet.EngineKey]*target) {
	wanted := map[fleet.EngineKey][]float64{} // with the quantiles
	for _, ask := range r.asks.Here() {
		quantiles := wanted[ask.EngineKey]
		if ask.Quantile > 0 && !slices.Contains(quantiles, ask.Quantile) {
			quantiles = append(quantiles, ask.Quantile)
		}
		wanted[ask.EngineKey] = quantiles
	}
	n := r.node.Node()
	now := time.Now()
	for key, t := range following {
		if _, still := wanted[key]; still {
			t.wanted = now
		}
		if now.Sub(t.wanted) < r.linger && n.Pod(key.UID) != nil {
			continue
		}
		t.stop()
		delete(following, key)
		r.log.Info("engine is read no longer", "pod", t.pod.Load().Name, "namespace", t.pod.Load().Namespace)
	}
	r.drop(following)
	ways := map[string]int{} // by pod
	for key := range following {
		ways[key.UID]++
	}
	for _, key := range slices.SortedFunc(maps.Keys(wanted), fleet.EngineKey.Compare) {
		p, quantiles := n.Pod(key.UID), wanted[key]
		if p == nil || p.IP == "" {
			continue
		}
		t := following[key]
		if t == nil && ways[key.UID] >= mostWays {
			continue
		}
		if t == nil {
			ways[key.UID]++
			of, stop := context.WithCancel(ctx)
			t = newTarget(r, key, stop)
			following[key], t.wanted = t, now
			t.pod.Store(p)
			t.want(quantiles)
			all.Go(func() { t.run(of) })
			continue
		}
		t.pod.Store(p)
		t.want(quantiles)
	}
}

// drop forgets what is read no longer.
func (r *Reader) drop(following map[fleet.EngineKey]*target) {
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.DeleteFunc(r.known, func(key fleet.EngineKey, _ *fleet.Engine) bool {
		gone := following[key] == nil
		r.dirty = r.dirty || gone
		return gone
	})
}

// take takes over what is known of one engine.
func (r *Reader) take(ctx context.Context, key fleet.EngineKey, e *fleet.Engine) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if ctx.Err() == nil { // else it has been dropped
		r.known[key], r.dirty = e, true
	}
}

// publish hands on what has changed.
func (r *Reader) publish(now time.Time) {
	r.mu.Lock()
	all, dirty := r.known, r.dirty
	if r.dirty = false; dirty {
		all = maps.Clone(all)
	}
	r.mu.Unlock()
	if dirty {
		r.node.SetEngines(all, now)
	}
}
