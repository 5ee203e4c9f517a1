package kubernetes

import (
	"context"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// How soon a watch that broke is tried again, at first and at last, plus up to as
// much again at random: there is one on every GPU node. It is sooner than
// client-go's half a minute, because what ends meanwhile goes on counting.
const (
	firstRetry = 500 * time.Millisecond
	lastRetry  = 8 * time.Second
)

// settle is how long changes are collected before they are told: things change
// several times while they start.
const settle = 100 * time.Millisecond

// Watch follows objects of one kind. An informer has a queue of everything
// besides, and no say in how soon it tries again.
type Watch struct {
	Client    rest.Interface
	Resource  string // in the plural
	Namespace string // "": all
	// Select narrows down what is asked for.
	Select func(*metav1.ListOptions)
	Type   runtime.Object
	// Strip keeps of an object what is of interest.
	Strip func(object any) any
}

// Changes takes over what [Watch.Follow] sees. Its methods are called one at a time
// and must not block.
type Changes interface {
	// Replace has all objects: at the beginning, and after changes may have been missed.
	Replace(all []any)
	// Set has an object that is new or has changed.
	Set(object any)
	// Delete has the last state of an object that was deleted.
	Delete(object any)
	// Connected says whether every change arrives. It does not from when the API server
	// has to be asked anew until it has answered; err is why it refused, or nil.
	Connected(yes bool, err error)
}

// Follow hands over single changes and keeps no objects itself, until ctx is done.
// While the API server cannot be reached, it goes on trying.
func (w Watch) Follow(ctx context.Context, to Changes) {
	source := cache.NewFilteredListWatchFromClient(w.Client, w.Resource, w.Namespace, w.Select)
	list, watched := source.ListWithContextFunc, source.WatchFuncWithContext
	source.ListWithContextFunc = func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
		to.Connected(false, nil)
		all, err := list(ctx, o)
		if err != nil {
			to.Connected(false, err)
		}
		return all, err
	}
	source.WatchFuncWithContext = func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
		to.Connected(false, nil)
		changes, err := watched(ctx, o)
		switch {
		case o.SendInitialEvents != nil: // Replace comes next, or a list
		case err != nil:
			to.Connected(false, err)
		default:
			to.Connected(true, nil)
		}
		return changes, err
	}
	w.reflector(source, &relay{to: to, strip: w.Strip}).RunWithContext(ctx)
}

func (w Watch) reflector(source *cache.ListWatch, into cache.ReflectorStore) *cache.Reflector {
	return cache.NewReflectorWithOptions(source, w.Type, into, cache.ReflectorOptions{Name: w.Resource, Backoff: &wait.Backoff{
		Duration: firstRetry, Cap: lastRetry, Factor: 2, Jitter: 1, Steps: 10,
	}})
}

// relay is where the reflector hands over, for Follow.
type relay struct {
	to    Changes
	strip func(any) any
}

// Add hands over a new object.
func (r *relay) Add(o any) error { return r.Update(o) }

// Update hands over an object that changed.
func (r *relay) Update(o any) error {
	r.to.Set(r.strip(o))
	return nil
}

// Delete hands over an object that was deleted.
func (r *relay) Delete(o any) error {
	r.to.Delete(o)
	return nil
}

// Replace hands over all objects.
func (r *relay) Replace(all []any, _ string) error {
	for i := range all {
		all[i] = r.strip(all[i])
	}
	r.to.Replace(all)
	r.to.Connected(true, nil)
	return nil
}

// Resync is never asked for.
func (r *relay) Resync() error { return nil }

// Transformer has a list stripped while it comes in.
func (r *relay) Transformer() cache.TransformFunc {
	return func(o any) (any, error) { return r.strip(o), nil }
}

// Run tells of all objects at the beginning and soon after each change, until ctx
// is done. While the API server cannot be reached it goes on trying, and what was
// told last stays.
func (w Watch) Run(ctx context.Context, tell func(all []any)) {
	known := &store{Store: cache.NewStore(cache.MetaNamespaceKeyFunc), strip: w.Strip, changed: make(chan struct{}, 1)}
	reflector := w.reflector(cache.NewFilteredListWatchFromClient(w.Client, w.Resource, w.Namespace, w.Select), known)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		reflector.RunWithContext(ctx)
	}()
	defer func() { <-ended }()
	for first := true; ; first = false {
		select {
		case <-ctx.Done():
			return
		case <-known.changed:
		}
		if !first { // what comes together is told together
			select {
			case <-ctx.Done():
				return
			case <-time.After(settle):
			}
			select {
			case <-known.changed:
			default:
			}
		}
		tell(known.List())
	}
}

// store is what the reflector fills: stripped objects.
type store struct {
	cache.Store
	strip   func(any) any
	changed chan struct{}
}

func (s *store) note(err error) error {
	select {
	case s.changed <- struct{}{}:
	default:
	}
	return err
}

// Add takes over an object.
func (s *store) Add(o any) error { return s.note(s.Store.Add(s.strip(o))) }

// Update replaces an object.
func (s *store) Update(o any) error { return s.note(s.Store.Update(s.strip(o))) }

// Delete drops an object.
func (s *store) Delete(o any) error { return s.note(s.Store.Delete(o)) }

// Replace drops all objects and takes over others.
func (s *store) Replace(all []any, version string) error {
	for i := range all {
		all[i] = s.strip(all[i])
	}
	return s.note(s.Store.Replace(all, version))
}

// Transformer has a list stripped while it comes in.
func (s *store) Transformer() cache.TransformFunc {
	return func(o any) (any, error) { return s.strip(o), nil }
}
