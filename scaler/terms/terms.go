// Package terms holds the words and numbers that triggers and profiles have in
// common: how devices are aggregated, which windows and targets there are, and
// how a wrong one is named to the person who wrote it. It is pure, and must
// not know where a word was written (metadata or file), nor gRPC or KEDA's API.
package terms

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"gpuscaler/scaler/window"
)

// DefaultWindow is the mean that is used when none is asked for: HPA's own
// period.
const DefaultWindow = 15 * time.Second

// maxShown is how many bytes of a value an error message shows.
const maxShown = 64

// ParseActivation reads an activation threshold in the metric's unit: a plain
// decimal number, 0 or above. The error quotes the text and says what is
// allowed.
func ParseActivation(text string) (float64, error) {
	const allowed = "allowed is a finite number, 0 or above"
	v, err := parseNumber(text, allowed)
	if err != nil {
		return 0, err
	}
	if v < 0 {
		return 0, fmt.Errorf("%s is below 0; %s", Quote(text), allowed)
	}
	return math.Abs(v), nil // "-0" is 0
}

// parseNumber accepts decimal and exponent notation only: what strconv takes
// beyond that (NaN, infinities, hexadecimal floats) is never what a person
// means by a threshold.
func parseNumber(text, allowed string) (float64, error) {
	if text == "" {
		return 0, fmt.Errorf(`"" is empty; %s`, allowed)
	}
	for i := range len(text) {
		switch c := text[i]; {
		case isDigit(c), c == '.', c == '-', c == '+', c == 'e', c == 'E':
		default:
			return 0, fmt.Errorf("%s is not a number; %s", Quote(text), allowed)
		}
	}
	v, err := strconv.ParseFloat(text, 64)
	if math.IsInf(v, 0) {
		return 0, fmt.Errorf("%s is too large; %s", Quote(text), allowed)
	}
	if err != nil {
		return 0, fmt.Errorf("%s is not a number; %s", Quote(text), allowed)
	}
	return v, nil
}

// ParseWindow reads a duration that equals one of window.Windows ("60s" is
// "1m"). The error quotes the text and says what is allowed.
func ParseWindow(text string) (time.Duration, error) {
	d, err := time.ParseDuration(text)
	if err == nil && window.Index(d) >= 0 {
		return d, nil
	}
	allowed := make([]string, len(window.Windows))
	for i, w := range window.Windows {
		allowed[i] = Duration(w)
	}
	if text == "" {
		return 0, fmt.Errorf(`"" is empty; allowed are %s`, strings.Join(allowed, ", "))
	}
	return 0, fmt.Errorf("%s is no window; allowed are %s", Quote(text), strings.Join(allowed, ", "))
}

// Duration is d as a person writes it: "5m" where time.Duration says "5m0s".
func Duration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
