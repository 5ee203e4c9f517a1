package externalscaler

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

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
			`is.replicas=4 is.rule="mean of the pods that count" is.mean=80 is.counting=2 is.starting=1 is.missing=0 is.unread="[pod llm-2: is on no node yet]"`,
	}, note(llm, 4, nil))
	assert.Empty(t, note(llm, 4, nil), "the same")
	assert.Len(t, note(llm, 5, nil), 1)
	assert.Equal(t, []string{`level=WARN msg="no answer any more" namespace=shop name=llm metric=gpu_utilization target=50 reason="nothing heard"`}, note(llm, 0, away))
	assert.Empty(t, note(llm, 0, errors.New("nothing heard for longer")))
	assert.Len(t, note(&pb.ScaledObjectRef{Namespace: "shop", Name: "other"}, 5, nil), 1, "one of its own")
	assert.Len(t, note(llm, 5, nil), 1, "it is back")
	for i := range 2 * journalled { // that nobody can fill the memory
		note(&pb.ScaledObjectRef{Namespace: "shop", Name: fmt.Sprint("made-up-", i)}, 0, away)
	}
	assert.LessOrEqual(t, len(j.last), journalled)
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
	assert.Equal(t, []string{`level=INFO msg=decision namespace=shop name=llm metric=gpu_utilization target=80 is.value=20 is.active=false is.unread="[GPU 3: GPU_IS_LOST]"`}, log.take())
}
