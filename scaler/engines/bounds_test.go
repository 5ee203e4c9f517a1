package engines

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/scaler/demand"
	"gpuscaler/scaler/fleet"
)

// TestLinger: who stops asking and asks again within a moment, as peers whose stream has
// ended, finds the engine as it was.
func TestLinger(t *testing.T) {
	p := newPod(t, "llm", page(recording(t, "vllm-0.11.txt")))
	a := &asks{}
	node := read(t, a, p)
	a.set(p.ask())
	becomes(t, node, p.ask().EngineKey, func(e *fleet.Engine) bool { return e != nil && !e.Heard.IsZero() })
	a.set()
	time.Sleep(3 * interval)
	require.NotNil(t, node.Node().Engine(p.ask().EngineKey))
	a.set(p.ask())
	time.Sleep(2 * interval)
	assert.EqualValues(t, 1, p.connections.Load(), "it was read all the time")
	a.set()
	becomes(t, node, p.ask().EngineKey, func(e *fleet.Engine) bool { return e == nil })
}

// TestWays: triggers that name many ports and paths of a pod do not have it read in each of
// these ways.
func TestWays(t *testing.T) {
	p := newPod(t, "llm", page(recording(t, "vllm-0.11.txt")))
	a := &asks{}
	node := read(t, a, p)
	var all []demand.Ask
	for port := range 20 {
		all = append(all, p.ask(func(ask *demand.Ask) { ask.Port = 1 + port }))
	}
	a.set(all...)
	time.Sleep(3 * interval)
	assert.Len(t, node.Node().Engines(), mostWays)
}

// TestHangingNeighbours: pods that take a connection and say nothing do not keep those of
// other namespaces from being read every second.
func TestHangingNeighbours(t *testing.T) {
	hang := make(chan struct{})
	a := &asks{}
	var all []demand.Ask
	var pods []*pod
	for i := range 40 {
		p := newPod(t, fmt.Sprint("hanging-", i), func(_ http.ResponseWriter, r *http.Request) {
			select {
			case <-hang:
			case <-r.Context().Done():
			}
		})
		p.WasReady = false // it is asked again at full pace
		pods, all = append(pods, p), append(all, p.ask())
	}
	defer close(hang)
	good := newPod(t, "good", page(recording(t, "vllm-0.11.txt")))
	good.Namespace = "other"
	node := read(t, a, append(pods, good)...)
	a.set(append(all, good.ask())...)
	becomes(t, node, good.ask().EngineKey, func(e *fleet.Engine) bool { return e != nil && !e.Heard.IsZero() })
	before := good.requests.Load()
	time.Sleep(6 * interval)
	assert.GreaterOrEqual(t, good.requests.Load()-before, int64(3), "of some 6 in 6 s")
}

// TestAnswersForAnother: an answer is the pod's whose address it came from, whatever pod its
// labels name, and the pod that has the address next begins anew.
func TestAnswersForAnother(t *testing.T) {
	busy := "vllm:num_requests_waiting{model_name=\"m\",namespace=\"shop\",pod=\"victim\"} 90\nvllm:num_requests_running{model_name=\"m\"} 1\n"
	liar, victim := newPod(t, "liar", page(busy)), newPod(t, "victim", page(recording(t, "vllm-0.6.txt")))
	a := &asks{}
	a.set(liar.ask(), victim.ask())
	node := read(t, a, liar, victim)
	waiting := func(of *pod) float64 {
		e := becomes(t, node, of.ask().EngineKey, func(e *fleet.Engine) bool { return e != nil && e.Readings.Len() > 0 })
		v, _, ok := e.Readings.Mean("engine_waiting", 0)
		require.True(t, ok)
		return v
	}
	assert.InDelta(t, 90, waiting(liar), 0)
	assert.InDelta(t, 3, waiting(victim), 0)

	next := &pod{Pod: victim.Pod}
	next.UID = "next"
	a.set(liar.ask(), next.ask())
	node.SetPods([]fleet.Pod{liar.Pod, next.Pod}, time.Now())
	becomes(t, node, victim.ask().EngineKey, func(e *fleet.Engine) bool { return e == nil })
	e := becomes(t, node, next.ask().EngineKey, func(e *fleet.Engine) bool { return e != nil })
	assert.Less(t, e.Totals[fleet.Requests], 1.0, "requests of the one before")
}
