package events

import (
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
)

const flat = "memory_used_percent says nothing about load: 3 of 3 pods are flat"

func TestTheNotice(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.Notify("shop", "llm", "FlatSignal", flat)
		b.after(0)
		require.Len(t, b.events, 1)
		e := b.events[0]
		assert.Equal(t, "gpuscaler.uid-1.flatsignal.2000010100", e.Name)
		assert.Equal(t, corev1.ObjectReference{
			APIVersion: "keda.sh/v1alpha1", Kind: "ScaledObject", Namespace: "shop", Name: "llm", UID: "uid-1", ResourceVersion: "7",
		}, e.InvolvedObject)
		assert.Equal(t, "shop", e.Namespace)
		assert.Equal(t, []any{"Warning", "FlatSignal", flat}, []any{e.Type, e.Reason, e.Message})
		assert.Equal(t, corev1.EventSource{Component: "gpuscaler", Host: "node-1"}, e.Source)
		assert.Equal(t, []string{"gpuscaler", "node-1"}, []string{e.ReportingController, e.ReportingInstance})
		assert.EqualValues(t, 1, e.Count)
		assert.Equal(t, time.Now().Unix(), e.FirstTimestamp.Unix())
		assert.Equal(t, e.FirstTimestamp, e.LastTimestamp)
	})
}

func TestTypeOfEvent(t *testing.T) {
	for reason, want := range map[string]string{
		"FlatSignal": "Warning", "NothingWakesIt": "Warning", "CompositeTrigger": "Normal",
		"SuspiciousTarget": "Warning", "UnsupportedSharing": "Warning", "SharedDevice": "Warning", "InvalidTrigger": "Warning",
	} {
		inBubble(t, func(b *bench) {
			b.Notify("shop", "llm", reason, "message")
			b.after(0)
			require.Len(t, b.events, 1, reason)
			assert.Equal(t, []string{reason, want}, []string{b.events[0].Reason, b.events[0].Type})
		})
	}
}

// GetMetrics asks with every answer, for hours, with a message that changes.
func TestOneEventForEachReasonAndHour(t *testing.T) {
	inBubble(t, func(b *bench) {
		const hours = 3
		for i := range hours * 360 {
			var all sync.WaitGroup
			for range 4 {
				all.Go(func() {
					b.Notify("shop", "llm", "FlatSignal", fmt.Sprint("flat ", i))
					b.Notify("shop", "llm", "SharedDevice", fmt.Sprint("shared ", i))
				})
			}
			all.Wait()
			b.after(10 * time.Second)
		}
		var names []string
		for _, e := range b.events {
			names = append(names, e.Name)
			assert.EqualValues(t, 1, e.Count, "never counted up")
		}
		assert.ElementsMatch(t, []string{
			"gpuscaler.uid-1.flatsignal.2000010100", "gpuscaler.uid-1.shareddevice.2000010100",
			"gpuscaler.uid-1.flatsignal.2000010101", "gpuscaler.uid-1.shareddevice.2000010101",
			"gpuscaler.uid-1.flatsignal.2000010102", "gpuscaler.uid-1.shareddevice.2000010102",
		}, names)
		assert.Equal(t, len(names), b.posts, "no event is sent twice")
		assert.LessOrEqual(t, b.lookedUp(), hours*2*13, "one in five minutes")
	})
}

// Several scalers answer for one workload, and each of them may restart.
func TestOneEventForAllScalers(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.Notify("shop", "llm", "FlatSignal", flat)
		b.after(time.Minute)
		other := b.another("node-2")
		other.Notify("shop", "llm", "FlatSignal", "in other words")
		b.after(time.Minute)
		restarted := b.another("node-1")
		restarted.Notify("shop", "llm", "FlatSignal", "after a restart")
		b.after(time.Minute)
		assert.Equal(t, []string{"llm uid-1: " + flat + " x1"}, b.shown())
		assert.Equal(t, 3, b.posts)
		assert.Zero(t, b.log.count("level="), "that another process was first is no error")
		b.after(time.Hour)
		other.Notify("shop", "llm", "FlatSignal", "in the next hour")
		restarted.Notify("shop", "llm", "FlatSignal", "in the next hour")
		b.after(0)
		assert.Equal(t, []string{"llm uid-1: " + flat + " x1", "llm uid-1: in the next hour x1"}, b.shown())
	})
}

// An object that is deleted and made anew has no event, and gets its own.
func TestNoticeOfAnObjectMadeAnew(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.Notify("shop", "llm", "FlatSignal", flat)
		b.after(time.Second)
		b.set(func() { b.exist["shop/llm"] = "uid-2" })
		for range 31 {
			b.Notify("shop", "llm", "FlatSignal", flat)
			b.after(10 * time.Second)
		}
		assert.Equal(t, []string{"llm uid-1: " + flat + " x1", "llm uid-2: " + flat + " x1"}, b.shown())
	})
}

func TestReasons(t *testing.T) {
	for reason, accepted := range map[string]bool{
		"FlatSignal":                  true,
		"A" + strings.Repeat("b", 63): true,
		"A" + strings.Repeat("b", 64): false,
		strings.Repeat("Flat", 1<<18): false,
		"":                            false,
		"flatSignal":                  false,
		"Flat Signal":                 false,
		"Flat_Signal":                 false,
		"Flat1":                       false,
		"Flat-Signal":                 false,
		"Flät":                        false,
		"Flat/../..":                  false,
		"Flat[":                       false,
		"Flat@":                       false,
	} {
		inBubble(t, func(b *bench) {
			for range 100 {
				b.Notify("shop", "llm", reason, flat)
			}
			b.after(0)
			if accepted {
				assert.Len(t, b.events, 1, reason)
				assert.Zero(t, b.log.count("level="), reason)
				return
			}
			assert.Zero(t, b.lookedUp(), reason)
			assert.Equal(t, 1, b.log.count("not a CamelCase word"), "once: %q", reason)
		})
	}
}

func TestNoticesOfImpossibleNames(t *testing.T) {
	inBubble(t, func(b *bench) {
		for _, name := range []string{"", "..", "a/b", "../../secrets", "A", "a\n", "a_b", strings.Repeat("a", 254), strings.Repeat("a", 1<<20)} {
			b.Notify("shop", name, "FlatSignal", flat)
			b.Notify(name, "llm", "FlatSignal", flat)
		}
		b.after(time.Minute)
		assert.Zero(t, b.lookedUp())
		assert.Empty(t, b.noticed.young)
	})
}

// A ScaledJob's calls look the same, and nothing is there to record an event on.
func TestNoticeOfNoScaledObject(t *testing.T) {
	inBubble(t, func(b *bench) {
		for range 60 {
			b.Notify("shop", "job", "FlatSignal", flat)
			b.after(10 * time.Second)
		}
		assert.LessOrEqual(t, b.lookedUp(), 3)
		assert.Zero(t, b.log.count("level="))
	})
}

// A notice that failed is repeated, and the log says so once.
func TestNoticeForbidden(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.set(func() {
			b.refuse = func(r *http.Request) *apierrors.StatusError {
				if !strings.Contains(r.URL.Path, "events") {
					return nil
				}
				return apierrors.NewForbidden(schema.GroupResource{Resource: "events"}, "llm", errors.New("no rights"))
			}
		})
		repeat := func() {
			for range 60 {
				b.Notify("shop", "llm", "FlatSignal", flat)
				b.after(time.Second)
			}
		}
		repeat()
		assert.Equal(t, 1, b.log.count("cannot record events"))
		assert.LessOrEqual(t, b.posts, 7)
		b.set(func() { b.refuse = nil })
		repeat()
		assert.Equal(t, []string{"llm uid-1: " + flat + " x1"}, b.shown())
		assert.Equal(t, 1, b.log.count("can be recorded again"))
	})
}

// An API server that accepts and never answers holds up no caller.
func TestNoticesWithAHangingAPIServer(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.set(func() { b.hang = true })
		began := time.Now()
		for i := range 10_000 {
			b.Notify("shop", fmt.Sprint("llm-", i), "FlatSignal", flat)
		}
		assert.Zero(t, time.Since(began))
		b.after(time.Hour)
		b.set(func() { b.hang = false })
		b.Notify("shop", "llm", "FlatSignal", flat)
		b.after(time.Second)
		assert.Equal(t, []string{"llm uid-1: " + flat + " x1"}, b.shown())
	})
}

// Many workloads, real or made up, cost a bounded memory and one lookup a second, and
// a refused trigger is not behind all of them.
func TestManyNotices(t *testing.T) {
	inBubble(t, func(b *bench) {
		const minutes, names = 3, 60_000
		name := func(i int) string { return fmt.Sprintf("made-up-%d-%s", i, strings.Repeat("x", 200)) }
		for minute := range minutes {
			for i := range names {
				b.Notify("shop", name(minute*names+i), "FlatSignal", flat)
			}
			b.Refused("shop", "llm", typo)
			b.after(time.Minute)
		}
		assert.Equal(t, []string{"llm uid-1: " + typo + " x1"}, b.shown())
		assert.LessOrEqual(t, b.lookedUp(), minutes*60*lookups+lookupBurst)
		assert.LessOrEqual(t, len(b.noticed.young)+len(b.noticed.old), 2*generation)
		assert.Zero(t, b.log.count("too many"))
	})
}

// Where there are more workloads than the worker gets through, each gets its event
// in turn, and none a second one.
func TestManyWorkloads(t *testing.T) {
	inBubble(t, func(b *bench) {
		const workloads = 200
		b.set(func() {
			for i := range workloads {
				b.exist[fmt.Sprint("shop/w-", i)] = types.UID(fmt.Sprint("uid-w-", i))
			}
		})
		for range 100 {
			for i := range workloads {
				b.Notify("shop", fmt.Sprint("w-", i), "SharedDevice", "message")
			}
			b.after(10 * time.Second)
		}
		assert.Len(t, b.events, workloads)
		assert.Equal(t, workloads, b.posts)
	})
}

// The memory drops the notices that no caller repeats, and keeps the others.
func TestMemory(t *testing.T) {
	m := newMemory()
	now := time.Unix(1_000_000, 0)
	used, unused := m.key("used"), m.key("unused")
	for _, key := range []uint64{used, unused} {
		m.set(key, seen{again: now.Unix() + 60})
	}
	for i := range 10 * generation {
		m.set(m.key("other", fmt.Sprint(i)), seen{})
		require.False(t, m.due(used, now, 0))
	}
	assert.True(t, m.due(unused, now, 0), "it was dropped")
	assert.LessOrEqual(t, len(m.young)+len(m.old), 2*generation)
	assert.NotEqual(t, m.key("a", "bc"), m.key("ab", "c"))
}

func TestDue(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	for name, c := range map[string]struct {
		known   seen
		waiting int
		want    bool
	}{
		"new":                             {seen{}, 0, true},
		"new, the queue is half full":     {seen{}, queued / 2, false},
		"queued a moment ago":             {seen{again: 1_000_001}, 0, false},
		"long ago, without an event":      {seen{again: 1_000_000}, 10, true},
		"it has the event of this hour":   {seen{again: 1_000_000, until: 1_000_001}, 0, true},
		"the same, others wait":           {seen{again: 1_000_000, until: 1_000_001}, 1, false},
		"it has that of the hour before":  {seen{again: 999_000, until: 1_000_000}, 1, true},
		"recorded within the last 5 min.": {seen{again: 1_000_100, until: 1_001_000}, 0, false},
	} {
		m := newMemory()
		m.set(1, c.known)
		assert.Equal(t, c.want, m.due(1, now, c.waiting), name)
	}
}

// With every answer: no allocation.
func TestARepeatedNoticeIsCheap(t *testing.T) {
	r, err := New(&rest.Config{Host: "http://api"}, "node-1", slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	r.Notify("shop", "llm", "FlatSignal", flat)
	assert.Zero(t, testing.AllocsPerRun(1000, func() { r.Notify("shop", "llm", "FlatSignal", flat) }))
}

func BenchmarkRepeatedNotice(b *testing.B) {
	r, err := New(&rest.Config{Host: "http://api"}, "node-1", slog.New(slog.DiscardHandler))
	require.NoError(b, err)
	for b.Loop() {
		r.Notify("shop", "llm", "FlatSignal", flat)
	}
}
