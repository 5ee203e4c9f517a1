package llmserver

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/deploy/e2e/llmengine"
)

// serve runs a server with a batch of two.
func serve(t *testing.T) (*Server, string) {
	t.Helper()
	c := llmengine.Default()
	c.Loading, c.MaxRunning = 100*time.Millisecond, 2
	s, err := New("m", c)
	require.NoError(t, err)
	began := time.Now()
	require.NoError(t, s.Load(t.Context()))
	require.GreaterOrEqual(t, time.Since(began), 90*time.Millisecond)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- s.Run(ctx) }()
	web := httptest.NewServer(s.Handler())
	t.Cleanup(func() {
		web.Close()
		cancel()
		require.NoError(t, <-ended)
	})
	return s, web.URL
}

func post(ctx context.Context, url string, r any) (status int, body []byte, err error) {
	text, _ := json.Marshal(r)
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/completions", bytes.NewReader(text))
	if err != nil {
		return 0, nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = response.Body.Close() }()
	body, err = io.ReadAll(response.Body)
	return response.StatusCode, body, err
}

func metric(t *testing.T, url, name string) string {
	t.Helper()
	response, err := http.Get(url + "/metrics")
	require.NoError(t, err)
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	for line := range strings.Lines(string(body)) {
		if strings.HasPrefix(line, "vllm:"+name+"{") {
			return strings.TrimSpace(line[strings.LastIndexByte(line, ' '):])
		}
	}
	return ""
}

// TestCompletes: requests are answered when they are finished, in real time, and the third
// one waits for one of the two that run.
func TestCompletes(t *testing.T) {
	_, url := serve(t)
	var all sync.WaitGroup
	var responses [3]Response
	for i := range responses {
		all.Go(func() {
			began := time.Now()
			status, body, err := post(t.Context(), url, Request{PromptTokens: 100, MaxTokens: 10})
			assert.NoError(t, err)
			assert.Equal(t, http.StatusOK, status, "%s", body)
			assert.NoError(t, json.Unmarshal(body, &responses[i]))
			assert.GreaterOrEqual(t, time.Since(began).Seconds()*1000, responses[i].TotalMS)
		})
	}
	all.Wait()
	waited := 0
	for _, r := range responses {
		assert.Equal(t, 10, r.CompletionTokens)
		assert.GreaterOrEqual(t, r.TotalMS, 200.0, "10 steps of 20 ms")
		if r.QueuedMS > 100 {
			waited++
		}
	}
	assert.Equal(t, 1, waited, "%+v", responses)
	assert.Equal(t, "30.0", metric(t, url, "generation_tokens_total"))
}

// TestGone: a client that goes frees its place.
func TestGone(t *testing.T) {
	_, url := serve(t)
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error, 1)
	go func() {
		_, _, err := post(ctx, url, Request{PromptTokens: 10, MaxTokens: 5000})
		gone <- err
	}()
	require.Eventually(t, func() bool { return metric(t, url, "num_requests_running") == "1.0" }, 10*time.Second, 10*time.Millisecond)
	cancel()
	require.Error(t, <-gone)
	require.Eventually(t, func() bool { return metric(t, url, "num_requests_running") == "0.0" }, 10*time.Second, 10*time.Millisecond)
}

// TestRefuses: what can never run is refused, and what is no request.
func TestRefuses(t *testing.T) {
	_, url := serve(t)
	for _, c := range []struct {
		body any
		want string
	}{
		{Request{PromptTokens: 1 << 20, MaxTokens: 1}, "more than the 60000 of the KV cache"},
		{Request{PromptTokens: 1}, "both must be at least 1"},
		{"text", "allowed is"},
	} {
		status, body, err := post(t.Context(), url, c.body)
		require.NoError(t, err)
		assert.Equal(t, http.StatusBadRequest, status)
		assert.Contains(t, string(body), c.want, fmt.Sprint(c.body))
	}
}
