package engines

import (
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
