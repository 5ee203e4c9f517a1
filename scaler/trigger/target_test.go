package trigger

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/profiles"
)

// withFour are the built-in profiles and one whose target is of the sum of
// four GPUs.
func withFour(t *testing.T) *profiles.Set {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "four.yaml"), []byte("name: four\ndescription: d\nreason: r\nmetricType: gpu_utilization\n"+
		"targetValue: 320\naggregation: sum\nscaleToZero: true\n"), 0o600))
	store, err := profiles.NewStore(dir, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	return store.Load()
}

func TestTargetOfAPercentage(t *testing.T) {
	const (
		allowed = "allowed is above 1 and at most 100, or more with aggregation sum"
		ratio   = `"0.8" is 1 % or less, and gpu_utilization is in percent; did you mean "80"? ` + allowed
		above   = `"800" is above 100 %, the most that gpu_utilization can be; did you mean "80"? ` + allowed
	)
	set := withFour(t)
	for name, c := range map[string]struct {
		md   metadata
		want string // "" is allowed
	}{
		"a ratio":                           {metadata{"targetValue": "0.8"}, "targetValue: " + ratio},
		"a ratio from the environment":      {metadata{"targetValueFromEnv": "0.8"}, "targetValueFromEnv: " + ratio},
		"a ratio in the shorthand":          {metadata{"targetGpuUtilization": "0.8"}, "targetGpuUtilization: " + ratio},
		"a ratio of memory":                 {metadata{"targetMemoryUtilizationFromEnv": "0.8"}, `targetMemoryUtilizationFromEnv: "0.8" is 1 % or less, and memory_used_percent is in percent; did you mean "80"? ` + allowed},
		"a ratio over a profile":            {metadata{"profile": "training", "targetValue": "0.8"}, "targetValue: " + ratio},
		"a ratio of the sum":                {metadata{"targetValue": "0.8", "aggregation": "sum"}, "targetValue: " + ratio},
		"a zero too many":                   {metadata{"targetValue": "800"}, "targetValue: " + above},
		"a zero too many in the shorthand":  {metadata{"targetGpuUtilization": "800"}, "targetGpuUtilization: " + above},
		"800 over an unfit profile":         {metadata{"profile": "distributed-training", "metricType": "gpu_utilization", "targetValue": "800"}, "targetValue: " + above},
		"800 as the maximum, over a sum":    {metadata{"profile": "four", "aggregation": "max", "targetValue": "800"}, "targetValue: " + above},
		"800 of a sum":                      {metadata{"targetValue": "800", "aggregation": "sum"}, ""},
		"800 of a profile's sum":            {metadata{"profile": "four", "targetValue": "800"}, ""},
		"exactly 1":                         {metadata{"targetValue": "1"}, `targetValue: "1" is 1 % or less, and gpu_utilization is in percent; did you mean "100"? ` + allowed},
		"above 1":                           {metadata{"targetValue": "1.1"}, ""},
		"100":                               {metadata{"targetValue": "100"}, ""},
		"another unit":                      {metadata{"metricType": "power_draw", "targetValue": "0.8"}, ""},
		"another reader's metric":           {metadata{"metricType": "x_ratio", "targetValue": "0.8"}, ""},
		"another unit over a profile":       {metadata{"profile": "training", "metricType": "temperature", "targetValue": "200"}, ""},
		"a metric that the target does fit": {metadata{"profile": "batch", "metricType": "gpu_utilization"}, ""},
		"a metric that a profile's target does not fit": {metadata{"profile": "distributed-training", "metricType": "gpu_utilization"},
			`metricType: "gpu_utilization" does not go with the target 50000 of profile distributed-training, and gpu_utilization is in percent; set targetValue too: ` + allowed},
		"the same from the environment": {metadata{"profile": "distributed-training", "metricTypeFromEnv": "sm_activity", "aggregation": "min"},
			`metricTypeFromEnv: "sm_activity" does not go with the target 50000 of profile distributed-training, and sm_activity is in percent; set targetValue too: ` + allowed},
		"an aggregation that a profile's target does not fit": {metadata{"profile": "four", "aggregation": "avg", "metricType": "sm_activity"},
			`aggregation: "avg" does not go with the target 320 of profile four, and sm_activity is in percent; set targetValue too: ` + allowed},
		"a sum of a metric with the profile's target": {metadata{"profile": "four", "metricType": "sm_activity"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			parsed, err := Parse(c.md, set)
			if c.want == "" {
				require.NoError(t, err)
				return
			}
			assert.Zero(t, parsed)
			for range 20 { // whatever the order of the map
				var e *Error
				_, err := Parse(c.md, set)
				require.ErrorAs(t, err, &e)
				require.Equal(t, c.want, e.Error())
				require.Equal(t, c.md[e.Key], e.Value)
				_, plain := position[e.Key]
				require.Equal(t, !plain, e.FromEnv)
			}
		})
	}
}

func TestTargetRoundedAsInTheHPA(t *testing.T) {
	for _, md := range []metadata{{"targetValue": "80.12345"}, {"targetValueFromEnv": "80.1234"}, {"targetGpuUtilization": "80.1226"}} {
		parsed, err := Parse(md, profiles.Builtin())
		require.NoError(t, err)
		assert.Equal(t, 80.123, parsed.Target, md)
	}
	four, err := Parse(metadata{"targetValue": "80.1234"}, profiles.Builtin())
	require.NoError(t, err)
	three, err := Parse(metadata{"targetValue": "80.123"}, profiles.Builtin())
	require.NoError(t, err)
	assert.Equal(t, three, four, "the same to the HPA, so the same trigger")
}

func TestSuspicions(t *testing.T) {
	const never = " can never ask for more replicas: with the HPA's tolerance of "
	low := func(activation, target, metric string) string {
		return "activationThreshold " + activation + " is not below the target " + target + ": pods with " + metric + " of " + activation +
			" or less count as inactive, busy ones too, and KEDA may scale them to zero. Set activationThreshold below the target."
	}
	for name, c := range map[string]struct {
		md        metadata
		tolerance float64
		want      []string
	}{
		"nothing said":  {nil, .1, nil},
		"the defaults":  {metadata{"targetValue": "80", "activationThreshold": "5"}, .1, nil},
		"90 is reached": {metadata{"targetValue": "90"}, .1, nil},
		"target 95": {metadata{"targetValue": "95"}, .1, []string{
			"The target 95 of gpu_utilization" + never + "10 % that takes a value above 104.5, and the most is 100. The highest useful target is 90.9."}},
		"target 95, of the sum of two GPUs":  {metadata{"targetValue": "95", "aggregation": "sum"}, .1, nil},
		"target 95, with a finer tolerance":  {metadata{"targetValue": "95"}, .05, nil},
		"target 95 over training":            {metadata{"profile": "training", "targetValue": "95"}, .05, nil},
		"target 95 of something else than %": {metadata{"metricType": "temperature", "targetValue": "95"}, .1, nil},
		"the highest useful target":          {metadata{"targetValue": "90.9"}, .1, nil},
		"just above it":                      {metadata{"targetValue": "90.91"}, .1, []string{"The target 90.91 of gpu_utilization" + never + "10 % that takes a value above 100.001, and the most is 100. The highest useful target is 90.9."}},
		"100 with no tolerance":              {metadata{"targetValue": "100"}, 0, []string{"The target 100 of gpu_utilization" + never + "0 % that takes a value above 100, and the most is 100. The highest useful target is 99.9."}},
		"the default, with a large tolerance": {nil, .25, []string{
			"The target 80 of gpu_utilization" + never + "25 % that takes a value above 100, and the most is 100. The highest useful target is 79.9."}},
		"a tolerance that nothing exceeds": {nil, 99, []string{
			"The target 80 of gpu_utilization" + never + "9900 % that takes a value above 8000, and the most is 100. Lower the tolerance: no target helps."}},
		"activationThreshold 90 with target 80": {metadata{"targetValue": "80", "activationThreshold": "90"}, .1, []string{low("90", "80", "gpu_utilization")}},
		"at the target":                         {metadata{"activationThreshold": "80"}, .1, []string{low("80", "80", "gpu_utilization")}},
		"of watts":                              {metadata{"metricType": "power_draw", "targetValue": "300", "activationThreshold": "300.5"}, .1, []string{low("300.5", "300", "power_draw")}},
		"over a profile that goes to zero":      {metadata{"profile": "batch", "activationThreshold": "75"}, .1, []string{low("75", "70", "memory_used_percent")}},
		"of no effect":                          {metadata{"profile": "training", "activationThreshold": "95"}, .1, nil},
		"both": {metadata{"targetValue": "95", "activationThreshold": "95"}, .1, []string{
			"The target 95 of gpu_utilization" + never + "10 % that takes a value above 104.5, and the most is 100. The highest useful target is 90.9.",
			low("95", "95", "gpu_utilization")}},
	} {
		t.Run(name, func(t *testing.T) {
			parsed, err := Parse(c.md, profiles.Builtin())
			require.NoError(t, err)
			assert.Equal(t, c.want, Suspicions(&parsed, c.tolerance))
		})
	}
}
