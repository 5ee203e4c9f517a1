package fleet

import (
	"iter"
	"slices"

	"gpuscaler/scaler/window"
)

// Readings are the means of a device's metrics. Read-only. There are tens of
// thousands of them in a large fleet: the names are shared where they can be.
type Readings struct {
	names []string
	means []window.Means
}

// NewReadings are means by the names at the same positions. It takes over both.
func NewReadings(names []string, means []window.Means) Readings { return Readings{names, means} }

func readingsOf(means map[string]window.Means) Readings {
	r := Readings{names: make([]string, 0, len(means)), means: make([]window.Means, 0, len(means))}
	for name := range means {
		r.names = append(r.names, name)
	}
	slices.Sort(r.names)
	for _, name := range r.names {
		r.means = append(r.means, means[name])
	}
	return r
}

// Get are the means of one metric.
func (r Readings) Get(name string) (window.Means, bool) {
	for i, n := range r.names { // few: faster than a map
		if n == name {
			return r.means[i], true
		}
	}
	return window.Means{}, false
}

// Len is how many metrics there are.
func (r Readings) Len() int { return len(r.names) }

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
