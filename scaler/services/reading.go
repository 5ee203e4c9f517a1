package services

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v4"

	"gpuscaler/scaler/engine"
	"gpuscaler/scaler/evaluate"
	"gpuscaler/scaler/scrape"
	"gpuscaler/scaler/terms"
	"gpuscaler/scaler/window"
)

// reading reads one Service. It is not for concurrent use.
type reading struct {
	r      *Reader
	k      key
	labels map[string]string
	start  time.Time

	found   behind
	failure error     // why the pods are not known
	told    time.Time // when the API server answered
	asked   time.Time // when it was asked
	pods    map[string]*reachable
	total   window.Gauge
	// matched: some series had the labels. A series with labels is there from its first use
	// on, so that one that has never been seen is a mistake in them, or a queue that nobody
	// has used yet; afterwards a pod without it has a queue of 0.
	matched atomic.Bool
}

// reachable is a pod that is read.
type reachable struct {
	endpoint
	client *scrape.Client
	value  float64
	heard  time.Time // of value; zero: there is none
	err    error     // of the last time
	// without are the series that it has, when none has the labels.
	without string
}

func newReading(r *Reader, k key) *reading {
	return &reading{r: r, k: k, labels: k.Select(), start: time.Now(), pods: map[string]*reachable{}}
}

// run reads until ctx is done.
func (s *reading) run(ctx context.Context, into *source) {
	defer func() {
		for _, p := range s.pods {
			p.client.Close()
		}
	}()
	again := backoff.NewExponentialBackOff(backoff.WithInitialInterval(interval), backoff.WithMaxInterval(period), backoff.WithMaxElapsedTime(0))
	due, failed := time.Now(), true // when it is asked which pods there are
	for {
		began := time.Now()
		looked := !began.Before(due)
		if looked {
			s.look(ctx)
		}
		ok := s.readAll(ctx)
		if ctx.Err() != nil {
			return
		}
		switch {
		case ok && (looked || failed):
			again.Reset()
			due = s.asked.Add(period)
		case !ok && !failed: // a pod may have gone
			due = began
		case !ok && looked: // others have to be looked for, too
			due = began.Add(again.NextBackOff())
		}
		failed = !ok
		s.tell(into, time.Now())
		select {
		case <-ctx.Done():
			return
		case <-time.After(max(interval-time.Since(began), interval/10)):
		}
	}
}

// look asks which pods there are.
func (s *reading) look(ctx context.Context) {
	s.asked = time.Now()
	found, silent, err := s.r.api.find(ctx, s.k)
	if ctx.Err() != nil {
		return
	}
	if silent && time.Since(s.told) < s.r.held { // those that there were
		return
	}
	if !silent {
		s.told = s.asked
	}
	s.found, s.failure = found, err
	now := map[string]bool{}
	for _, e := range found.pods {
		now[e.uid] = true
		if p := s.pods[e.uid]; p != nil && p.endpoint == e {
			continue
		} else if p != nil {
			p.client.Close()
		}
		s.pods[e.uid] = &reachable{endpoint: e, client: scrape.NewClient(timeout, s.r.large)}
	}
	maps.DeleteFunc(s.pods, func(uid string, p *reachable) bool {
		if !now[uid] {
			p.client.Close()
		}
		return !now[uid]
	})
}

// readAll reads all pods, and says whether each could be.
func (s *reading) readAll(ctx context.Context) (ok bool) {
	var all sync.WaitGroup
	for _, p := range s.pods {
		all.Go(func() {
			free, ok := s.r.slots.Take(ctx, s.k.namespace)
			if !ok {
				return
			}
			defer free()
			v, err := s.read(ctx, p)
			if p.err = err; err == nil {
				p.value, p.heard = v, time.Now()
			}
		})
	}
	all.Wait()
	for _, p := range s.pods {
		if p.err != nil {
			return false
		}
	}
	return s.failure == nil
}

// read is what one pod tells.
func (s *reading) read(ctx context.Context, p *reachable) (float64, error) {
	if err := scrape.CheckIP(p.ip); err != nil {
		return 0, err
	}
	at := net.JoinHostPort(p.ip, strconv.Itoa(p.port)) + s.k.Path
	page, err := p.client.Get(ctx, "http://"+at)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", at, err)
	}
	s.r.parsing.Lock()
	defer s.r.parsing.Unlock()
	families, err := engine.Parse(page.Body, page.ContentType, engine.Wanted{s.k.Metric: true})
	if err != nil {
		return 0, fmt.Errorf("%s: %w", at, err)
	}
	v, series, err := families.Level(s.k.Metric, s.labels)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", at, err)
	}
	if series > 0 {
		s.matched.Store(true)
	} else {
		p.without = families.Labels(s.k.Metric)
	}
	return v, nil
}

// tell publishes what is known.
func (s *reading) tell(into *source, now time.Time) {
	q := &evaluate.Queue{Selector: s.found.selector, Failure: s.failure}
	for _, p := range slices.SortedFunc(maps.Values(s.pods), func(a, b *reachable) int { return strings.Compare(a.name, b.name) }) {
		q.UIDs = append(q.UIDs, p.uid)
		if p.heard.IsZero() || now.Sub(p.heard) > s.r.stale {
			q.Unread = append(q.Unread, "pod "+p.name+": "+because(p.err))
			continue
		}
		if q.Last += p.value; q.Heard.IsZero() || p.heard.Before(q.Heard) {
			q.Heard = p.heard
		}
	}
	switch {
	case q.Failure != nil, len(q.Unread) > 0:
	case !s.matched.Load():
		q.Unused = fmt.Sprintf("service: %s: no series of %s has the labels %s, and there was none since this scaler reads it; there are %s",
			s.k.String(), s.k.Metric, terms.Quote(s.k.Labels), cmp.Or(s.pods[q.UIDs[0]].without, "none"))
	default:
		s.total.Add(now.Sub(s.start), q.Last)
		q.Means, _ = s.total.Means(now.Sub(s.start))
	}
	s.log(into.queue.Load(), q)
	s.r.publish(into, q)
}

func because(err error) string {
	if err == nil {
		return "not read yet"
	}
	return err.Error()
}

// log tells when a Service can be read, and when it cannot any more.
func (s *reading) log(before, now *evaluate.Queue) {
	wrong := func(q *evaluate.Queue) string {
		if q.Failure != nil {
			return q.Failure.Error()
		}
		if q.Unused != "" {
			return q.Unused
		}
		return strings.Join(q.Unread, "; ")
	}
	was, is := "-", wrong(now)
	if before != nil {
		was = wrong(before)
	}
	switch at := []any{"namespace", s.k.namespace, "service", s.k.String(), "metric", s.k.Metric}; {
	case (was == "") == (is == ""):
	case is == "":
		s.r.log.Info("Service is read", append(at, "pods", len(now.UIDs), "sum", now.Last)...)
	default:
		s.r.log.Warn("Service cannot be read", append(at, "error", is)...)
	}
}
