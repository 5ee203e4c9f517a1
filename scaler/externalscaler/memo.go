package externalscaler

import (
	"sync"
	"time"

	pb "github.com/kedacore/keda/v2/pkg/scalers/externalscaler"

	"gpuscaler/scaler/evaluate"
	"gpuscaler/scaler/trigger"
)

const (
	// large is from how many pods or GPUs on a decision is kept for a while: peers
	// tell of themselves every few seconds, and what is small is made anew for each
	// call.
	large = 16
	// keptAtMost is for how long, unless peers tell of themselves more often or
	// something in it is too old before; keptOwn where there is a node of its own, with
	// newer readings.
	keptAtMost = 2 * time.Second
	keptOwn    = 250 * time.Millisecond
	// memos bounds how many are kept: the names are the callers'.
	memos = 2048
)

// memo keeps the decisions that take long to make.
type memo struct {
	mu    sync.Mutex
	known map[memoKey]memoized
}

// memoKey tells triggers apart.
type memoKey struct {
	namespace, name string
	trigger         trigger.Trigger
}

// memoized is a decision in brief, and what of a workload it was made of.
type memoized struct {
	decision evaluate.Decision
	of       settings
	told     time.Time
	until    time.Time
}

// settings are what the ScaledObject says of the number, beside the trigger.
type settings struct {
	targetType, composite trigger.TargetType
	up, down              float64 // tolerances; -1: none
	nothingWakes          bool
	edited                time.Time
	hpa                   evaluate.HPA
}

func settingsOf(w *evaluate.Workload) settings {
	s := settings{w.TargetType, w.Composite, -1, -1, w.NothingWakes, w.Edited, w.HPA}
	if w.ScaleUpTolerance != nil {
		s.up = *w.ScaleUpTolerance
	}
	if w.ScaleDownTolerance != nil {
		s.down = *w.ScaleDownTolerance
	}
	return s
}

// get is a decision for a trigger, on a workload or not (nil): one that is still
// good, or one that is made. One with gaps is kept only if they will not be filled
// in a moment: when all peers are heard that can be.
func (m *memo) get(ref *pb.ScaledObjectRef, t *trigger.Trigger, w *evaluate.Workload, settled bool, keep time.Duration, decide func(now time.Time) (evaluate.Decision, error)) (evaluate.Decision, error) {
	k, now := memoKey{ref.GetNamespace(), ref.GetName(), *t}, time.Now()
	fresh := memoized{}
	if w != nil {
		fresh.of, fresh.told = settingsOf(w), w.Told
	}
	m.mu.Lock()
	known, ok := m.known[k]
	m.mu.Unlock()
	if ok && now.Before(known.until) && known.of == fresh.of && known.told.Equal(fresh.told) {
		return known.decision, nil
	}
	d, err := decide(now)
	if err == nil && possible(ref) && len(d.Pods)+len(d.Used) >= large && (settled || d.Gaps() == 0) {
		fresh.decision, fresh.until = d.Brief(), earlier(now.Add(keep), d.Until)
		m.put(k, fresh)
	}
	return d, err
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func (m *memo) put(k memoKey, with memoized) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.known) >= memos || m.known == nil {
		m.known = make(map[memoKey]memoized)
	}
	m.known[k] = with
}
