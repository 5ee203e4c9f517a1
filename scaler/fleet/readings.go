package fleet

import (
	"iter"
	"slices"
	"time"

	"gpuscaler/scaler/window"
)

// Readings are the means of a device's metrics. Read-only. There are tens of
// thousands of them in a large fleet: the names are shared where they can be.
type Readings struct {
	names []string
	means []window.Means
	// coverage is nil where each is window.Whole.
	coverage []window.Coverage
}

// NewReadings are means by the names at the same positions, with how much of each
// window they rest on; nil: all of it. It takes over the slices.
func NewReadings(names []string, means []window.Means, coverage []window.Coverage) Readings {
	return Readings{names, means, coverage}
}

// measured is one metric's means with their coverage.
type measured struct {
	means    window.Means
	coverage window.Coverage
}

func readingsOf(metrics map[string]measured) Readings {
	r := Readings{names: make([]string, 0, len(metrics)), means: make([]window.Means, 0, len(metrics))}
	whole := true
	for name, m := range metrics {
		r.names = append(r.names, name)
		whole = whole && m.coverage == window.Whole
	}
	slices.Sort(r.names)
	for _, name := range r.names {
		r.means = append(r.means, metrics[name].means)
	}
	if !whole {
		r.coverage = make([]window.Coverage, 0, len(r.names))
		for _, name := range r.names {
			r.coverage = append(r.coverage, metrics[name].coverage)
		}
	}
	return r
}

// index is the position of a metric, or -1.
func (r Readings) index(name string) int {
	for i, n := range r.names { // few: faster than a map
		if n == name {
			return i
		}
	}
	return -1
}

// Get are the means of one metric.
func (r Readings) Get(name string) (window.Means, bool) {
	if i := r.index(name); i >= 0 {
		return r.means[i], true
	}
	return window.Means{}, false
}

// Mean is the mean of a metric over one of window.Windows, and how much of it there is;
// ok is false when there is none.
func (r Readings) Mean(name string, w time.Duration) (v float64, covered time.Duration, ok bool) {
	i, k := r.index(name), window.Index(w)
	if i < 0 || k < 0 {
		return 0, 0, false
	}
	return r.means[i][k], r.Coverage(i)[k], true
}

// Len is how many metrics there are.
func (r Readings) Len() int { return len(r.names) }

// Whole says whether each mean rests on readings for all of its window.
func (r Readings) Whole() bool { return r.coverage == nil }

// Coverage is that of the metric at a position, in the order of All.
func (r Readings) Coverage(at int) window.Coverage {
	if r.coverage == nil {
		return window.Whole
	}
	return r.coverage[at]
}

// All are all metrics with their means.
func (r Readings) All() iter.Seq2[string, window.Means] {
	return func(yield func(string, window.Means) bool) {
		for i, name := range r.names {
			if !yield(name, r.means[i]) {
				return
			}
		}
	}
}

// Complete fills the windows that are not covered with the means of before, for as
// much as these covered: of a scaler that was restarted, by what others last received
// from it. What lacks of a window is the time right before the restart: the shortest of
// the windows that has it reaches back the least beyond it.
func (r Readings) Complete(before Readings) Readings {
	if r.Whole() || before.Len() == 0 {
		return r
	}
	done := Readings{r.names, slices.Clone(r.means), slices.Clone(r.coverage)}
	whole := true
	for i, name := range r.names {
		c := &done.coverage[i]
		if k := before.index(name); k >= 0 {
			old := before.Coverage(k)
			for w, span := range window.Windows {
				of := 0
				for window.Windows[of] < span-c[w] {
					of++
				}
				more := min(span-c[w], old[of])
				if more <= 0 {
					continue
				}
				part := float64(more) / float64(c[w]+more)
				done.means[i][w] += part * (before.means[k][of] - done.means[i][w])
				c[w] += more
			}
		}
		whole = whole && *c == window.Whole
	}
	if whole {
		done.coverage = nil
	}
	return done
}

// Aged are the readings as they are of use for so much later: after more than
// window.Gap without a reading, nothing is known of that time.
func (r Readings) Aged(by time.Duration) Readings {
	if by <= window.Gap || r.Len() == 0 {
		return r
	}
	aged := Readings{r.names, r.means, make([]window.Coverage, len(r.names))}
	for i := range r.names {
		c := r.Coverage(i)
		for w, span := range window.Windows {
			aged.coverage[i][w] = max(0, min(c[w], span-by))
		}
	}
	return aged
}
