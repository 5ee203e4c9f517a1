package demand

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"gpuscaler/scaler/fleet"
)

func ask(uid string) Ask { return Ask{EngineKey: fleet.EngineKey{UID: uid}} }

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// TestWants: what a trigger asks for is wanted for five minutes, and no longer.
func TestWants(t *testing.T) {
	b, now := NewBoard("a"), time.Unix(1e9, 0)
	updated := b.Updated()
	w := Want{Namespace: "n", Name: "llm", How: Ask{Quantile: 0.5}}
	b.Want(w, now)
	assert.True(t, closed(updated), "something new is placed at once")
	updated = b.Updated()
	b.Want(w, now.Add(time.Minute))
	assert.False(t, closed(updated))
	assert.Equal(t, []Want{w}, b.Wants(now.Add(time.Minute+wanted-1)))
	assert.Empty(t, b.Wants(now.Add(time.Minute+wanted)))
	for i := range mostWants + 10 {
		b.Want(Want{Name: fmt.Sprint(i)}, now)
	}
	assert.Len(t, b.Wants(now), mostWants)
}

// TestHere: a node reads what its own triggers and its peers want, each once, and nothing
// any more when nobody does.
func TestHere(t *testing.T) {
	b := NewBoard("a")
	b.Place(map[string][]Ask{"a": {ask("2"), ask("1"), ask("1")}, "b": {ask("3")}})
	assert.Equal(t, []Ask{ask("1"), ask("2")}, b.Of("a"))
	assert.Equal(t, []Ask{ask("3")}, b.Of("b"))
	updated := b.Updated()
	b.Place(map[string][]Ask{"a": {ask("1"), ask("2")}, "b": {ask("3")}})
	assert.False(t, closed(updated), "the same places are no change")

	p, q := b.Join(), b.Join()
	p.Ask([]Ask{ask("1"), ask("4")})
	q.Ask([]Ask{ask("4")})
	assert.ElementsMatch(t, []Ask{ask("1"), ask("2"), ask("4")}, b.Here())
	p.Leave()
	q.Ask(nil)
	assert.ElementsMatch(t, []Ask{ask("1"), ask("2")}, b.Here())
	b.Place(nil)
	assert.True(t, closed(updated))
	assert.Empty(t, b.Here())

	front := NewBoard("")
	front.Place(map[string][]Ask{"": {ask("1")}})
	assert.Empty(t, front.Here(), "a scaler without a node reads nothing")
}
