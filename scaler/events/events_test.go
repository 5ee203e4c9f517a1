package events

import (
	"errors"
	"fmt"
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
)

const typo = `targetVallue: unknown key; did you mean "targetValue"?`

// What "kubectl describe scaledobject" looks for and shows.
func TestTheEvent(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.Refused("shop", "llm", typo)
		b.after(0)
		require.Len(t, b.events, 1)
		e := b.events[0]
		assert.Equal(t, corev1.ObjectReference{
			APIVersion: "keda.sh/v1alpha1", Kind: "ScaledObject", Namespace: "shop", Name: "llm", UID: "uid-1", ResourceVersion: "7",
		}, e.InvolvedObject)
		assert.Equal(t, "shop", e.Namespace)
		assert.Equal(t, "Warning", e.Type)
		assert.Equal(t, "InvalidTrigger", e.Reason)
		assert.Equal(t, corev1.EventSource{Component: "gpuscaler", Host: "node-1"}, e.Source)
		assert.Equal(t, typo, e.Message)
		assert.EqualValues(t, 1, e.Count)
		assert.Equal(t, map[string]int{"gpuscaler/test": 2}, b.agents)
	})
}

// KEDA repeats a call many times; from several goroutines, for all we know.
func TestRepeated(t *testing.T) {
	inBubble(t, func(b *bench) {
		repeat := func() {
			var all sync.WaitGroup
			for range 20 {
				all.Go(func() {
					for range 50 {
						b.Refused("shop", "llm", typo)
					}
				})
			}
			all.Wait()
			b.after(0)
		}
		repeat()
		assert.Equal(t, 1, b.lookedUp())
		for range 20 {
			b.after(time.Second)
			repeat()
		}
		assert.Equal(t, []string{"llm uid-1: " + typo + " x1"}, b.shown())
		assert.LessOrEqual(t, b.lookedUp(), 3, "once in 10 s")
		for range 70 {
			b.after(10 * time.Second)
			repeat()
		}
		assert.Equal(t, []string{"llm uid-1: " + typo + " x3"}, b.shown(), "counted up every 5 minutes")
		assert.Equal(t, 3, b.posts)
	})
}

// Whoever deletes the object and makes it anew is told again: it is another
// object, and "kubectl describe" shows it no event of the first.
func TestMadeAnew(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.Refused("shop", "llm", typo)
		b.after(askAgain + time.Second)
		b.set(func() { b.exist["shop/llm"] = "uid-2" })
		b.Refused("shop", "llm", typo)
		b.after(0)
		assert.Equal(t, []string{"llm uid-1: " + typo + " x1", "llm uid-2: " + typo + " x1"}, b.shown())
	})
}

func TestOneEventForEachMistake(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.set(func() { b.exist["shop/other"] = "uid-3" })
		b.Refused("shop", "llm", "first")
		b.Refused("shop", "llm", "second")
		b.Refused("shop", "other", "first")
		b.after(0)
		assert.Equal(t, []string{"llm uid-1: first x1", "llm uid-1: second x1", "other uid-3: first x1"}, b.shown())
	})
}

// Somebody who tries out many spellings gets one event that goes on changing,
// not one for each.
func TestManyMistakesAreCombined(t *testing.T) {
	inBubble(t, func(b *bench) {
		for i := range 200 {
			b.Refused("shop", "llm", fmt.Sprint("mistake ", i))
			b.after(2 * time.Second)
		}
		told := b.shown()
		require.Len(t, told, 10)
		assert.Contains(t, told[9], "(combined from similar events): mistake ")
		assert.Less(t, b.posts, 30, "the recorder's spam filter")
	})
}

// A ScaledJob's calls look the same.
func TestNoSuchObject(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.Refused("shop", "job", typo)
		b.after(0)
		assert.Equal(t, 1, b.lookedUp())
		assert.Empty(t, b.shown())
		assert.Zero(t, b.log.count("level="), "which is nothing to speak of")
	})
}

// What cannot be an object's name is not asked for.
func TestImpossibleNames(t *testing.T) {
	inBubble(t, func(b *bench) {
		for _, name := range []string{"", ".", "..", "a/b", "a%2fb", "../../secrets", "A", "a\n", "ä", "a_b", strings.Repeat("a", 254), strings.Repeat("a", 1<<20)} {
			b.Refused("shop", name, typo)
			b.Refused(name, "llm", typo)
		}
		b.after(time.Minute)
		assert.Zero(t, b.lookedUp())
	})
}

func TestLongMessage(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.Refused("shop", "llm", strings.Repeat("x", 1024))
		b.Refused("shop", "llm", "y"+strings.Repeat("ä", 1000))
		b.after(0)
		require.Len(t, b.events, 2)
		assert.Equal(t, strings.Repeat("x", 1024), b.events[0].Message)
		assert.Equal(t, "y"+strings.Repeat("ä", 510)+"...", b.events[1].Message, "whole characters")
	})
}

// An API server that accepts and never answers, or none at all, is nobody's
// concern but the log's.
func TestHangingAPIServer(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.set(func() { b.hang = true })
		began := time.Now()
		for i := range 10_000 {
			b.Refused("shop", fmt.Sprint("llm-", i), typo)
		}
		assert.Zero(t, time.Since(began), "nobody waits")
		b.after(time.Hour)
		assert.Equal(t, 1, b.log.count("too many refused triggers at once"))
		assert.Equal(t, 1, b.log.count("cannot look up ScaledObjects"))
		assert.Equal(t, 1, b.log.count("because there were too many"))
		b.set(func() { b.hang = false })
		b.Refused("shop", "llm", typo)
		b.after(time.Second)
		assert.Equal(t, []string{"llm uid-1: " + typo + " x1"}, b.shown())
		assert.Equal(t, 1, b.log.count("can be looked up again"))
	})
}

// Events that cannot be written do not keep lookups, or the end, waiting.
func TestEventsThatHang(t *testing.T) {
	inBubble(t, func(b *bench) {
		b.Refused("shop", "llm", "first")
		b.after(0)
		b.set(func() { b.hang = true })
		b.Refused("shop", "llm", "second")
		b.after(timeout)
		b.set(func() { b.hang = false })
		b.Refused("shop", "llm", "third")
		b.after(time.Minute)
		assert.Equal(t, []string{"llm uid-1: first x1", "llm uid-1: third x1"}, b.shown(), "KEDA asks again about the second")
		b.Refused("shop", "llm", "second")
		b.after(time.Minute)
		assert.Equal(t, []string{"llm uid-1: first x1", "llm uid-1: third x1", "llm uid-1: second x1"}, b.shown())
	})
}

// Without the rights the log says so once, and not for each of KEDA's calls.
func TestForbidden(t *testing.T) {
	for what, verb := range map[string]string{"scaledobjects": "get", "events": "create"} {
		inBubble(t, func(b *bench) {
			b.set(func() {
				b.refuse = func(r *http.Request) *apierrors.StatusError {
					if !strings.Contains(r.URL.Path, what) {
						return nil
					}
					return apierrors.NewForbidden(schema.GroupResource{Resource: what}, "llm", errors.New("no rights"))
				}
			})
			for range 100 {
				b.Refused("shop", "llm", typo)
				b.after(time.Second)
			}
			if verb == "get" {
				assert.Equal(t, 1, b.log.count("is forbidden"))
				assert.LessOrEqual(t, b.lookedUp(), 11)
			} else {
				assert.Equal(t, 1, b.posts)
			}
			assert.Empty(t, b.shown())
		})
	}
}

// Somebody who makes up names must not make us flood the API server, nor grow,
// nor keep the others from being told.
func TestMadeUpNames(t *testing.T) {
	inBubble(t, func(b *bench) {
		const minutes = 10
		for minute := range minutes {
			var all sync.WaitGroup
			for flooder := range 4 {
				all.Go(func() {
					for i := range 2500 {
						b.Refused("shop", fmt.Sprintf("made-up-%d-%d-%d", minute, flooder, i), strings.Repeat("x", 5000))
					}
				})
			}
			all.Wait()
			b.after(time.Minute)
		}
		assert.LessOrEqual(t, b.lookedUp(), minutes*60*lookups+lookupBurst)
		assert.LessOrEqual(t, len(b.asked.Keys()), remembered)
		assert.Empty(t, b.shown())
		assert.LessOrEqual(t, b.log.count("level="), 2*minutes+2)
		for range 100 { // the queue may be full: KEDA asks again
			b.Refused("shop", "llm", typo)
			b.after(time.Second)
		}
		assert.Len(t, b.shown(), 1)
	})
}
