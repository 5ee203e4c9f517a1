package exporter

import (
	"math"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"gpuscaler/scaler/fleet"
)

// gauge sends a gauge with labels of its own, in the descriptor's order.
func (s *scrape) gauge(d *prometheus.Desc, v float64, labels ...string) {
	s.to <- &gauge{series{d, v, prometheus.MakeLabelPairs(d, labels)}}
}

// counter sends a counter likewise.
func (s *scrape) counter(d *prometheus.Desc, v float64, labels ...string) {
	s.to <- &counter{series{d, v, prometheus.MakeLabelPairs(d, labels)}}
}

// labels are shared by the series of a device, or of a pod's part in one: made once, with
// the descriptor of any of them.
type labels []*dto.LabelPair

// gaugeOf and counterOf send series that share their labels.
func (s *scrape) gaugeOf(d *prometheus.Desc, v float64, of labels) { s.to <- &gauge{series{d, v, of}} }

func (s *scrape) counterOf(d *prometheus.Desc, v float64, of labels) {
	s.to <- &counter{series{d, v, of}}
}

// series is one, with its value at this scrape. prometheus.NewConstMetric would make its
// labels anew for each, which took a quarter of a scrape. The registry checks what it gets.
type series struct {
	desc   *prometheus.Desc
	value  float64
	labels labels
}

// gauge and counter implement [prometheus.Metric].
type (
	gauge   struct{ series }
	counter struct{ series }
)

// Desc implements [prometheus.Metric].
func (m *series) Desc() *prometheus.Desc { return m.desc }

// Write implements [prometheus.Metric].
func (m *gauge) Write(to *dto.Metric) error {
	to.Label, to.Gauge = m.labels, &dto.Gauge{Value: &m.value}
	return nil
}

// Write implements [prometheus.Metric].
func (m *counter) Write(to *dto.Metric) error {
	to.Label, to.Counter = m.labels, &dto.Counter{Value: &m.value}
	return nil
}

// histogram sends one of a latency.
func (s *scrape) histogram(d *prometheus.Desc, h *fleet.Histogram, labels ...string) {
	buckets := make(map[float64]uint64, len(h.Bounds))
	var all uint64
	for i, bound := range h.Bounds {
		if all = uint64(h.Counts[i]); !math.IsInf(bound, 1) { // +Inf is the count of all
			buckets[bound] = all
		}
	}
	s.to <- prometheus.MustNewConstHistogram(d, all, h.Sum, buckets, labels...)
}
