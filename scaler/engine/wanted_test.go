package engine

import (
	"math"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestWanted: what nobody reads is left out, but for its name, and nothing else is: each
// recording says the same without it.
func TestWanted(t *testing.T) {
	files, err := filepath.Glob(recordings + "/*.txt")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	for _, path := range files {
		file := filepath.Base(path)
		body := recorded(t, file)
		whole, err := Parse(body, text, nil)
		require.NoError(t, err, file)
		part, err := Parse(body, text, Tables)
		require.NoError(t, err, file)
		assert.Len(t, part, len(whole), "%s: names", file)
		of, err := whole.Sample("")
		require.NoError(t, err, file)
		is, err := part.Sample("")
		require.NoError(t, err, file)
		assert.Equal(t, of.From, is.From, file)
		assert.Equal(t, of.latency, is.latency, file)
		assert.InDeltaMapValues(t, values(of), values(is), 0, file)
	}
	w := Wanted{"a": true, "h": true}
	got := string(w.only([]byte("# HELP b x\n# TYPE b histogram\nb_bucket{le=\"1\"} 1\nb_bucket{le=\"+Inf\"} 1\nb_sum 1\nb_count 1\na 1\na{x=\"y\"} 2\n" +
		"h_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 1\nab 1\nab{c=\"d\"} 2\n{\"q\"} 1\n{\"q\",c=\"d\"} 1\n\nc 1")))
	assert.Equal(t, "# HELP b x\n# TYPE b histogram\nb_bucket{le=\"1\"} 1\na 1\na{x=\"y\"} 2\n"+
		"h_bucket{le=\"+Inf\"} 1\nh_sum 1\nh_count 1\nab 1\n{\"q\"} 1\n{\"q\",c=\"d\"} 1\n\nc 1", got)
}

// values are a sample's, without those that it does not have.
func values(s *Sample) map[string]float64 {
	all := map[string]float64{}
	for i, v := range s.gauges {
		if !math.IsNaN(v) {
			all[gaugeNames[i]] = v
		}
	}
	for i, v := range s.counters {
		if !math.IsNaN(v) {
			all[counterNames[i]] = v
		}
	}
	return all
}
