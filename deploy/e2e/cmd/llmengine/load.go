package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"gpuscaler/deploy/e2e/arrivals"
	"gpuscaler/deploy/e2e/llmload"
)

// load are chats that arrive at one rate.
type load struct {
	URL  string        `required:"" placeholder:"http://HOST:PORT" help:"The inference server."`
	Rate float64       `default:"4" help:"Requests per second."`
	For  time.Duration `default:"2m" help:"How long."`
	Seed uint64        `default:"1" help:"The same seed is the same requests."`
}

// tellEvery is how often it is told how requests go.
const tellEvery = 5 * time.Second

// Run sends them until all are answered, or ctx is done.
func (f *load) Run(ctx context.Context) error {
	trace, err := arrivals.Generate(arrivals.Curve{{At: 0, PerSecond: f.Rate}, {At: f.For, PerSecond: f.Rate}}, arrivals.Chat(), f.Seed)
	if err != nil {
		return err
	}
	var mu sync.Mutex
	var waits []time.Duration
	failed := 0
	began, told := time.Now(), time.Now()
	fmt.Println("    time  answered  failed  time to first token: median      95th")
	line := func() {
		slices.Sort(waits)
		at := func(q float64) time.Duration {
			if len(waits) == 0 {
				return 0
			}
			return waits[int(q*float64(len(waits)-1))].Round(time.Millisecond)
		}
		fmt.Printf("%6.0f s  %8d  %6d  %27s  %8s\n", time.Since(began).Seconds(), len(waits), failed, at(0.5), at(0.95))
		waits, told = waits[:0], time.Now()
	}
	err = llmload.Replay(ctx, f.URL, trace, func(r llmload.Result) {
		mu.Lock()
		defer mu.Unlock()
		if r.Err != nil {
			if failed++; failed == 1 {
				fmt.Println(r.Err)
			}
		} else {
			waits = append(waits, r.Wait)
		}
		if time.Since(told) >= tellEvery {
			line()
		}
	})
	mu.Lock()
	defer mu.Unlock()
	line()
	return err
}
