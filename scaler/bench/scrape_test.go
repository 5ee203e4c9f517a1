package bench

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"testing"
	"time"
)

// BenchmarkScrape compares GetMetrics with nobody beside it and with a scrape of
// /metrics every 50 ms, some hundred times what Prometheus does, in turns; and a
// scrape with nobody beside it with one while a client calls without a pause.
func BenchmarkScrape(b *testing.B) {
	const (
		turns    = 40
		turnTime = 250 * time.Millisecond
		every    = 50 * time.Millisecond
	)
	c := startChain(b)
	scrape := func() time.Duration {
		began := time.Now()
		r, err := http.Get("http://" + c.http + "/metrics")
		if err != nil {
			b.Error(err)
			return 0
		}
		defer func() { _ = r.Body.Close() }()
		if _, err := io.Copy(io.Discard, r.Body); err != nil || r.StatusCode != http.StatusOK {
			b.Error(r.Status, err)
		}
		return time.Since(began)
	}
	scrapes := func(until time.Time) (all []time.Duration) {
		for time.Now().Before(until) {
			all = append(all, scrape())
			time.Sleep(every)
		}
		return all
	}
	calls := func(until time.Time) (all []time.Duration) {
		for time.Now().Before(until) {
			began := time.Now()
			if err := getMetrics(b.Context(), c.keda); err != nil {
				b.Error(err)
				return all
			}
			all = append(all, time.Since(began))
		}
		return all
	}
	var callsAlone, callsBeside, scrapesAlone, scrapesBeside []time.Duration
	for b.Loop() {
		scrape()
		for range turns {
			callsAlone = append(callsAlone, calls(time.Now().Add(turnTime))...)
			scrapesAlone = append(scrapesAlone, scrapes(time.Now().Add(turnTime))...)
			end := time.Now().Add(turnTime)
			var beside sync.WaitGroup
			beside.Go(func() { scrapesBeside = append(scrapesBeside, scrapes(end)...) })
			callsBeside = append(callsBeside, calls(end)...)
			beside.Wait()
		}
	}
	for _, all := range [][]time.Duration{callsAlone, callsBeside, scrapesAlone, scrapesBeside} {
		slices.Sort(all)
	}
	alone, beside := quantile(callsAlone, 0.5), quantile(callsBeside, 0.5)
	report(b, "GetMetrics p50 beside 20 scrapes a second / alone", float64(beside)/float64(alone), "<=", 1.3, fmt.Sprintf("%v / %v", beside, alone))
	alone, beside = quantile(callsAlone, 0.99), quantile(callsBeside, 0.99)
	report(b, "GetMetrics p99 beside 20 scrapes a second / scrape", float64(beside)/float64(quantile(scrapesAlone, 0.5)), "<=", 1,
		fmt.Sprintf("%v, alone %v; a scrape takes %v", beside, alone, quantile(scrapesAlone, 0.5)))
	alone, beside = quantile(scrapesAlone, 0.5), quantile(scrapesBeside, 0.5)
	report(b, "scrape beside calls without a pause / 5 ms", float64(beside)/float64(5*time.Millisecond), "<=", 1, fmt.Sprintf("%v, alone %v", beside, alone))
}
