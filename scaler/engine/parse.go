package engine

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"slices"
	"strings"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"gpuscaler/scaler/terms"
)

// Families are the metrics of one answer, by name. Read-only.
type Families map[string]*dto.MetricFamily

// Parse reads an answer in Prometheus' text or protobuf format; contentType is that of
// its HTTP header. Of metrics that are not wanted not all series need be there. The error
// says what the answer is instead.
func Parse(body []byte, contentType string, wanted Wanted) (Families, error) {
	media, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		media = ""
	}
	switch text := strings.ToLower(string(bytes.TrimSpace(body[:min(len(body), 512)]))); {
	case len(body) == 0:
		return nil, errors.New("the answer is empty")
	case strings.HasPrefix(text, "<"), media == "text/html":
		return nil, errors.New("the answer is an HTML page and no metrics")
	case strings.HasPrefix(text, "{"), strings.HasPrefix(text, "["), media == "application/json":
		return nil, errors.New("the answer is JSON and no metrics in Prometheus' format")
	}
	all := Families{}
	if err := all.decode(body, contentType, wanted); err != nil {
		return nil, err
	}
	return all, all.bounded()
}

// decode has expfmt read an answer. It panics on some (v0.71 on "# TYPE a gauge\n{} 1"),
// and what a pod answers must not end the scaler.
func (f Families) decode(body []byte, contentType string, wanted Wanted) (err error) {
	defer func() {
		if problem := recover(); problem != nil {
			err = fmt.Errorf("the answer is not in Prometheus' format: its decoder fails: %s", terms.Quote(fmt.Sprint(problem)))
		}
	}()
	if expfmt.ResponseFormat(http.Header{"Content-Type": {contentType}}).FormatType() == expfmt.TypeProtoDelim {
		return f.protobuf(body)
	}
	return f.text(body, wanted)
}

func (f Families) protobuf(body []byte) error {
	// The decoder allocates whatever length a message claims, which ends the process.
	if err := boundedProtobuf(body); err != nil {
		return err
	}
	decoder := expfmt.NewDecoder(bytes.NewReader(body), expfmt.NewFormat(expfmt.TypeProtoDelim))
	for {
		family := &dto.MetricFamily{}
		err := decoder.Decode(family)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return fmt.Errorf("the answer is no protobuf of Prometheus': %s", terms.Quote(err.Error()))
		}
		f[family.GetName()] = family
	}
}

func (f Families) text(body []byte, wanted Wanted) error {
	if err := boundedText(body); err != nil {
		return err
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(bytes.NewReader(wanted.only(lineEnded(body))))
	if err != nil {
		return fmt.Errorf("the answer is not in Prometheus' text format: %s", terms.Quote(err.Error()))
	}
	maps.Copy(f, families)
	return nil
}

// lineEnded is text whose last line is ended, as OpenMetrics' "# EOF" need not be.
func lineEnded(body []byte) []byte {
	if body[len(body)-1] == '\n' {
		return body
	}
	return append(slices.Clip(body), '\n')
}

// Level adds up the series of a gauge, or of an untyped metric, that have all these labels,
// and says how many they are. Names are compared whole. A metric that is declared and has no
// series is 0: one with labels has none before its first use. The error says what there is
// instead.
func (f Families) Level(metric string, labels map[string]string) (total float64, series int, err error) {
	family := f[metric]
	if family == nil {
		return 0, 0, fmt.Errorf("the answer has no metric %s; %s", terms.Quote(metric), f.have(metric))
	}
	for _, m := range family.GetMetric() {
		if !has(m, labels) {
			continue
		}
		var v float64
		switch family.GetType() {
		case dto.MetricType_GAUGE:
			v = m.GetGauge().GetValue()
		case dto.MetricType_UNTYPED:
			v = m.GetUntyped().GetValue()
		case dto.MetricType_COUNTER, dto.MetricType_SUMMARY, dto.MetricType_HISTOGRAM, dto.MetricType_GAUGE_HISTOGRAM: // what only grows, or is several numbers
			return 0, 0, fmt.Errorf("%s is a %s; allowed is a gauge", terms.Quote(metric), strings.ToLower(family.GetType().String()))
		}
		if !sensible(v) {
			return 0, 0, fmt.Errorf("%s stands at %v; allowed is a number from 0 to %g", terms.Quote(metric), v, maxValue)
		}
		total += v
		series++
	}
	return total, series, nil
}

// Labels are those of a metric's series, for people: "{handler=metrics,server=srv1}", the
// first few.
func (f Families) Labels(metric string) string {
	const most = 8
	var all []string
	for _, m := range f[metric].GetMetric() {
		var pairs []string
		for _, l := range m.GetLabel() {
			pairs = append(pairs, l.GetName()+"="+l.GetValue())
		}
		if all = append(all, terms.Quote(strings.Join(pairs, ","))); len(all) == most {
			break
		}
	}
	return terms.List(all)
}

// sensible says whether something can be counted as this.
func sensible(v float64) bool { return v >= 0 && v <= maxValue } // NaN is neither

// have says which metrics there are: the one that was probably meant, else the first.
func (f Families) have(like string) string {
	names := slices.Sorted(maps.Keys(f))
	if len(names) == 0 {
		return "it has none"
	}
	if like != "" {
		return terms.UnknownWord(like, names).Error()
	}
	return "it has " + terms.List(names)
}

func has(m *dto.Metric, labels map[string]string) bool {
	for name, value := range labels {
		if !slices.ContainsFunc(m.GetLabel(), func(l *dto.LabelPair) bool { return l.GetName() == name && l.GetValue() == value }) {
			return false
		}
	}
	return true
}

// number is the value of a gauge, a counter or an untyped series.
func number(family *dto.MetricFamily, m *dto.Metric) (float64, bool) {
	switch family.GetType() {
	case dto.MetricType_GAUGE:
		return m.GetGauge().GetValue(), true
	case dto.MetricType_COUNTER:
		return m.GetCounter().GetValue(), true
	case dto.MetricType_UNTYPED:
		return m.GetUntyped().GetValue(), true
	case dto.MetricType_SUMMARY, dto.MetricType_HISTOGRAM, dto.MetricType_GAUGE_HISTOGRAM:
	}
	return 0, false
}
