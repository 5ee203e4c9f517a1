// Package workload finds what a ScaledObject scales: by its scaleTargetRef's
// scale subresource, whatever kind that is. Answers come from memory, and are
// read again in the background for as long as somebody asks. It must not know
// what the pods hold.
package workload

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/cache"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/rest"

	"gpuscaler/scaler/evaluate"
	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/terms"
)

const (
	// period is how old an answer gets, and how soon something that could not be
	// read is tried again. With more workloads than are read in it, it is longer by
	// share for each: the API server has others to serve, too.
	period = 3 * time.Second
	share  = 50 * time.Millisecond
	// emptyPeriod is that of a workload without pods: its first one waits for a node,
	// so that no node tells of it, and nobody may take it for idle.
	emptyPeriod = time.Second
	// objectPeriod is that of the ScaledObject, which its author alone changes; a
	// trigger that is not among its own has it read the next time, too.
	objectPeriod = 15 * time.Second
	// soonest is how soon it is read again when its pods change: they tell of a
	// change of the replicas before the period is over.
	soonest = 500 * time.Millisecond
	// asked is for how long an answer is kept fresh after somebody asked.
	asked = 5 * time.Minute
	// remembered bounds what is remembered of names that anyone can make up.
	remembered = 1024
	// workers is how many workloads are read at once.
	workers = 4
	// timeout is the longest that one request may take.
	timeout = 5 * time.Second
	// Requests per second to the API server, and how many at once: two for each
	// workload and period, and one for each objectPeriod.
	requestsPerSecond = 50
	requestBurst      = 100
	// Names that were not known are looked up so often per second, and so many at
	// once: whoever reaches KEDA's port can make them up.
	newNames     = 10
	newNameBurst = 100
)

// ask is what is asked for: a ScaledObject's workload, by a selector of pods in
// place of its target's own if that is not "".
type ask struct{ namespace, name, podSelector string }

func (a ask) String() string { return a.namespace + "/" + a.name }

// validate refuses names that no object can have, and selectors that are none: they
// would become parts of a request, and be kept.
func (a ask) validate() error {
	if a.podSelector != "" {
		if _, err := labels.Parse(a.podSelector); err != nil {
			return fail(evaluate.Invalid, "podSelector: %w; allowed is a label selector like \"app=llm\"", err)
		}
	}
	for _, c := range []struct {
		key, name string
		longest   int
		problems  func(string) []string
	}{
		{"namespace", a.namespace, validation.DNS1123LabelMaxLength, validation.IsDNS1123Label},
		{"name", a.name, validation.DNS1123SubdomainMaxLength, validation.IsDNS1123Subdomain},
	} {
		if len(c.name) > c.longest || len(c.problems(c.name)) > 0 {
			return fail(evaluate.Invalid, "scaledObjectRef: %s %s is no name of an object; allowed are up to %d lower-case letters, digits, - and . as Kubernetes has them",
				c.key, terms.Quote(c.name), c.longest)
		}
	}
	return nil
}

// Resolver finds workloads. Its methods are safe for concurrent use.
type Resolver struct {
	api *api
	log *slog.Logger

	// urgent are the entries that nothing is known of, or whose pods have changed;
	// they are read before those that only get old.
	urgent, queue chan *entry

	mu      sync.Mutex
	entries *cache.LRUExpireCache // of ask to *entry
	unknown *rate.Limiter         // of entries that have never been found
}

// entry is one workload. Its fields are guarded by Resolver.mu.
type entry struct {
	ask      ask
	found    *found // the last that could be read, or nil
	err      error  // why it cannot be read now
	definite bool   // err is an answer, and not the lack of one
	read     time.Time
	queued   bool
	outdated bool // its pods have changed since

	kept time.Time // when entries was last told to keep it

	object     *scaledObject // nil: to be read
	objectRead time.Time
}

// found is what the API server told.
type found struct {
	workload evaluate.Workload
	triggers []triggerSpec
}

// New makes a resolver. It asks nothing of the API server.
func New(config *rest.Config, log *slog.Logger) (*Resolver, error) {
	api, err := newAPI(config)
	if err != nil {
		return nil, fmt.Errorf("workloads: %w", err)
	}
	return &Resolver{
		api: api, log: log,
		urgent: make(chan *entry, remembered), queue: make(chan *entry, remembered),
		entries: cache.NewLRUExpireCache(remembered),
		unknown: rate.NewLimiter(newNames, newNameBurst),
	}, nil
}

// Workload is what is known of a ScaledObject's workload, by podSelector if that
// is not ""; metadata is that of the trigger that asks, which tells it from the
// ScaledObject's others. It never waits: the first time nothing is known, and the
// answer is [evaluate.Unavailable]. Errors are of type *[evaluate.Error].
func (r *Resolver) Workload(namespace, name, podSelector string, metadata map[string]string) (*evaluate.Workload, error) {
	a := ask{namespace, name, podSelector}
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.known(a)
	if e == nil || e.found == nil {
		if err := a.validate(); err != nil {
			return nil, err
		}
		e = r.entry(a)
	}
	switch {
	case e == nil || (e.found == nil && e.err == nil):
		return nil, fail(evaluate.Unavailable, "ScaledObject %s: not read yet from the API server", a)
	case e.found == nil || e.definite:
		return nil, e.err
	}
	w := e.found.workload
	var known bool
	if w.TargetType, known = targetType(e.found.triggers, metadata); !known {
		e.object = nil
	}
	return &w, nil
}

// Health is how many workloads are known, of how many nothing can be read now, and how
// old the oldest of what is known is.
func (r *Resolver) Health(now time.Time) (known, failing int, oldest time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, key := range r.entries.Keys() {
		v, ok := r.entries.Get(key)
		if !ok {
			continue
		}
		e := v.(*entry)
		if e.found != nil {
			known++
			oldest = max(oldest, now.Sub(e.found.workload.Told))
		}
		if e.err != nil && !e.definite {
			failing++
		}
	}
	return known, failing, oldest
}

// Expect has a workload read that will soon be asked for.
func (r *Resolver) Expect(namespace, name, podSelector string) {
	a := ask{namespace, name, podSelector}
	if a.validate() != nil {
		return // Workload says so
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.entry(a)
}

// PodsChanged says that what is known of these pods' workloads may be outdated. It
// does not wait.
func (r *Resolver) PodsChanged(changed []fleet.Pod) {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := r.found()
	for _, e := range all {
		if slices.ContainsFunc(changed, e.has) {
			e.outdated = true
			r.enqueueDue(e, len(all), time.Now())
		}
	}
}

// found are the workloads that are known.
func (r *Resolver) found() (all []*entry) {
	for _, key := range r.entries.Keys() {
		if known, ok := r.entries.Get(key); ok && known.(*entry).found != nil {
			all = append(all, known.(*entry))
		}
	}
	return all
}

func (e *entry) period() time.Duration {
	if len(e.found.workload.Pods) == 0 {
		return emptyPeriod
	}
	return period
}

// has says whether a pod is of the workload, as far as that is known.
func (e *entry) has(pod fleet.Pod) bool {
	return e.ask.namespace == pod.Namespace && e.found.workload.Selector.Matches(labels.Set(pod.Labels))
}

// enqueueDue queues a workload that has to be read again, of which there are so
// many.
func (r *Resolver) enqueueDue(e *entry, of int, now time.Time) {
	age := now.Sub(e.read)
	switch {
	case e.outdated && age >= soonest:
		r.enqueue(e, r.urgent)
	case age >= max(e.period(), time.Duration(of)*share):
		r.enqueue(e, r.queue)
	}
}

// known is the entry of an ask, or nil. It is kept for longer.
func (r *Resolver) known(a ask) *entry {
	known, ok := r.entries.Get(a)
	if !ok {
		return nil
	}
	e := known.(*entry)
	if now := time.Now(); now.Sub(e.kept) >= asked/10 { // not each time
		e.kept = now
		r.entries.Add(a, e, asked)
	}
	return e
}

// entry is that of an ask, which is read soon if it is new, or was not found some
// time ago; nil when there are too many of these.
func (r *Resolver) entry(a ask) *entry {
	e := r.known(a)
	if e == nil || (e.found == nil && !e.queued && time.Since(e.read) >= period) {
		if !r.unknown.Allow() {
			return e
		}
		if e == nil {
			e = &entry{ask: a}
		}
		r.enqueue(e, r.urgent)
	}
	e.kept = time.Now()
	r.entries.Add(a, e, asked)
	return e
}

func (r *Resolver) enqueue(e *entry, queue chan *entry) {
	if e.queued {
		return
	}
	select {
	case queue <- e:
		e.queued = true
	default: // another round does it
	}
}

// Run reads until ctx is done.
func (r *Resolver) Run(ctx context.Context) error {
	var all sync.WaitGroup
	defer all.Wait()
	for i := range workers {
		all.Go(func() { r.work(ctx, i == 0) })
	}
	tick := time.NewTicker(soonest / 2)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			r.due(time.Now())
		}
	}
}

// due queues the workloads that have to be read again.
func (r *Resolver) due(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := r.found()
	for _, e := range all {
		r.enqueueDue(e, len(all), now)
	}
}

// work reads what is urgent before the rest, or the other way round: one worker
// does, so that those are read, too, whose pods do not change.
func (r *Resolver) work(ctx context.Context, restFirst bool) {
	first := r.urgent
	if restFirst {
		first = r.queue
	}
	for ctx.Err() == nil {
		select {
		case e := <-first:
			r.refresh(ctx, e)
			continue
		default:
		}
		select {
		case <-ctx.Done():
			return
		case e := <-r.urgent:
			r.refresh(ctx, e)
		case e := <-r.queue:
			r.refresh(ctx, e)
		}
	}
}

func (r *Resolver) refresh(ctx context.Context, e *entry) {
	r.mu.Lock()
	e.outdated = false // what changes from here on is seen the next time
	object, objectRead := e.object, e.objectRead
	r.mu.Unlock()
	var found *found
	var err error
	if object == nil || time.Since(objectRead) >= objectPeriod {
		objectRead = time.Now()
		object, err = r.api.scaledObject(ctx, e.ask)
	}
	if err == nil {
		found, err = r.api.find(ctx, e.ask, object)
	}
	if ctx.Err() != nil {
		return
	}
	now := time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if e.object, e.objectRead = object, objectRead; err != nil {
		e.object = nil // the target may be another by now
	}
	before := e.err
	e.queued, e.read = false, now
	e.err, e.definite = nil, false
	if err == nil {
		found.workload.Told = now
		e.found = found
	} else {
		e.definite, e.err = classify(e.ask, err)
	}
	if (before == nil) != (e.err == nil) {
		r.log.Warn("workload's state changed", "scaledobject", e.ask.String(), "error", e.err)
	}
}

func fail(kind evaluate.Kind, format string, args ...any) error {
	return &evaluate.Error{Kind: kind, Reason: fmt.Errorf(format, args...).Error()}
}
