package workload

import (
	"context"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gpuscaler/scaler/kubernetes"
)

// refusedPeriod is how soon a list that was refused is tried again: permissions seldom
// change.
const refusedPeriod = 5 * time.Minute

// objectKey names a ScaledObject.
type objectKey struct{ namespace, name string }

func (a ask) key() objectKey { return objectKey{a.namespace, a.name} }

// follower follows all ScaledObjects for as long as workloads are asked for, so that an
// edit takes effect at once. Where the permission is missing they are read one by one.
// Its fields are guarded by Resolver.mu, but for the channels.
type follower struct {
	r *Resolver

	objects   map[objectKey]*scaledObject // nil: not synced
	connected bool                        // every change arrives
	until     time.Time                   // when one arrived for sure, while not connected
	touched   time.Time                   // when a workload was asked for last
	warned    bool

	wake, refused chan struct{}
}

func newFollower(r *Resolver) *follower {
	return &follower{r: r, wake: make(chan struct{}, 1), refused: make(chan struct{}, 1)}
}

// touch notes that a workload is asked for. Resolver.mu is held.
func (f *follower) touch(now time.Time) {
	f.touched = now
	signal(f.wake)
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// object is a ScaledObject, and from when that is known; nil if it is not followed.
// Resolver.mu is held.
func (f *follower) object(key objectKey, now time.Time) (o *scaledObject, at time.Time) {
	if f.connected {
		return f.objects[key], now
	}
	return f.objects[key], f.until
}

// run follows until ctx is done.
func (f *follower) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-f.wake:
		}
		if f.idleIn() <= 0 {
			continue // of before
		}
		if refused := f.session(ctx); !refused {
			continue
		}
		select {
		case <-ctx.Done():
		case <-time.After(refusedPeriod):
		}
	}
}

// session follows until no workload is asked for any more, or it is refused.
func (f *follower) session(ctx context.Context) (refused bool) {
	select {
	case <-f.refused: // of the session before
	default:
	}
	limited, stop := context.WithCancel(ctx)
	var ends sync.WaitGroup
	ends.Go(func() {
		defer stop()
		refused = f.ends(limited)
	})
	kubernetes.Watch{
		Client: f.r.api.objects, Resource: "scaledobjects", Type: &scaledObject{}, Strip: strip,
		Select: func(*metav1.ListOptions) {},
	}.Follow(limited, f)
	ends.Wait()
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	f.objects, f.connected, f.until = nil, false, time.Time{}
	return refused
}

// ends returns when the session has to.
func (f *follower) ends(ctx context.Context) (refused bool) {
	for {
		rest := f.idleIn()
		if rest <= 0 {
			return false
		}
		select {
		case <-ctx.Done():
			return false
		case <-f.refused:
			return true
		case <-time.After(rest):
		}
	}
}

// idleIn is how soon it ends if no workload is asked for.
func (f *follower) idleIn() time.Duration {
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	return asked - time.Since(f.touched)
}

// Replace takes over all ScaledObjects.
func (f *follower) Replace(all []any) {
	now := time.Now()
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	if f.objects == nil {
		f.r.log.Info("ScaledObjects are followed", "scaledobjects", len(all))
	}
	before := f.objects
	f.objects = make(map[objectKey]*scaledObject, len(all))
	for _, object := range all {
		o := object.(*scaledObject)
		key := objectKey{o.Namespace, o.Name}
		if old := before[key]; old != nil && old.same(o) {
			o = old
		} else {
			o.after(old, now)
		}
		f.objects[key] = o
	}
	f.until, f.warned = now, false
	for _, e := range f.r.all() {
		o := f.objects[e.ask.key()]
		if (o == nil) != (e.object == nil) || (o != nil && !e.object.same(o)) {
			f.r.edited(e, now)
		}
	}
}

// Set takes over a ScaledObject that is new or has changed.
func (f *follower) Set(object any) {
	o := object.(*scaledObject)
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	key := objectKey{o.Namespace, o.Name}
	before := f.objects[key]
	if before != nil && before.same(o) {
		return
	}
	o.after(before, time.Now())
	if f.objects != nil {
		f.objects[key] = o
	}
	f.changed(key)
}

// Delete drops a ScaledObject.
func (f *follower) Delete(object any) {
	o, ok := object.(*scaledObject)
	if !ok {
		return
	}
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	key := objectKey{o.Namespace, o.Name}
	delete(f.objects, key)
	f.changed(key)
}

func (f *follower) changed(key objectKey) {
	now := time.Now()
	for _, e := range f.r.all() {
		if e.ask.key() == key {
			f.r.edited(e, now)
		}
	}
}

// Connected notes whether every change arrives.
func (f *follower) Connected(yes bool, err error) {
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	if f.connected && !yes {
		f.until = time.Now()
	}
	f.connected = yes && f.objects != nil
	if !apierrors.IsForbidden(err) && !apierrors.IsNotFound(err) {
		return
	}
	if !f.warned {
		f.warned = true
		f.r.log.Warn("ScaledObjects are read one by one, and an edit takes effect up to 18s later: they cannot be listed and watched "+
			"(deploy/components/pod-resources/rbac.yaml has the permission)", "error", err)
	}
	signal(f.refused)
}
