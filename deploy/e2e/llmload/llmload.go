// Package llmload sends the requests of a trace to an inference server, each at its time
// whether those before are answered or not, as users do.
package llmload

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"gpuscaler/deploy/e2e/arrivals"
	"gpuscaler/deploy/e2e/llmserver"
)

// Result is how one request went.
type Result struct {
	// At is its time in the trace.
	At time.Duration
	// Wait is how long it took to its first token, as the user sees it: what the server
	// says, and what was before the server had it.
	Wait time.Duration
	// Total is how long it took in all.
	Total time.Duration
	// Err is why it was not answered, or nil.
	Err error
}

// Replay sends the requests of a trace to url, and tells of each when it has ended. It
// returns when all have, or when ctx is done.
func Replay(ctx context.Context, url string, trace arrivals.Trace, tell func(Result)) error {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}} // each user has a connection
	began := time.Now()
	var all sync.WaitGroup
	defer all.Wait()
	for _, r := range trace {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Until(began.Add(r.At))):
		}
		all.Go(func() {
			result := send(ctx, client, url, r)
			if ctx.Err() == nil {
				tell(result)
			}
		})
	}
	return nil
}

func send(ctx context.Context, client *http.Client, url string, r arrivals.Request) (result Result) {
	result.At = r.At
	body, err := json.Marshal(llmserver.Request{PromptTokens: r.PromptTokens, MaxTokens: r.OutputTokens})
	if err != nil {
		result.Err = err
		return result
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/v1/completions", bytes.NewReader(body))
	if err != nil {
		result.Err = err
		return result
	}
	request.Header.Set("Content-Type", "application/json")
	began := time.Now()
	response, err := client.Do(request)
	if err != nil {
		result.Err = err
		return result
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	result.Total = time.Since(began)
	var answer llmserver.Response
	switch {
	case err != nil:
		result.Err = err
	case response.StatusCode != http.StatusOK:
		result.Err = fmt.Errorf("HTTP status %d: %s", response.StatusCode, bytes.TrimSpace(text))
	default:
		result.Err = errors.Join(json.Unmarshal(text, &answer))
	}
	// The server counts from when it had the request; what was before is the rest.
	served := time.Duration(answer.TotalMS * float64(time.Millisecond))
	result.Wait = result.Total - served + time.Duration(answer.FirstTokenMS*float64(time.Millisecond))
	return result
}
