package terms

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	"gpuscaler/shared/snapshot"
)

// TestLookupMetric: each metric is found by its name, the reference's names are those of
// ours, and nothing else is a metric.
func TestLookupMetric(t *testing.T) {
	for _, m := range append(append([]snapshot.Metric{}, snapshot.Metrics...), EngineMetrics...) {
		found, ok := LookupMetric(m.Name)
		assert.True(t, ok, m.Name)
		assert.Equal(t, m, found)
	}
	for alias, name := range aliases {
		m, ok := LookupMetric(alias)
		assert.True(t, ok, alias)
		assert.Equal(t, name, m.Name)
	}
	for _, name := range []string{"", "engine_", "engine_waitin", "vllm_", "service_queue "} {
		_, ok := LookupMetric(name)
		assert.False(t, ok, name)
	}
	assert.ErrorContains(t, UnknownMetric("engine_waitin"), `did you mean "engine_waiting"?`)
}

func TestCheckPath(t *testing.T) {
	for _, good := range []string{"/", "/metrics", "/v1/metrics", "/a%20b/~c:d"} {
		assert.NoError(t, CheckPath(good), good)
	}
	for bad, reason := range map[string]string{
		"": "is empty", "metrics": "does not begin with /", "//host\r\nX: y": "is no path", "/a?b": "is no path", "/a#b": "is no path", "/a b": "is no path",
		"/" + strings.Repeat("a", 256): "is too long",
	} {
		assert.ErrorContains(t, CheckPath(bad), reason, bad)
	}
}
