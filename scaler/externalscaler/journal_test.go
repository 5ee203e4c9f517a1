package externalscaler

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	pb "github.com/kedacore/keda/v2/pkg/scalers/externalscaler"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/profiles"
	"gpuscaler/scaler/evaluate"
	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/replicas"
	"gpuscaler/scaler/trigger"
)

// lines is a log at Info, without its times.
type lines struct{ bytes.Buffer }

func (l *lines) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(&l.Buffer, &slog.HandlerOptions{ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
		if len(groups) == 0 && a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
}

// take is what was logged since the last time.
func (l *lines) take() (all []string) {
	defer l.Reset()
	return strings.FieldsFunc(l.String(), func(r rune) bool { return r == '\n' })
}

func TestJournalHasWhatChanges(t *testing.T) {
	log := &lines{}
	j := newJournal(log.logger())
	tr, err := trigger.Parse(metadata{"targetValue": "50"}, profiles.Builtin())
	require.NoError(t, err)
	llm := &pb.ScaledObjectRef{Namespace: "shop", Name: "llm"}
	note := func(ref *pb.ScaledObjectRef, n int, err error) []string {
		d := evaluate.Decision{}
		if err == nil {
			d.Value, d.Active = 160, true
			d.Replicas = &replicas.Decision{Desired: n, Leads: n, Mean: 80, Reason: replicas.ByMean, Counting: 2, Starting: 1}
			d.Pods = []evaluate.PodReading{{Pod: &fleet.Pod{Name: "llm-2"}, State: replicas.Starting, Reason: "is on no node yet"}}
		}
		j.note(ref, &tr, &d, err)
		return log.take()
	}
	away := errors.New("nothing heard")
	assert.Empty(t, note(llm, 0, away), "of a name that may be made up")
	assert.Equal(t, []string{
		`level=INFO msg=decision namespace=shop name=llm metric=gpu_utilization target=50 is.value=160 is.active=true ` +
			`is.replicas=4 is.rule="mean of the pods that count" is.mean=80 is.counting=2 is.starting=1 is.missing=0 is.because="[pod llm-2: is on no node yet]"`,
	}, note(llm, 4, nil))
	assert.Empty(t, note(llm, 4, nil), "the same")
	assert.Len(t, note(llm, 5, nil), 1)
	assert.Equal(t, []string{`level=WARN msg="no answer" namespace=shop name=llm metric=gpu_utilization target=50 reason="nothing heard"`}, note(llm, 0, away))
	assert.Empty(t, note(llm, 0, errors.New("nothing heard for longer")))
	assert.Len(t, note(&pb.ScaledObjectRef{Namespace: "shop", Name: "other"}, 5, nil), 1, "one of its own")
	assert.Len(t, note(llm, 5, nil), 1, "it is back")
	for i := range 2 * journalled { // that nobody can fill the memory
		note(&pb.ScaledObjectRef{Namespace: "shop", Name: fmt.Sprint("made-up-", i)}, 0, away)
	}
	assert.LessOrEqual(t, len(j.last), journalled)
	assert.Empty(t, note(llm, 5, nil), "names of no workload do not push out one that is known")

	before := len(j.last)
	for _, ref := range []*pb.ScaledObjectRef{{Namespace: strings.Repeat("n", 64), Name: "llm"}, {Namespace: "shop", Name: strings.Repeat("n", 254)}} {
		note(ref, 5, nil)
	}
	assert.Len(t, j.last, before, "names that no object can have are not kept")
}

// What KEDA was told last, for those who watch.
func TestAnswers(t *testing.T) {
	j := newJournal((&lines{}).logger())
	tr, err := trigger.Parse(metadata{"targetValue": "50"}, profiles.Builtin())
	require.NoError(t, err)
	ref := &pb.ScaledObjectRef{Namespace: "shop", Name: "llm"}
	began := time.Now()
	j.note(ref, &tr, &evaluate.Decision{Value: 160, Active: true, Replicas: &replicas.Decision{Desired: 4, Counting: 2, Starting: 1, Missing: 1}}, nil)
	told := j.answers(began.Add(-time.Second))
	require.Len(t, told, 1)
	share, ok := told[0].Coverage()
	assert.True(t, ok)
	assert.InDelta(t, 0.75, share, 0)
	assert.False(t, told[0].At.Before(began))
	told[0].At = time.Time{}
	want := evaluate.Answer{Namespace: "shop", Name: "llm", MetricName: tr.MetricName, Metric: "gpu_utilization", Target: 50, Value: 160, Active: true, Replicas: 4, Of: 4, Missing: 1, Known: true}
	assert.Equal(t, want, told[0])

	j.note(ref, &tr, &evaluate.Decision{}, errors.New("gone"))
	told = j.answers(began.Add(-time.Second))
	require.Len(t, told, 1)
	assert.True(t, told[0].Failed && told[0].Known && told[0].Value == 0 && told[0].Replicas == -1)
	assert.Empty(t, j.answers(time.Now().Add(time.Second)), "nobody has asked since")
}

// TestJournalOfANode: without a workload the number changes all the time; only
// whether there is one is worth a line.
func TestJournalOfANode(t *testing.T) {
	log := &lines{}
	j := newJournal(log.logger())
	tr, err := trigger.Parse(metadata{"scope": "node"}, profiles.Builtin())
	require.NoError(t, err)
	ref := &pb.ScaledObjectRef{Namespace: "shop", Name: "llm"}
	j.note(ref, &tr, &evaluate.Decision{Value: 10}, nil)
	j.note(ref, &tr, &evaluate.Decision{Value: 20}, nil)
	assert.Empty(t, log.take())
	j.note(ref, &tr, &evaluate.Decision{}, errors.New("gone"))
	assert.Len(t, log.take(), 1)
	j.note(ref, &tr, &evaluate.Decision{Value: 20, LeftOut: []evaluate.LeftOut{{Device: &fleet.Device{Vendor: "nvidia", Index: 3}, Reason: "GPU_IS_LOST"}}}, nil)
	assert.Equal(t, []string{`level=INFO msg=decision namespace=shop name=llm metric=gpu_utilization target=80 is.value=20 is.active=false is.because="[GPU 3: GPU_IS_LOST]"`}, log.take())
}
