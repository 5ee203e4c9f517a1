package workload

import (
	"context"
	"sync"
	"time"
)

// Run reads until ctx is done.
func (r *Resolver) Run(ctx context.Context) error {
	var all sync.WaitGroup
	defer all.Wait()
	all.Go(func() { r.follower.run(ctx) })
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

func (e *entry) period() time.Duration {
	if len(e.found.workload.Pods) == 0 {
		return emptyPeriod
	}
	return period
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

// edited has a workload read again whose ScaledObject changed.
func (r *Resolver) edited(e *entry, now time.Time) {
	e.reread = true // unless it is followed
	r.newest(e, now)
	e.outdated = true
	if e.found == nil || !e.current() { // there is no answer meanwhile
		r.enqueue(e, r.urgent)
		return
	}
	r.enqueueDue(e, 1, now)
}

// newest takes over the ScaledObject as it is followed, if that is newer than the one
// that was read.
func (r *Resolver) newest(e *entry, now time.Time) {
	object, at := r.follower.object(e.ask.key(), now)
	if object == nil || at.Before(e.objectRead) {
		return
	}
	e.object, e.objectRead = object, at
	e.reread = e.reread && !r.follower.connected
}

// current says whether the pods that were found are those of the ScaledObject's target.
func (e *entry) current() bool { return e.object == nil || e.found.ref == e.object.Spec.ScaleTargetRef }

// refresh reads a workload.
func (r *Resolver) refresh(ctx context.Context, e *entry) {
	began := time.Now()
	now := began
	r.mu.Lock()
	e.outdated = false // what changes from here on is seen the next time
	r.newest(e, now)
	object, objectRead := e.object, e.objectRead
	read := object == nil || e.reread || now.Sub(objectRead) >= objectPeriod
	jobs, wantsHPA := e.wantsJobs(now), e.hpaWanted
	r.mu.Unlock()
	var found *found
	var err error
	if read {
		objectRead = now
		object, err = r.api.scaledObject(ctx, e.ask)
	}
	unread := err != nil
	if err == nil {
		found, err = r.api.find(ctx, e.ask, object)
	}
	var jobTriggers []triggerSpec
	if jobs {
		jobTriggers = r.api.jobTriggers(ctx, e.ask)
	}
	var has targets
	var hpaErr error
	if wantsHPA && object != nil {
		has, hpaErr = r.api.hpa(ctx, e.ask, object)
	}
	if ctx.Err() != nil {
		return
	}
	now = time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if jobs {
		e.jobs, e.jobsRead, e.jobsWanted = jobTriggers, now, false
	}
	if wantsHPA && object != nil {
		r.tookHPA(e, has, hpaErr, began)
	}
	if read && !unread && !objectRead.Before(e.objectRead) {
		e.reread = false
		if e.objectRead = objectRead; e.object == nil || !e.object.same(object) {
			e.object = object
		}
	}
	e.reread = e.reread || err != nil // the target may be another by now
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
