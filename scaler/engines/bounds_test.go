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
