// Package events tells a ScaledObject's owner what is wrong with a trigger, or
// with what it reads, by an Event on the ScaledObject. It must not know what the
// reasons mean, nor who asked; and no caller waits, whatever the API server does.
package events

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/cache"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/record"
)

// What "kubectl describe" shows beside the message.
const (
	component      = "gpuscaler"
	invalidTrigger = "InvalidTrigger"
)

const (
	// maxMessage is what newer versions of the events API allow, in bytes.
	maxMessage = 1024
	// queued is how many notices wait for the worker. Those beyond are dropped:
	// KEDA asks again.
	queued = 64
	// remembered bounds what is remembered of objects that anyone can make up:
	// half a MiB at worst, with messages and names as long as they may be.
	remembered = 256
	// askAgain is how soon the same refusal may be looked at again. KEDA repeats
	// it several times a second at first. It is short, because an object that
	// was deleted and made anew is another one, with no event.
	askAgain = 10 * time.Second
	// tellAgain is how soon the same event is recorded again, which only counts
	// it up: the rate that the recorder's spam filter lets through for ever.
	tellAgain = 5 * time.Minute
	// Lookups per second, and how many at once: whoever reaches KEDA's port can
	// ask about any name, and must not make us flood the API server.
	lookups     = 1
	lookupBurst = 10
	// timeout is the longest that one request may take.
	timeout = 5 * time.Second
)

// scaledObjects is what KEDA's calls are about, mostly: they have the same form
// for ScaledJobs, which are then not found.
var scaledObjects = schema.GroupVersionResource{Group: "keda.sh", Version: "v1alpha1", Resource: "scaledobjects"}

// notice is what there is to tell, about which object.
type notice struct{ namespace, name, reason, message string }

// told is an event that the object has: one made anew has another UID.
type told struct {
	uid     types.UID
	message string
}

// Recorder records events. Its methods are safe for concurrent use.
type Recorder struct {
	objects metadata.Interface
	client  rest.Interface
	host    string
	log     *slog.Logger

	queue     chan notice
	badReason atomic.Bool // the log has it

	mu      sync.Mutex
	asked   *cache.LRUExpireCache // every refusal that was queued
	dropped int                   // since the worker spoke of it last
	noticed *memory               // every other notice

	// Of the worker alone:
	told    *cache.LRUExpireCache // every refusal recorded
	limit   *rate.Limiter
	failing bool // lookups fail
	refused bool // events of Notify are not accepted
}

// New makes a recorder for the API server of config; host is the node's name,
// which events carry. It asks nothing of the API server.
func New(config *rest.Config, host string, log *slog.Logger) (*Recorder, error) {
	web, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("events: %w", err)
	}
	objects, err := metadata.NewForConfigAndClient(config, web)
	if err != nil {
		return nil, fmt.Errorf("events: %w", err)
	}
	client, err := eventsClient(config, web)
	if err != nil {
		return nil, fmt.Errorf("events: %w", err)
	}
	return &Recorder{
		objects: objects, client: client, host: host, log: log,
		queue:   make(chan notice, queued),
		asked:   cache.NewLRUExpireCache(remembered),
		noticed: newMemory(),
		told:    cache.NewLRUExpireCache(remembered),
		limit:   rate.NewLimiter(lookups, lookupBurst),
	}, nil
}

// Refused has an event InvalidTrigger recorded on the ScaledObject, if there is
// one and does not have it yet: one for each message. It never waits: with too
// many at once some are dropped.
func (r *Recorder) Refused(namespace, name, message string) {
	if tooLong(namespace, name) || !possible(namespace, name) {
		return
	}
	if r.enqueue(notice{namespace, name, invalidTrigger, cut(message)}) == 1 {
		r.log.Warn("too many refused triggers at once: some get no event until KEDA asks again", "queued", queued)
	}
}

// tooLong and possible find the names that no object can have: those cost nothing
// and are kept nowhere.
func tooLong(namespace, name string) bool {
	return len(name) > validation.DNS1123SubdomainMaxLength || len(namespace) > validation.DNS1123LabelMaxLength
}

func possible(namespace, name string) bool {
	return len(validation.IsDNS1123Subdomain(name)) == 0 && len(validation.IsDNS1123Label(namespace)) == 0
}

// enqueue returns how many were dropped if it dropped this one, else 0.
func (r *Recorder) enqueue(what notice) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, recently := r.asked.Get(what); recently {
		return 0
	}
	select {
	case r.queue <- what:
		r.asked.Add(what, nil, askAgain)
		return 0
	default:
		r.dropped++
		return r.dropped
	}
}

// Run records events until ctx is done.
func (r *Recorder) Run(ctx context.Context) error {
	// tools/record, not tools/events: only this one has the spam filter and
	// combines events that are much alike, and the other one links all of
	// client-go's typed clients. "kubectl describe" shows both alike.
	//
	// It has a queue and a goroutine of its own, so events wait for nothing but
	// other events while the API server accepts none.
	broadcaster := record.NewBroadcaster(record.WithContext(ctx),
		record.WithCorrelatorOptions(record.CorrelatorOptions{LRUCacheSize: remembered}))
	to := &sink{ctx, r.client}
	broadcaster.StartRecordingToSink(to)
	recorder := broadcaster.NewRecorder(runtime.NewScheme(), corev1.EventSource{Component: component, Host: r.host})
	for {
		if r.limit.Wait(ctx) != nil {
			return nil //nolint:nilerr // ctx is done, which is how it ends
		}
		select {
		case <-ctx.Done():
			return nil
		case what := <-r.queue:
			if what.reason == invalidTrigger {
				r.tell(ctx, recorder, what)
			} else {
				r.record(ctx, to, what)
			}
		}
		if len(r.queue) == 0 {
			r.noteDropped()
		}
	}
}

// noteDropped logs how many were dropped, once there is room again.
func (r *Recorder) noteDropped() {
	r.mu.Lock()
	n := r.dropped
	r.dropped = 0
	r.mu.Unlock()
	if n > 0 {
		r.log.Warn("refused triggers without an event, because there were too many", "count", n)
	}
}

// tell records a refusal on the object, if there is one.
func (r *Recorder) tell(ctx context.Context, recorder record.EventRecorder, what notice) {
	object, err := r.lookUp(ctx, what)
	if err != nil {
		return
	}
	event := told{object.UID, what.message}
	if _, recently := r.told.Get(event); recently {
		return
	}
	r.told.Add(event, nil, tellAgain)
	recorder.Event(reference(what, object), corev1.EventTypeWarning, what.reason, what.message)
}

// lookUp finds the object: "kubectl describe" shows the events with its UID and
// no others. The log has when lookups begin to fail and when they work again.
func (r *Recorder) lookUp(ctx context.Context, what notice) (*metav1.PartialObjectMetadata, error) {
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	object, err := r.objects.Resource(scaledObjects).Namespace(what.namespace).Get(limited, what.name, metav1.GetOptions{})
	failed := err
	if apierrors.IsNotFound(err) {
		failed = nil // which is an answer
	}
	if ctx.Err() == nil {
		r.failing = r.noteChange(failed, r.failing,
			"cannot look up ScaledObjects: they get no event", "ScaledObjects can be looked up again")
	}
	return object, err
}

// noteChange logs when something begins to fail and when it works again, and
// returns whether it fails.
func (r *Recorder) noteChange(err error, failing bool, begins, ends string) bool {
	switch {
	case err != nil && !failing:
		r.log.Warn(begins, "error", err)
	case err == nil && failing:
		r.log.Info(ends)
	}
	return err != nil
}

func reference(what notice, object *metav1.PartialObjectMetadata) *corev1.ObjectReference {
	return &corev1.ObjectReference{
		APIVersion: scaledObjects.GroupVersion().String(), Kind: "ScaledObject",
		Namespace: what.namespace, Name: what.name, UID: object.UID, ResourceVersion: object.ResourceVersion,
	}
}

// cut keeps a message within what an event may have.
func cut(message string) string {
	const more = "..."
	if len(message) <= maxMessage {
		return message
	}
	return strings.ToValidUTF8(message[:maxMessage-len(more)], "") + more
}
