package llmload

import (
	"context"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/deploy/e2e/arrivals"
	"gpuscaler/deploy/e2e/llmengine"
	"gpuscaler/deploy/e2e/llmserver"
)

// TestReplay: each request is sent at its time, and the third waits for its first token
// while two run; what the server refuses is an error.
func TestReplay(t *testing.T) {
	c := llmengine.Default()
	c.Loading, c.MaxRunning = 0, 2
	s, err := llmserver.New("m", c)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- s.Run(ctx) }()
	web := httptest.NewServer(s.Handler())
	t.Cleanup(func() {
		web.Close()
		cancel()
		require.NoError(t, <-ended)
	})
	var mu sync.Mutex
	all := map[time.Duration]Result{}
	trace := arrivals.Trace{
		{At: 0, PromptTokens: 100, OutputTokens: 20}, {At: 10 * time.Millisecond, PromptTokens: 100, OutputTokens: 20},
		{At: 20 * time.Millisecond, PromptTokens: 100, OutputTokens: 20}, {At: 30 * time.Millisecond, PromptTokens: 1 << 20, OutputTokens: 1},
	}
	require.NoError(t, Replay(t.Context(), web.URL, trace, func(r Result) {
		mu.Lock()
		defer mu.Unlock()
		all[r.At] = r
	}))
	require.Len(t, all, 4)
	for i, r := range trace[:3] {
		require.NoError(t, all[r.At].Err)
		assert.GreaterOrEqual(t, all[r.At].Total, 400*time.Millisecond, "20 steps of 20 ms")
		assert.Less(t, all[r.At].Wait, all[r.At].Total, "%d", i)
	}
	assert.GreaterOrEqual(t, all[20*time.Millisecond].Wait, 300*time.Millisecond)
	assert.ErrorContains(t, all[30*time.Millisecond].Err, "HTTP status 400")
}
