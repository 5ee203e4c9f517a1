package engines

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v4"

	"gpuscaler/scaler/engine"
	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/scrape"
)

const (
	// timeout is the longest that one answer may take.
	timeout = 2 * time.Second
	// lost is after how many failures in a row the port and the path are looked for again.
	lost = 5
	// mostPorts is how many ports of a pod are tried.
	mostPorts = 8
	// longestWait is between two rounds over the ports of a pod in which no engine answers.
	longestWait = 30 * time.Second
)

// target is one engine that is read.
type target struct {
	r      *Reader
	key    fleet.EngineKey
	stop   context.CancelFunc
	client *scrape.Client
	pod    atomic.Pointer[fleet.Pod]
	start  time.Time
	wanted time.Time // when it was last; of Reader.follow alone

	mu        sync.Mutex
	quantiles []float64

	// Of run alone.
	at     string // where it is: "10.0.3.7:8000/metrics"; "" while that is not known
	fails  int    // in a row
	series engine.Series
	public fleet.Engine
}

func newTarget(r *Reader, key fleet.EngineKey, stop context.CancelFunc) *target {
	return &target{r: r, key: key, stop: stop, client: scrape.NewClient(timeout, r.large), start: time.Now()}
}

func (t *target) want(quantiles []float64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.quantiles = quantiles
}

// run reads until ctx is done.
func (t *target) run(ctx context.Context) {
	defer t.client.Close()
	search := backoff.NewExponentialBackOff(backoff.WithInitialInterval(interval), backoff.WithMaxInterval(longestWait), backoff.WithMaxElapsedTime(0))
	wait := time.Duration(rand.Int64N(int64(interval / 4))) //nolint:gosec // not all at once
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		free, ok := t.r.slots.Take(ctx, t.pod.Load().Namespace)
		if !ok {
			return
		}
		began := time.Now()
		x, err := t.read(ctx)
		free()
		if ctx.Err() != nil {
			return
		}
		t.took(x, err, time.Now())
		t.r.take(ctx, t.key, new(t.public))
		wait = max(interval-time.Since(began), interval/10)
		switch {
		case t.at != "":
			search.Reset()
		case !t.pod.Load().WasReady: // it may be loading: its engine is there in a moment
			search.Reset()
		default:
			wait = search.NextBackOff()
		}
	}
}

// read reads the engine, or looks for it.
func (t *target) read(ctx context.Context) (*engine.Sample, error) {
	p := t.pod.Load()
	if err := scrape.CheckIP(p.IP); err != nil {
		return nil, err
	}
	if t.at != "" && strings.HasPrefix(t.at, host(p.IP)) {
		x, err := t.try(ctx, t.at)
		if t.fails++; err == nil {
			t.fails = 0
		} else if t.fails >= lost {
			t.at = ""
		}
		return x, err
	}
	t.at = ""
	return t.search(ctx, p)
}

// host is an address in URLs, with the colon of a port.
func host(ip string) string { return net.JoinHostPort(ip, "") }

// search tries all places where the engine may be, and keeps the first in which one
// answers.
func (t *target) search(ctx context.Context, p *fleet.Pod) (*engine.Sample, error) {
	ports, paths := t.ports(p), engine.Paths(t.key.Engine)
	if t.key.Path != "" {
		paths = []string{t.key.Path}
	}
	if len(ports) == 0 {
		return nil, errors.New("its containers declare no port; set enginePort")
	}
	var best error
	for _, port := range ports {
		for _, path := range paths {
			at := net.JoinHostPort(p.IP, strconv.Itoa(port)) + path
			x, err := t.try(ctx, at)
			if err == nil {
				t.at, t.fails = at, 0
				return x, nil
			}
			if ctx.Err() != nil {
				return nil, err
			}
			if best == nil || telling(err) > telling(best) {
				best = err
			}
			if telling(err) == nobody { // whatever the path
				break
			}
		}
	}
	if hint := engine.Hint(t.key.Engine); hint != "" {
		best = fmt.Errorf("%w (%s)", best, hint)
	}
	return nil, best
}

// How much an error says of where an engine is.
const (
	nobody  = iota // there is no HTTP at all
	noPage         // no such page
	another        // a page of something else
)

func telling(err error) int {
	var status *scrape.StatusError
	switch {
	case errors.Is(err, scrape.ErrUnreachable):
		return nobody
	case errors.As(err, &status):
		return noPage
	}
	return another
}

// ports are those that may be the engine's: the one that is asked for; else those that
// containers declare, first the ones that are named after metrics or HTTP; else the engine's own.
func (t *target) ports(p *fleet.Pod) (ports []int) {
	if t.key.Port != 0 {
		return []int{t.key.Port}
	}
	declared := slices.Clone(p.Ports)
	rank := func(port fleet.Port) int {
		switch {
		case strings.Contains(port.Name, "metrics"):
			return 0
		case strings.Contains(port.Name, "http"):
			return 1
		}
		return 2
	}
	slices.SortStableFunc(declared, func(a, b fleet.Port) int { return rank(a) - rank(b) })
	for _, port := range declared {
		if len(ports) < mostPorts && !slices.Contains(ports, port.Number) {
			ports = append(ports, port.Number)
		}
	}
	if len(ports) == 0 {
		ports = engine.Ports(t.key.Engine)
	}
	return ports
}

func (t *target) try(ctx context.Context, at string) (*engine.Sample, error) {
	page, err := t.client.Get(ctx, "http://"+at)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", at, err)
	}
	t.r.parsing.Lock()
	defer t.r.parsing.Unlock()
	families, err := engine.Parse(page.Body, page.ContentType, engine.Tables)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", at, err)
	}
	x, err := families.Sample(t.key.Engine)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", at, err)
	}
	return x, nil
}

// took takes over an answer, or why there is none.
func (t *target) took(x *engine.Sample, err error, now time.Time) {
	p := t.pod.Load()
	before := t.public
	if err != nil {
		t.public.Error = err.Error()
		if before.Error == "" {
			t.r.log.Warn("engine cannot be read", "namespace", p.Namespace, "pod", p.Name, "error", err)
		}
		return
	}
	t.series.Add(now.Sub(t.start), x)
	from := time.Duration(math.MinInt64)
	if begin := p.Begin(); !begin.IsZero() {
		from = begin.Sub(t.start)
	}
	t.mu.Lock()
	quantiles := t.quantiles
	t.mu.Unlock()
	t.public = fleet.Engine{
		Name: x.Engine, Address: t.at, Heard: now, Metrics: x.Metrics(), From: x.From,
		Readings: fleet.NewReadings(t.series.Means(from, quantiles)), Totals: totals(t.series.Totals()), Latencies: measured(t.series.Totals()),
	}
	if before.Heard.IsZero() || before.Error != "" || before.Name != x.Engine || before.Address != t.at {
		t.r.log.Info("engine is read", "namespace", p.Namespace, "pod", p.Name, "engine", x.Engine, "address", t.at, "metrics", strings.Join(x.From, " "))
	}
}

func measured(of engine.Totals) (all [len(fleet.Measured)]*fleet.Histogram) {
	for at, from := range [len(fleet.Measured)]engine.Latency{fleet.TTFT: engine.TTFT, fleet.ITL: engine.ITL, fleet.E2E: engine.E2E, fleet.QueueWait: engine.QueueWait} {
		if h := of.Latencies[from]; h != nil {
			all[at] = &fleet.Histogram{Bounds: h.Bounds, Counts: h.Counts, Sum: h.Sum}
		}
	}
	return all
}

func totals(of engine.Totals) fleet.EngineTotals {
	return fleet.EngineTotals{fleet.PromptTokens: of.PromptTokens, fleet.GenerationTokens: of.GenerationTokens, fleet.Requests: of.Requests}
}
