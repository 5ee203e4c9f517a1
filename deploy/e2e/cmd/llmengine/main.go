// Command llmengine is an inference server without a model and without a GPU: it takes its
// time as one with continuous batching does, and has vLLM's metrics. "llmengine load" sends
// requests to one.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/alecthomas/kong"
	"golang.org/x/sync/errgroup"

	"gpuscaler/deploy/e2e/llmengine"
	"gpuscaler/deploy/e2e/llmserver"
)

type commands struct {
	Serve serve `cmd:"" default:"withargs" help:"Serve (the default)."`
	Load  load  `cmd:"" help:"Send requests to an inference server, and tell how long they wait."`
}

// serve is an engine.
type serve struct {
	Listen     string        `default:"127.0.0.1:8000" help:"Address of /v1/completions, /metrics, /health and /gpu; nobody listens before the model is loaded."`
	Model      string        `default:"e2e/llama-8b" help:"Name of the model, in labels."`
	Loading    time.Duration `default:"20s" help:"How long the model loads."`
	MaxRunning int           `default:"16" help:"Requests that run at a time at most."`
	KVTokens   int           `name:"kv-tokens" default:"60000" help:"Size of the KV cache, in tokens."`
	Speed      float64       `default:"1" help:"So many times as fast as the usual GPU."`
	Draining   time.Duration `default:"8s" help:"How long requests in flight may take after SIGTERM."`
}

func main() { os.Exit(run()) }

func run() int {
	var c commands
	k := kong.Parse(&c, kong.Description("An inference server for tests, with vLLM's metrics."))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	k.BindTo(ctx, (*context.Context)(nil))
	if err := k.Run(); err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "llmengine:", err)
		return 1
	}
	return 0
}

// Run serves until ctx is done.
func (f *serve) Run(ctx context.Context) error {
	if !(f.Speed > 0) {
		return fmt.Errorf("--speed: %v is not above 0", f.Speed)
	}
	c := llmengine.Default()
	c.Loading, c.MaxRunning, c.KVTokens, c.Jitter = f.Loading, f.MaxRunning, f.KVTokens, 0.05
	c.PrefillRate *= f.Speed
	c.DecodeStep, c.DecodeSlope = time.Duration(float64(c.DecodeStep)/f.Speed), time.Duration(float64(c.DecodeSlope)/f.Speed)
	s, err := llmserver.New(f.Model, c)
	if err != nil {
		return err
	}
	if err := s.Load(ctx); err != nil {
		return err
	}
	l, err := net.Listen("tcp", f.Listen)
	if err != nil {
		return fmt.Errorf("--listen: %w", err)
	}
	web := &http.Server{Handler: s.Handler(), ReadHeaderTimeout: 5 * time.Second}
	running, end := context.WithCancel(context.Background()) // until what is in flight is done
	defer end()
	parts, ctx := errgroup.WithContext(ctx)
	parts.Go(func() error { return s.Run(running) })
	parts.Go(func() error {
		if err := web.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	parts.Go(func() error {
		<-ctx.Done()
		finishing, cancel := context.WithTimeout(context.Background(), f.Draining)
		defer cancel()
		if web.Shutdown(finishing) != nil { // what is left breaks off
			_ = web.Close()
		}
		end()
		return nil
	})
	return parts.Wait()
}
