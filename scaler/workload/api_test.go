package workload

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/profiles"
	"gpuscaler/scaler/evaluate"
	"gpuscaler/scaler/trigger"
)

func TestMatch(t *testing.T) {
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
		fits bool
	}{
		"the only one":             {[]triggerSpec{of("Value", "a", "1")}, map[string]string{"a": "1"}, trigger.Value, true},
		"KEDA's default":           {[]triggerSpec{of("", "a", "1")}, map[string]string{"a": "1"}, trigger.AverageValue, true},
		"its metadata changed":     {[]triggerSpec{of("Value", "a", "1")}, map[string]string{"a": "2"}, trigger.Value, false},
		"one with more keys":       {[]triggerSpec{of("Value", "a", "1")}, map[string]string{"a": "1", "b": "2"}, trigger.Value, false},
		"from the environment":     {[]triggerSpec{other, of("Value", "a", "1", "targetValueFromEnv", "NAME")}, map[string]string{"a": "1", "targetValueFromEnv": "80"}, trigger.Value, true},
		"not in the environment":   {[]triggerSpec{other, of("Value", "a", "1", "targetValueFromEnv", "NAME")}, map[string]string{"a": "1"}, trigger.Value, true},
		"only one has FromEnv":     {[]triggerSpec{of("AverageValue", "a", "1"), of("Value", "a", "1", "targetValueFromEnv", "NAME")}, map[string]string{"a": "1", "targetValueFromEnv": "80"}, trigger.Value, true},
		"one that says less":       {[]triggerSpec{of("AverageValue", "a", "1"), of("Value", "a", "1", "b", "2")}, map[string]string{"a": "1", "b": "2"}, trigger.Value, true},
		"the one that says less":   {[]triggerSpec{of("AverageValue", "a", "1"), of("Value", "a", "1", "b", "2")}, map[string]string{"a": "1"}, trigger.AverageValue, true},
		"two alike":                {[]triggerSpec{of("Value", "a", "1", "bFromEnv", "X"), of("Value", "a", "1", "bFromEnv", "Y")}, map[string]string{"a": "1", "bFromEnv": "5"}, trigger.Value, true},
		"none of ours":             {[]triggerSpec{{"cpu", "Utilization", nil}}, map[string]string{"a": "1"}, trigger.AverageValue, false},
		"the guess that says most": {[]triggerSpec{other, of("AverageValue", "a", "1"), of("Value", "a", "1", "b", "2")}, map[string]string{"a": "1", "b": "2", "c": "3"}, trigger.Value, false},
	} {
		got, fits, ambiguous := match(c.all, c.sent)
		assert.Equal(t, c.want, got, name)
		assert.Equal(t, c.fits, fits, name)
		assert.Empty(t, ambiguous, name)
	}
}

func parse(t *testing.T, text string) *scaledObject {
	t.Helper()
	o := &scaledObject{}
	require.NoError(t, json.Unmarshal([]byte(text), o))
	return o
}

// Two triggers that differ in keys from the environment alone are taken for each other.
func TestAmbiguous(t *testing.T) {
	triggers := `"triggers": [
		{"type": "cpu"},
		{"type": "external", "metricType": "Value", "metadata": {"a": "1", "targetValueFromEnv": "X"}},
		{"type": "external", "metadata": {"a": "1", "targetValueFromEnv": "Y"}}]`
	w := &evaluate.Workload{Name: "ScaledObject shop/llm"}
	sent := map[string]string{"a": "1", "targetValueFromEnv": "80"}
	_, err := parse(t, `{"spec": {`+triggers+`}}`).complete(w, sent, nil)
	requireError(t, err, evaluate.Invalid, "metadata: the triggers 1 and 2 of ScaledObject shop/llm differ in nothing but their metricType (Value and AverageValue)")
	requireError(t, err, evaluate.Invalid, "give each a metricName of its own")
	fits, err := parse(t, `{"spec": {"advanced": {"scalingModifiers": {"formula": "x", "metricType": "Value"}}, `+triggers+`}}`).complete(w, sent, nil)
	require.NoError(t, err, "their types have no effect")
	assert.True(t, fits)
	assert.Equal(t, trigger.Value, w.TargetType)
}

func TestComposite(t *testing.T) {
	for text, want := range map[string]trigger.TargetType{
		`{}`:                       "",
		`{"scalingModifiers": {}}`: "",
		`{"scalingModifiers": {"metricType": "Value", "target": "5"}}`:                 "",
		`{"scalingModifiers": {"formula": "a + b"}}`:                                   trigger.AverageValue,
		`{"scalingModifiers": {"formula": "a", "metricType": "AverageValue"}}`:         trigger.AverageValue,
		`{"scalingModifiers": {"formula": "a", "target": "5", "metricType": "Value"}}`: trigger.Value,
	} {
		w := &evaluate.Workload{}
		_, err := parse(t, `{"spec": {"advanced": `+text+`}}`).complete(w, nil, nil)
		require.NoError(t, err)
		assert.Equal(t, want, w.Composite, text)
	}
}

func TestTolerances(t *testing.T) {
	two := 0.02
	zero := 0.0
	for text, want := range map[string]*float64{
		`"0.02"`: &two, `0.02`: &two, `"20m"`: &two, `2e-2`: &two, `0`: &zero, `"0"`: &zero,
		`"-0.02"`: nil, `-1`: nil, `"two"`: nil, `null`: nil, `{}`: nil, `[1]`: nil, `""`: nil, `true`: nil,
	} {
		w := &evaluate.Workload{}
		o := parse(t, `{"spec": {"advanced": {"horizontalPodAutoscalerConfig": {"behavior": {"scaleDown": {"tolerance": `+text+`, "policies": []}}}}}}`)
		_, err := o.complete(w, nil, nil)
		require.NoError(t, err)
		assert.Nil(t, w.ScaleUpTolerance, text)
		if want == nil {
			assert.Nil(t, w.ScaleDownTolerance, text)
			continue
		}
		require.NotNil(t, w.ScaleDownTolerance, text)
		assert.InDelta(t, *want, *w.ScaleDownTolerance, 1e-9, text)
	}
}

func TestNothingWakes(t *testing.T) {
	const ours = `{"type": "external", "metadata": {"scalerAddress": "us:6000", "profile": "vllm-inference"}}`
	for name, c := range map[string]struct {
		spec string
		want bool
	}{
		"ours alone":              {`"triggers": [` + ours + `]`, true},
		"with cpu and memory":     {`"triggers": [{"type": "cpu"}, {"type": "memory"}, ` + ours + `]`, true},
		"minimum 0":               {`"minReplicaCount": 0, "triggers": [` + ours + `]`, true},
		"minimum 1":               {`"minReplicaCount": 1, "triggers": [` + ours + `]`, false},
		"idle at 0":               {`"minReplicaCount": 2, "idleReplicaCount": 0, "triggers": [` + ours + `]`, true},
		"idle at 1":               {`"minReplicaCount": 2, "idleReplicaCount": 1, "triggers": [` + ours + `]`, false},
		"with a queue":            {`"triggers": [{"type": "prometheus", "metadata": {}}, ` + ours + `]`, false},
		"with another scaler":     {`"triggers": [{"type": "external-push", "metadata": {"scalerAddress": "them:6000"}}, ` + ours + `]`, false},
		"never to zero":           {`"triggers": [` + ours + `, {"type": "external", "metadata": {"scalerAddress": "us:6000", "profile": "training"}}]`, false},
		"a profile of another":    {`"triggers": [{"type": "external", "metadata": {"scalerAddress": "them:6000", "profile": "batch"}}]`, false},
		"from the environment":    {`"triggers": [{"type": "external", "metadata": {"scalerAddress": "us:6000", "profileFromEnv": "X"}}]`, false},
		"never, but by a formula": {`"advanced": {"scalingModifiers": {"formula": "a"}}, "triggers": [{"type": "external", "metadata": {"scalerAddress": "us:6000", "profile": "training"}}]`, true},
		"an unknown profile":      {`"triggers": [{"type": "external", "metadata": {"scalerAddress": "us:6000", "profile": "mine"}}]`, true},
	} {
		w := &evaluate.Workload{}
		_, err := parse(t, `{"spec": {`+c.spec+`}}`).complete(w, map[string]string{"scalerAddress": "us:6000"}, profiles.Builtin())
		require.NoError(t, err)
		assert.Equal(t, c.want, w.NothingWakes, name)
	}
}

// The status has the target of before until KEDA has looked at the new one.
func TestTarget(t *testing.T) {
	const deployment = `"status": {"scaleTargetGVKR": {"group": "apps", "version": "v1", "kind": "Deployment", "resource": "deployments"}}`
	for text, found := range map[string]bool{
		`{"spec": {"scaleTargetRef": {"name": "a"}}, ` + deployment + `}`:                                                 true,
		`{"spec": {"scaleTargetRef": {"name": "a", "apiVersion": "apps/v1", "kind": "Deployment"}}, ` + deployment + `}`:  true,
		`{"spec": {"scaleTargetRef": {"name": "a", "kind": "StatefulSet"}}, ` + deployment + `}`:                          false,
		`{"spec": {"scaleTargetRef": {"name": "a", "apiVersion": "x.io/v1", "kind": "Deployment"}}, ` + deployment + `}`:  false,
		`{"spec": {"scaleTargetRef": {"name": "a", "apiVersion": "a/b/c/v1", "kind": "Deployment"}}, ` + deployment + `}`: false,
		`{"spec": {"scaleTargetRef": {"name": "a"}}}`:                                                                     false,
	} {
		_, err := parse(t, text).target()
		assert.Equal(t, found, err == nil, text)
	}
}
