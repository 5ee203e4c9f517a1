package workload

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"gpuscaler/scaler/trigger"
)

func TestTargetType(t *testing.T) {
	of := func(metricType string, metadata ...string) triggerSpec {
		m := map[string]string{}
		for i := 0; i < len(metadata); i += 2 {
			m[metadata[i]] = metadata[i+1]
		}
		return triggerSpec{"external", metricType, m}
	}
	other := of("AverageValue", "scalerAddress", "elsewhere:1")
	for name, c := range map[string]struct {
		all  []triggerSpec
		sent map[string]string
		want trigger.TargetType
	}{
		"the only one":           {[]triggerSpec{of("Value", "a", "1")}, map[string]string{"a": "1"}, trigger.Value},
		"KEDA's default":         {[]triggerSpec{of("", "a", "1")}, map[string]string{"a": "1"}, trigger.AverageValue},
		"its metadata changed":   {[]triggerSpec{of("Value", "a", "1")}, map[string]string{"a": "2"}, trigger.Value},
		"from the environment":   {[]triggerSpec{other, of("Value", "a", "1", "targetValueFromEnv", "NAME")}, map[string]string{"a": "1", "targetValueFromEnv": "80"}, trigger.Value},
		"not in the environment": {[]triggerSpec{other, of("Value", "a", "1", "targetValueFromEnv", "NAME")}, map[string]string{"a": "1"}, trigger.Value},
		"one that says less":     {[]triggerSpec{of("AverageValue", "a", "1"), of("Value", "a", "1", "b", "2")}, map[string]string{"a": "1", "b": "2"}, trigger.Value},
		"the one that says less": {[]triggerSpec{of("AverageValue", "a", "1"), of("Value", "a", "1", "b", "2")}, map[string]string{"a": "1"}, trigger.AverageValue},
		"none of ours":           {[]triggerSpec{{"cpu", "Utilization", nil}}, map[string]string{"a": "1"}, trigger.AverageValue},
	} {
		got, known := targetType(c.all, c.sent)
		assert.Equal(t, c.want, got, name)
		assert.Equal(t, name != "its metadata changed" && name != "none of ours", known, name)
	}
}
