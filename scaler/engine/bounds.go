package engine

import (
	"bytes"
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
)

// Limits on one answer, which is a stranger's: an engine with some models has a few
// hundred series. They are checked before anything is decoded, since a decoded series
// takes up to a hundred times its bytes.
const (
	maxFamilies = 4096
	maxSeries   = 20_000
	// maxLines are those of a text: a histogram has one for each bucket.
	maxLines = 60_000
	// maxParts are labels in a text; in protobuf all fields at any depth.
	maxParts = 250_000
	// maxDepth is how deep fields of a metric lie: family, metric, histogram, bucket,
	// exemplar, label.
	maxDepth = 6
)

// maxValue is beyond what an engine counts, so that no sum of values is infinite.
const maxValue = 1e18

// boundedText says what is too much of a text.
func boundedText(body []byte) error {
	if n := bytes.Count(body, []byte("\n")); n > maxLines {
		return fmt.Errorf("the answer has %d lines; at most %d are read", n, maxLines)
	}
	if n := bytes.Count(body, []byte("=")); n > maxParts {
		return fmt.Errorf("the answer has %d labels; at most %d are read", n, maxParts)
	}
	return nil
}

// boundedProtobuf says what is too much of a series of messages, each after its length.
func boundedProtobuf(body []byte) error {
	families, parts := 0, 0
	for len(body) > 0 {
		message, n := protowire.ConsumeBytes(body)
		if n < 0 {
			return errors.New("the answer is no protobuf of Prometheus': it ends within a message")
		}
		body = body[n:]
		families++
		if parts += fields(message, 1); families > maxFamilies || parts > maxParts {
			return fmt.Errorf("the answer has more than %d metrics or more than %d fields; so many are not read", maxFamilies, maxParts)
		}
	}
	return nil
}

// fields is how many fields a message has at any depth. Text that looks like fields
// counts as them.
func fields(message []byte, depth int) (total int) {
	for len(message) > 0 {
		_, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return total
		}
		value := message[n:]
		size := protowire.ConsumeFieldValue(1, kind, value)
		if size < 0 {
			return total
		}
		if total++; kind == protowire.BytesType && depth < maxDepth {
			inner, _ := protowire.ConsumeBytes(value)
			total += fields(inner, depth+1)
		}
		message = value[size:]
	}
	return total
}

// bounded says what is too much of what was decoded.
func (f Families) bounded() error {
	series := 0
	for _, family := range f {
		series += len(family.GetMetric())
	}
	if len(f) > maxFamilies || series > maxSeries {
		return fmt.Errorf("the answer has %d metrics with %d series; at most %d with %d are read", len(f), series, maxFamilies, maxSeries)
	}
	return nil
}
