package engine

import (
	"fmt"
	"math"
	"slices"

	dto "github.com/prometheus/client_model/go"

	"gpuscaler/scaler/terms"
)

// mostBounds is how many buckets a histogram may have; engines have some 25.
const mostBounds = 128

// histogram is the first of these sources that there is, over all series; nil without
// any. A counter of time with one of events is one that has no finite bound, and so says
// the mean alone.
func (f Families) histogram(sources []source, into *Sample, errs *[]error) *Histogram {
	for _, s := range sources {
		if !f.finds(s) {
			continue
		}
		into.From = append(into.From, s.name)
		h, err := f.distribution(s)
		if err != nil {
			*errs = append(*errs, err)
			return nil
		}
		return h
	}
	return nil
}

func (f Families) distribution(s source) (*Histogram, error) {
	if s.by != "" {
		times, err := f.values(s)
		if err != nil {
			return nil, err
		}
		events, err := f.values(source{name: s.by})
		if err != nil {
			return nil, err
		}
		return &Histogram{Bounds: []float64{math.Inf(1)}, Counts: []float64{sum(events)}, Sum: sum(times)}, nil
	}
	total := &Histogram{}
	for _, m := range f[s.name].GetMetric() {
		h := m.GetHistogram()
		if h == nil {
			return nil, fmt.Errorf("%s is no histogram", terms.Quote(s.name))
		}
		if err := total.add(h); err != nil {
			return nil, fmt.Errorf("%s: %w", terms.Quote(s.name), err)
		}
	}
	return total, nil
}

// add takes in one series. Ranks that repeat have each latency as often as there are of
// them, which changes no quantile.
func (h *Histogram) add(series *dto.Histogram) error {
	bounds, counts := make([]float64, 0, len(series.GetBucket())+1), make([]float64, 0, len(series.GetBucket())+1)
	for _, b := range series.GetBucket() {
		n := float64(b.GetCumulativeCount())
		if b.CumulativeCountFloat != nil {
			n = b.GetCumulativeCountFloat()
		}
		bounds, counts = append(bounds, b.GetUpperBound()), append(counts, n)
	}
	if n := len(bounds); n == 0 || !math.IsInf(bounds[n-1], 1) {
		bounds, counts = append(bounds, math.Inf(1)), append(counts, count(series))
	}
	switch {
	case len(bounds) > mostBounds:
		return fmt.Errorf("%d buckets; at most %d are read", len(bounds), mostBounds)
	case !slices.IsSorted(bounds) || slices.ContainsFunc(bounds, math.IsNaN):
		return fmt.Errorf("its buckets are not in ascending order")
	case !slices.IsSorted(counts) || slices.ContainsFunc(counts, func(n float64) bool { return !sensible(n) }):
		return fmt.Errorf("its buckets are not cumulative")
	case !sensible(math.Abs(series.GetSampleSum())):
		return fmt.Errorf("its sum stands at %v", series.GetSampleSum())
	case h.Bounds == nil:
		h.Bounds, h.Counts = bounds, counts
	case !slices.Equal(h.Bounds, bounds):
		return fmt.Errorf("its series have different buckets")
	default:
		for i, n := range counts {
			h.Counts[i] += n
		}
	}
	h.Sum += series.GetSampleSum()
	return nil
}

func count(h *dto.Histogram) float64 {
	if h.SampleCountFloat != nil {
		return h.GetSampleCountFloat()
	}
	return float64(h.GetSampleCount())
}

// Count is how many events there are.
func (h *Histogram) Count() float64 { return h.Counts[len(h.Counts)-1] }

// since is what came after an earlier state of the same histogram; false where that is
// none: the engine began anew, or has other buckets.
func (h *Histogram) since(before *Histogram) (*Histogram, bool) {
	if !slices.Equal(h.Bounds, before.Bounds) || h.Sum < before.Sum {
		return nil, false
	}
	d := &Histogram{Bounds: h.Bounds, Counts: make([]float64, len(h.Counts)), Sum: h.Sum - before.Sum}
	for i, n := range h.Counts {
		if d.Counts[i] = n - before.Counts[i]; d.Counts[i] < 0 {
			return nil, false
		}
	}
	return d, slices.IsSorted(d.Counts)
}

// quantile is in seconds, as histogram_quantile of Prometheus has it: within a bucket by
// how far into it the quantile is, the first one begins at 0, and what is beyond the
// largest bound counts as that. Without finite bounds it is the mean. No events give
// false.
func (h *Histogram) quantile(q float64) (seconds float64, ok bool) {
	n := h.Count()
	switch {
	case n == 0:
		return 0, false
	case len(h.Bounds) == 1:
		return h.Sum / n, true
	}
	rank := q * n
	i := slices.IndexFunc(h.Counts, func(c float64) bool { return c >= rank })
	if i == len(h.Bounds)-1 {
		return h.Bounds[i-1], true
	}
	low, below := 0.0, 0.0
	if i > 0 {
		low, below = h.Bounds[i-1], h.Counts[i-1]
	}
	if i == 0 && h.Bounds[0] <= 0 {
		return h.Bounds[0], true
	}
	if h.Counts[i] == below {
		return low, true
	}
	return low + (h.Bounds[i]-low)*(rank-below)/(h.Counts[i]-below), true
}
