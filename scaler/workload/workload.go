// Package workload finds what a ScaledObject scales: by its scaleTargetRef's
// scale subresource, whatever kind that is. Answers come from memory. In the
// background ScaledObjects are followed, and replicas and pods are read again, for
// as long as a workload is asked for. It must not know what the pods hold.
package workload

import (
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

	"gpuscaler/profiles"
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
	// objectPeriod is that of a ScaledObject that cannot be followed; a trigger that is
	// not among its own has it read the next time, too. It is also how soon a ScaledJob of
	// that name is looked for again.
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
	// workload and period, three with LeaderWorkerSets, one more after an edit.
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

	mu       sync.Mutex
	follower *follower
	profiles Profiles              // nil: none is known
	entries  *cache.LRUExpireCache // of ask to *entry
	unknown  *rate.Limiter         // of entries that have never been found
	warnHPA  sync.Once             // that KEDA's HPAs cannot be read
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

	object     *scaledObject // the newest, or nil
	objectRead time.Time
	reread     bool // it has to be read again, unless it is followed

	// The triggers of the ScaledJob of that name: wanted where metadata fits none of the
	// ScaledObject's.
	jobs       []triggerSpec
	jobsRead   time.Time
	jobsWanted bool

	// KEDA's HPA: wanted for a while after an edit.
	hpa       lookedAt
	hpaWanted bool
}

// found is what the API server answered, for this target.
type found struct {
	workload evaluate.Workload
	ref      targetRef
}

// New makes a resolver. It asks nothing of the API server.
func New(config *rest.Config, log *slog.Logger) (*Resolver, error) {
	api, err := newAPI(config)
	if err != nil {
		return nil, fmt.Errorf("workloads: %w", err)
	}
	r := &Resolver{
		api: api, log: log,
		urgent: make(chan *entry, remembered), queue: make(chan *entry, remembered),
		entries: cache.NewLRUExpireCache(remembered),
		unknown: rate.NewLimiter(newNames, newNameBurst),
	}
	r.follower = newFollower(r)
	return r, nil
}

// UseProfiles makes known which triggers never let their workload scale to zero. It
// must be called before Run.
func (r *Resolver) UseProfiles(p Profiles) { r.profiles = p }

// Workload is what is known of a ScaledObject's workload, by podSelector if that
// is not ""; metadata is that of the trigger that asks, which tells it from the
// ScaledObject's others. It never waits: the first time nothing is known, and the
// answer is [evaluate.Unavailable]. Errors are of type *[evaluate.Error].
func (r *Resolver) Workload(namespace, name, podSelector string, metadata map[string]string) (*evaluate.Workload, error) {
	a := ask{namespace, name, podSelector}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	e := r.known(a)
	if e == nil || e.found == nil {
		if err := a.validate(); err != nil {
			return nil, err
		}
		e = r.entry(a)
	}
	r.follower.touch(now)
	unread := func() error {
		return fail(evaluate.Unavailable, "ScaledObject %s: not read yet from the API server", a)
	}
	switch {
	case e == nil || (e.found == nil && e.err == nil):
		return nil, unread()
	case e.found == nil || e.definite:
		return nil, e.err
	}
	r.newest(e, now)
	if !e.current() { // its target was changed
		if e.err != nil {
			return nil, e.err
		}
		return nil, unread()
	}
	return r.answer(e, metadata, now)
}

// Known is what is known of a ScaledObject's workload, as far as it is the same for all
// its triggers; nil where nothing is. Nothing is read for it, nor kept for longer.
func (r *Resolver) Known(namespace, name, podSelector string) *evaluate.Workload {
	r.mu.Lock()
	defer r.mu.Unlock()
	known, ok := r.entries.Get(ask{namespace, name, podSelector})
	if !ok || known.(*entry).found == nil || known.(*entry).definite {
		return nil
	}
	return new(known.(*entry).found.workload)
}

// answer is a workload that was found, for the trigger with this metadata.
func (r *Resolver) answer(e *entry, metadata map[string]string, now time.Time) (*evaluate.Workload, error) {
	w := e.found.workload
	w.Edited = e.object.edited
	var set *profiles.Set
	if r.profiles != nil {
		set = r.profiles.Load()
	}
	fits, err := e.object.complete(&w, metadata, set)
	if err != nil {
		return nil, err
	}
	e.followed(&w, metadata, set, now)
	if w.Guess = !fits; fits {
		return &w, nil
	}
	e.reread = e.reread || !r.follower.connected
	if slices.ContainsFunc(e.jobs, func(t triggerSpec) bool { return t.fits(metadata) }) {
		_, err := classify(e.ask, errScaledJob)
		return nil, err
	}
	if e.jobsWanted = true; e.wantsJobs(now) {
		e.outdated = true
	}
	return &w, nil
}

// wantsJobs says whether the ScaledJob of that name is to be read.
func (e *entry) wantsJobs(now time.Time) bool {
	return e.jobsWanted && now.Sub(e.jobsRead) >= objectPeriod
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
	r.follower.touch(time.Now())
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
func (r *Resolver) found() []*entry {
	return slices.DeleteFunc(r.all(), func(e *entry) bool { return e.found == nil })
}

// all are the workloads that are asked for.
func (r *Resolver) all() (all []*entry) {
	for _, key := range r.entries.Keys() {
		if known, ok := r.entries.Get(key); ok {
			all = append(all, known.(*entry))
		}
	}
	return all
}

// has says whether a pod is of the workload, as far as that is known.
func (e *entry) has(pod fleet.Pod) bool {
	w := &e.found.workload
	return e.ask.namespace == pod.Namespace &&
		(w.Selector.Matches(labels.Set(pod.Labels)) || slices.Contains(w.Sets, pod.Labels[fleet.SetLabel]))
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

func fail(kind evaluate.Kind, format string, args ...any) error {
	return &evaluate.Error{Kind: kind, Reason: fmt.Errorf(format, args...).Error()}
}
