package events

import (
	"context"
	"fmt"
	"hash/maphash"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	// normal is the one reason that describes a choice and not a problem.
	normal = "CompositeTrigger"
	// maxReason is the longest reason, in letters.
	maxReason = 64
	// generation is how many notices one of the two generations holds. A notice
	// takes 32 bytes, so both stay within 2 MiB, whatever names callers use.
	generation = 1 << 14
	// quiet is how soon an object that was looked up is looked up again, if there
	// is room: one that was deleted and made anew has another UID, and no event.
	quiet = 5 * time.Minute
)

// Notify records an event on the ScaledObject, if there is one: one for each
// object (by its UID), reason and hour (of UTC), whatever the message is. Other
// scalers and earlier processes of this one count too. The reason is a CamelCase
// word of at most 64 letters, and any other is refused. Events are warnings,
// those of the reason CompositeTrigger excepted.
//
// Notify never waits, and may be called with every answer: all calls but the first
// ones cost a lock and a lookup in memory. A notice that finds no room is dropped,
// and the next call repeats it.
func (r *Recorder) Notify(namespace, name, reason, message string) {
	if reason == invalidTrigger {
		r.Refused(namespace, name, message)
		return
	}
	if tooLong(namespace, name) || len(reason) > maxReason {
		r.misnamed(reason)
		return
	}
	now := time.Now()
	key := r.noticed.key(namespace, name, reason)
	r.mu.Lock()
	due := r.noticed.due(key, now, len(r.queue))
	r.mu.Unlock()
	if !due {
		return
	}
	if !isWord(reason) {
		r.misnamed(reason)
		return
	}
	if !possible(namespace, name) {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.noticed.due(key, now, len(r.queue)) { // another goroutine was faster
		return
	}
	select {
	case r.queue <- notice{namespace, name, reason, cut(message)}:
		s := r.noticed.get(key)
		s.again = now.Add(quiet).Unix() // record sets it anew
		r.noticed.set(key, s)
	default:
	}
}

// misnamed logs a reason that is none, once: it is a programming error, and is
// repeated with every call.
func (r *Recorder) misnamed(reason string) {
	if isWord(reason) || r.badReason.Swap(true) {
		return
	}
	r.log.Error("event refused: its reason is not a CamelCase word of at most 64 letters", "reason", reason[:min(len(reason), maxReason)])
}

// isWord says whether a reason is a CamelCase word.
func isWord(reason string) bool {
	if reason == "" || len(reason) > maxReason || reason[0] < 'A' || reason[0] > 'Z' {
		return false
	}
	for i := range len(reason) {
		if c := reason[i] | 0x20; c < 'a' || c > 'z' {
			return false
		}
	}
	return true
}

// record makes the event of this hour on an object, if there is one and it does
// not have the event yet. Every scaler gives the event the same name, so the API
// server accepts one of them.
func (r *Recorder) record(ctx context.Context, to *sink, what notice) {
	object, err := r.lookUp(ctx, what)
	now := time.Now()
	next := now.Truncate(time.Hour).Add(time.Hour).Unix()
	key := r.noticed.key(what.namespace, what.name, what.reason)
	state := seen{again: now.Add(askAgain).Unix()}
	switch {
	case apierrors.IsNotFound(err):
		state.again = now.Add(quiet).Unix()
	case err == nil:
		has := seen{again: min(now.Add(quiet).Unix(), next), until: next, object: r.noticed.key(string(object.UID))}
		r.mu.Lock()
		before := r.noticed.get(key)
		r.mu.Unlock()
		if before.object == has.object && before.until == next || r.create(ctx, to, what, object, now) {
			state = has
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.noticed.set(key, state)
}

// create returns whether the object has the event now.
//
// The broadcaster of client-go is of no use here: it names each event after its
// time, and counts up the one of an hour ago.
func (r *Recorder) create(ctx context.Context, to *sink, what notice, object *metav1.PartialObjectMetadata, now time.Time) bool {
	kind := corev1.EventTypeWarning
	if what.reason == normal {
		kind = corev1.EventTypeNormal
	}
	_, err := to.Create(&corev1.Event{
		ObjectMeta:          metav1.ObjectMeta{Namespace: what.namespace, Name: hourName(object, what.reason, now)},
		InvolvedObject:      *reference(what, object),
		Reason:              what.reason,
		Message:             what.message,
		Source:              corev1.EventSource{Component: component, Host: r.host},
		ReportingController: component,
		ReportingInstance:   r.host,
		FirstTimestamp:      metav1.NewTime(now),
		LastTimestamp:       metav1.NewTime(now),
		Count:               1,
		Type:                kind,
	})
	if apierrors.IsAlreadyExists(err) {
		err = nil
	}
	if ctx.Err() == nil {
		r.refused = r.noteChange(err, r.refused, "cannot record events on ScaledObjects", "events can be recorded again")
	}
	return err == nil
}

// hourName is the name of the event of one object, reason and hour:
// "gpuscaler.5f0e5a2c-....flatsignal.2026030112".
func hourName(object *metav1.PartialObjectMetadata, reason string, now time.Time) string {
	return fmt.Sprintf("%s.%s.%s.%s", component, object.UID, strings.ToLower(reason), now.UTC().Format("2006010215"))
}

// seen is what was done about a notice. Times are in Unix seconds.
type seen struct {
	// again is when the object may be looked up next; until is the end of the hour
	// in which it has the event, or 0.
	again, until int64
	// object is the hash of the UID of the object that has it.
	object uint64
}

// memory keeps the notices of late, by hashes of their names: in two generations,
// of which the older one is dropped when the younger one is full.
type memory struct {
	seed       maphash.Seed
	young, old map[uint64]seen
}

func newMemory() *memory {
	return &memory{seed: maphash.MakeSeed(), young: map[uint64]seen{}}
}

func (m *memory) key(parts ...string) uint64 {
	var h maphash.Hash
	h.SetSeed(m.seed)
	for _, part := range parts {
		_, _ = h.WriteString(part)
		_ = h.WriteByte(0)
	}
	return h.Sum64()
}

// due says whether a notice is to be queued, behind so many others. Notices take
// at most half of the queue, so that refused triggers have room; one that only
// makes sure that the object is still the same waits until nothing else does.
func (m *memory) due(key uint64, now time.Time, waiting int) bool {
	s, unix := m.get(key), now.Unix()
	switch {
	case unix < s.again:
		return false
	case unix < s.until:
		return waiting == 0
	default:
		return waiting < queued/2
	}
}

// get returns what is known of a notice, and keeps it with the younger ones.
func (m *memory) get(key uint64) seen {
	s, known := m.young[key]
	if !known {
		if s, known = m.old[key]; known {
			m.set(key, s)
		}
	}
	return s
}

func (m *memory) set(key uint64, s seen) {
	if _, known := m.young[key]; !known && len(m.young) >= generation {
		m.old, m.young = m.young, make(map[uint64]seen, generation)
	}
	m.young[key] = s
}
