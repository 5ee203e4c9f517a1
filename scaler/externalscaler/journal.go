package externalscaler

import (
	"log/slog"
	"maps"
	"sync"
	"time"

	pb "github.com/kedacore/keda/v2/pkg/scalers/externalscaler"
	"k8s.io/apimachinery/pkg/util/validation"

	"gpuscaler/scaler/evaluate"
	"gpuscaler/scaler/replicas"
	"gpuscaler/scaler/trigger"
)

// journalled bounds what is remembered of names that anyone can make up: with one
// more everything is forgotten, and told again when it is asked for.
const journalled = 4096

// journal logs what changes in what KEDA is told: how many replicas, by which
// rule, of how many pods or nodes nothing is known, and whether there is an
// answer. It is asked for each of KEDA's calls, so what stays the same costs a
// look.
type journal struct {
	log  *slog.Logger
	mu   sync.Mutex
	last map[triggerKey]*noted
}

// noted is the last answer about a trigger.
type noted struct {
	said
	answer evaluate.Answer
}

// triggerKey tells triggers apart; KEDA does not say which of a ScaledObject's it
// asks for.
type triggerKey struct {
	namespace, name, metricName, metric string
	target                              float64
}

// said is what of an answer is worth a line when it changes.
type said struct {
	failed   bool
	replicas int // -1: not of a workload
	rule     replicas.Reason
	gaps     int // of how many pods or nodes nothing is known
}

func newJournal(log *slog.Logger) *journal {
	return &journal{log: log, last: map[triggerKey]*noted{}}
}

// answers are those of which somebody has asked since a time, in no order.
func (j *journal) answers(since time.Time) (all []evaluate.Answer) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, t := range j.last {
		if t.answer.At.After(since) {
			all = append(all, t.answer)
		}
	}
	return all
}

// note takes down an answer of GetMetrics: a decision, or why there is none.
func (j *journal) note(ref *pb.ScaledObjectRef, t *trigger.Trigger, d *evaluate.Decision, err error) {
	key := triggerKey{ref.GetNamespace(), ref.GetName(), t.MetricName, t.Metric.Name, t.Target}
	now := said{failed: err != nil, replicas: -1, gaps: d.Gaps()}
	if err == nil && d.Replicas != nil {
		now.replicas, now.rule = d.Replicas.Desired, d.Replicas.Reason
	}
	if !possible(ref) {
		return
	}
	before, again := j.take(key, now, d)
	if again && before == now {
		return
	}
	log := j.log.With("namespace", key.namespace, "name", key.name, "metric", key.metric, "target", key.target)
	switch {
	case err != nil && !again && d.Until.IsZero(): // of a name that may be made up: no workload was read
		log.Debug("no answer", "reason", err)
	case err != nil:
		log.Warn("no answer", "reason", err)
	case now.replicas >= 0 || now.gaps > 0 || again && (before.failed || before.gaps != now.gaps):
		log.Info("decision", "is", d)
	}
}

// take remembers what was said, and returns what was before.
func (j *journal) take(key triggerKey, now said, d *evaluate.Decision) (before said, again bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	known, again := j.last[key]
	if !again {
		j.makeRoom()
		known = &noted{answer: evaluate.Answer{
			Namespace: key.namespace, Name: key.name, MetricName: key.metricName, Metric: key.metric, Target: key.target,
		}}
		j.last[key] = known
	}
	if now.failed {
		d = nil
	}
	known.answer.Take(d, time.Now())
	before, known.said = known.said, now
	return before, again
}

// makeRoom drops the names of no workload when there are too many, and then all.
func (j *journal) makeRoom() {
	if len(j.last) < journalled {
		return
	}
	maps.DeleteFunc(j.last, func(_ triggerKey, t *noted) bool { return !t.answer.Known })
	if len(j.last) >= journalled {
		clear(j.last)
	}
}

// possible says whether an object may have these names, which a caller makes up: they
// are kept.
func possible(ref *pb.ScaledObjectRef) bool {
	return len(ref.GetNamespace()) <= validation.DNS1123LabelMaxLength && len(ref.GetName()) <= validation.DNS1123SubdomainMaxLength
}
