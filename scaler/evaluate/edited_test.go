package evaluate

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A moment after an edit the HPA may still have the target of before: ten pods at 80 are
// 800 for an AverageValue, which a Value multiplies by ten again.
func TestEditedAMomentAgo(t *testing.T) {
	s := scene{gpus: gpus(80), pods: []podOn{llm("a", id(0))}}
	f, w := s.at(t)
	w.Edited = at(1)
	d, err := ForWorkload(parse(t, utilization(nil)), f, w, at(2.9), limits)
	var e *Error
	require.ErrorAs(t, err, &e)
	assert.Equal(t, Error{Unavailable, "ScaledObject shop/llm: its triggers were edited 1.9s ago, and KEDA may not have changed its HPA yet; answers follow in a moment"}, *e)
	assert.True(t, d.Active, "which the edit does not make unknown")

	d, err = ForWorkload(parse(t, utilization(nil)), f, w, at(6), limits)
	require.NoError(t, err)
	assert.InDelta(t, 80, d.Value, 0)
}

// Where the HPA can be read, answers follow it, however long KEDA takes.
func TestEditedUntilTheHPAIs(t *testing.T) {
	s := scene{gpus: gpus(80), pods: []podOn{llm("a", id(0))}}
	f, w := s.at(t)
	w.Edited = at(1)
	w.HPA = HPA{Known: true, Has: "still Value 80"}
	_, err := ForWorkload(parse(t, utilization(nil)), f, w, at(9), limits)
	require.EqualError(t, err, "ScaledObject shop/llm: its triggers were edited 8s ago, and KEDA has not changed its HPA yet: that has still Value 80; answers follow in a moment")

	w.HPA = HPA{Known: true, Adjusted: at(9)}
	_, err = ForWorkload(parse(t, utilization(nil)), f, w, at(10.9), limits)
	require.EqualError(t, err, "ScaledObject shop/llm: its triggers were edited 9.9s ago, and KEDA may not have changed its HPA yet; answers follow in a moment")

	w.HPA.Adjusted = at(1.2)
	d, err := ForWorkload(parse(t, utilization(nil)), f, w, at(3.2), limits)
	require.NoError(t, err, "two seconds after it was seen")
	assert.InDelta(t, 80, d.Value, 0)
}
