// Package llmserver serves the model of package llmengine over HTTP in real time, as an
// inference server does: requests are answered when they are finished, /metrics has vLLM's
// names, and nobody listens before the model is loaded.
package llmserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"gpuscaler/deploy/e2e/llmengine"
)

// maxBody is how large a request may be, in bytes.
const maxBody = 1 << 20

// Server is one engine in real time. Its methods may be called concurrently.
type Server struct {
	model string
	start time.Time

	mu      sync.Mutex
	engine  *llmengine.Engine
	waiting map[llmengine.ID]chan llmengine.Completion
	changed chan struct{} // has something when the engine's next step is another one
}

// New makes a server whose model is loading from now on.
func New(model string, c llmengine.Config) (*Server, error) {
	engine, err := llmengine.New(c)
	if err != nil {
		return nil, err
	}
	return &Server{
		model: model, start: time.Now(), engine: engine,
		waiting: map[llmengine.ID]chan llmengine.Completion{}, changed: make(chan struct{}, 1),
	}, nil
}

// Load waits until the model is loaded, or ctx is done.
func (s *Server) Load(ctx context.Context) error {
	for {
		s.mu.Lock()
		s.advance()
		ready := s.engine.Ready()
		next, _ := s.engine.Next()
		wait := next - s.engine.Now()
		s.mu.Unlock()
		if ready {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait):
		}
	}
}

// Run has time pass for the engine until ctx is done.
func (s *Server) Run(ctx context.Context) error {
	for {
		s.mu.Lock()
		s.advance()
		wait := time.Hour
		if next, ok := s.engine.Next(); ok {
			wait = next - s.engine.Now()
		}
		s.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil
		case <-s.changed:
		case <-time.After(wait):
		}
	}
}

// advance lets time pass until now, and answers what has finished. s.mu is held.
func (s *Server) advance() {
	for _, done := range s.engine.Advance(time.Since(s.start)) {
		if c := s.waiting[done.ID]; c != nil {
			c <- done
			delete(s.waiting, done.ID)
		}
	}
}

// Handler serves POST /v1/completions, GET /metrics, GET /health and GET /gpu.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/completions", s.complete)
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", llmengine.ContentType)
		state, _ := s.state()
		_ = state.WriteMetrics(w, s.model)
	})
	mux.HandleFunc("GET /health", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("GET /gpu", func(w http.ResponseWriter, _ *http.Request) {
		_, busy := s.state()
		answer(w, GPU{Utilization: busy})
	})
	return mux
}

// GPU is what the engine does to its GPU.
type GPU struct {
	// Utilization is the share of the last BusyWindow in which steps ran, in percent.
	Utilization float64 `json:"utilization"`
}

func (s *Server) state() (llmengine.State, float64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.advance()
	return s.engine.State(), s.engine.Busy()
}

// Request asks for a completion, as vLLM's API has it but for the prompt, of which only the
// length matters.
type Request struct {
	PromptTokens int `json:"prompt_tokens"`
	MaxTokens    int `json:"max_tokens"`
}

// Response is the answer, with times in milliseconds since the request was there.
type Response struct {
	CompletionTokens int     `json:"completion_tokens"`
	QueuedMS         float64 `json:"queued_ms"`
	FirstTokenMS     float64 `json:"first_token_ms"`
	TotalMS          float64 `json:"total_ms"`
}

func (s *Server) complete(w http.ResponseWriter, r *http.Request) {
	var asked Request
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody)).Decode(&asked); err != nil {
		http.Error(w, fmt.Sprintf("body: %v; allowed is {\"prompt_tokens\": N, \"max_tokens\": N}", err), http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	s.advance()
	id, err := s.engine.Submit(asked.PromptTokens, asked.MaxTokens)
	done := make(chan llmengine.Completion, 1)
	if err == nil {
		s.waiting[id] = done
	}
	s.mu.Unlock()
	if err != nil {
		status := http.StatusInternalServerError
		if errors.Is(err, llmengine.ErrRequest) {
			status = http.StatusBadRequest
		}
		http.Error(w, err.Error(), status)
		return
	}
	s.wake()
	select {
	case c := <-done:
		since := func(t time.Duration) float64 { return float64(t-c.Arrived) / float64(time.Millisecond) }
		answer(w, Response{CompletionTokens: c.OutputTokens, QueuedMS: since(c.Admitted), FirstTokenMS: since(c.FirstToken), TotalMS: since(c.Finished)})
	case <-r.Context().Done(): // the client has gone
		s.mu.Lock()
		s.advance()
		s.engine.Cancel(id)
		delete(s.waiting, id)
		s.mu.Unlock()
		s.wake()
	}
}

func (s *Server) wake() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

func answer(w http.ResponseWriter, with any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(with)
}
