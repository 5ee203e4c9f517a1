package arrivals

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"time"
)

// columns is the first line of a recording.
var columns = []string{"seconds", "prompt_tokens", "output_tokens"}

// The most that a recording may have: times up to here keep their nanoseconds in a float64.
const (
	maxSeconds = 90 * 24 * 3600
	maxTokens  = 10_000_000
)

// Read reads a recording: CSV with the columns seconds (since its start), prompt_tokens and
// output_tokens, named so in the first line, in order of time. The error names the line.
func Read(r io.Reader) (Trace, error) {
	rows := csv.NewReader(r)
	rows.FieldsPerRecord = len(columns)
	rows.ReuseRecord = true
	header, err := rows.Read()
	switch {
	case errors.Is(err, io.EOF):
		return nil, errors.New("the recording is empty")
	case err != nil:
		return nil, err
	case !slices.Equal(header, columns):
		return nil, fmt.Errorf("line 1: the columns are %q, they must be %q", header, columns)
	}
	var t Trace
	for {
		row, err := rows.Read()
		if errors.Is(err, io.EOF) {
			return t, nil
		}
		if err != nil {
			return nil, err
		}
		next, err := parse(row)
		if err == nil && len(t) > 0 && next.At < t[len(t)-1].At {
			err = fmt.Errorf("%v s is before the line ahead of it", next.At.Seconds())
		}
		if err != nil {
			line, _ := rows.FieldPos(0)
			return nil, fmt.Errorf("line %d: %w", line, err)
		}
		t = append(t, next)
	}
}

func parse(row []string) (Request, error) {
	seconds, err := strconv.ParseFloat(row[0], 64)
	if err != nil || !(seconds >= 0 && seconds <= maxSeconds) {
		return Request{}, fmt.Errorf("%s is %q, it must be a number from 0 to %d", columns[0], row[0], maxSeconds)
	}
	r := Request{At: time.Duration(math.Round(seconds * float64(time.Second)))}
	for i, to := range []*int{&r.PromptTokens, &r.OutputTokens} {
		text := row[i+1]
		if *to, err = strconv.Atoi(text); err != nil || *to < 1 || *to > maxTokens {
			return Request{}, fmt.Errorf("%s is %q, it must be a whole number from 1 to %d", columns[i+1], text, maxTokens)
		}
	}
	return r, nil
}

// Write writes a recording that Read reads back without a difference.
func (t Trace) Write(w io.Writer) error {
	rows := csv.NewWriter(w)
	if err := rows.Write(columns); err != nil {
		return err
	}
	for _, r := range t {
		seconds := strconv.FormatFloat(r.At.Seconds(), 'f', -1, 64)
		if err := rows.Write([]string{seconds, strconv.Itoa(r.PromptTokens), strconv.Itoa(r.OutputTokens)}); err != nil {
			return err
		}
	}
	rows.Flush()
	return rows.Error()
}
