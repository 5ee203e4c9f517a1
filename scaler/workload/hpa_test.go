package workload

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"gpuscaler/profiles"
	"gpuscaler/scaler/evaluate"
)

const hpaPath = "/apis/autoscaling/v2/namespaces/shop/horizontalpodautoscalers/keda-hpa-llm"

type builtin struct{}

func (builtin) Load() *profiles.Set { return profiles.Builtin() }

// hpaOf is KEDA's HPA, with the third trigger's metric.
func hpaOf(target map[string]any) any {
	external := func(name string, target map[string]any) any {
		return map[string]any{"type": "External", "external": map[string]any{"metric": map[string]any{"name": name}, "target": target}}
	}
	return map[string]any{"spec": map[string]any{"metrics": []any{
		map[string]any{"type": "Resource"},
		external("s1-keda_gpu_triton_inference", map[string]any{"type": "AverageValue", "averageValue": "75"}),
		external("s2-keda_gpu_vllm_inference", target),
	}}}
}

// editKind edits the kind of the third trigger's target, or what else change does.
func editKind(s *apiServer, change func(spec map[string]any)) {
	s.edit("MODIFIED", func(_, spec map[string]any) { change(spec) })
}

func toAverage(spec map[string]any) {
	spec["triggers"].([]any)[2].(map[string]any)["metricType"] = "AverageValue"
}

func TestHPAIsReadAfterAnEditUntilItFollows(t *testing.T) {
	s := whole()
	s.answers[hpaPath] = hpaOf(map[string]any{"type": "Value", "value": "80"})
	try(t, s, func(t *testing.T, r *Resolver) {
		r.UseProfiles(builtin{})
		followed(t, s, r)
		w, err := r.ask("", vllm)
		require.NoError(t, err)
		assert.Equal(t, evaluate.HPA{}, w.HPA)
		assert.Zero(t, s.count(hpaPath), "nothing was edited")

		editKind(s, toAverage)
		time.Sleep(10 * time.Millisecond)
		ask := func() evaluate.HPA {
			w, err := r.ask("", vllm)
			require.NoError(t, err)
			return w.HPA
		}
		assert.Equal(t, evaluate.HPA{Known: true, Has: "not been read since"}, ask())
		for range 20 { // KEDA takes long
			time.Sleep(time.Second)
			assert.Equal(t, evaluate.HPA{Known: true, Has: "still Value 80"}, ask())
		}
		assert.LessOrEqual(t, s.count(hpaPath), 21)

		changed := time.Now()
		s.set(func(s *apiServer) {
			s.answers[hpaPath] = hpaOf(map[string]any{"type": "AverageValue", "averageValue": "80"})
		})
		ask()
		time.Sleep(2 * soonest)
		now := ask()
		require.False(t, now.Adjusted.IsZero())
		assert.Less(t, now.Adjusted.Sub(changed), time.Second)
		before := s.count(hpaPath)
		time.Sleep(5 * time.Second)
		assert.Equal(t, now, ask())
		assert.Equal(t, before, s.count(hpaPath), "it follows: it is not read again")

		time.Sleep(adjusting)
		assert.Equal(t, evaluate.HPA{}, ask(), "long ago")
	})
}

// What an edit of each kind leads to; another trigger's target of the same kind and size
// is not this one's.
func TestHPAHasWhatTheTriggerAsksFor(t *testing.T) {
	composite := func(kind string) any {
		return map[string]any{"spec": map[string]any{"metrics": []any{map[string]any{"external": map[string]any{
			"metric": map[string]any{"name": "composite-metric"}, "target": map[string]any{"type": kind, "value": "3", "averageValue": "3"},
		}}}}}
	}
	formula := func(spec map[string]any) {
		spec["advanced"] = map[string]any{"scalingModifiers": map[string]any{"formula": "a", "metricType": "Value"}}
	}
	for name, c := range map[string]struct {
		edit     func(spec map[string]any)
		hpa      any
		adjusted bool
		has      string
	}{
		"kind":                  {toAverage, hpaOf(map[string]any{"type": "AverageValue", "averageValue": "80"}), true, ""},
		"kind, not yet":         {toAverage, hpaOf(map[string]any{"type": "Value", "value": "80"}), false, "still Value 80"},
		"target, not yet":       {toAverage, hpaOf(map[string]any{"type": "AverageValue", "averageValue": "75"}), false, "still AverageValue 75"},
		"three decimals":        {toAverage, hpaOf(map[string]any{"type": "AverageValue", "averageValue": "80000m"}), true, ""},
		"no HPA":                {toAverage, nil, false, "still no such metric"},
		"formula":               {formula, composite("Value"), true, ""},
		"formula, other kind":   {formula, composite("AverageValue"), false, "still AverageValue 3"},
		"formula, not yet":      {formula, hpaOf(map[string]any{"type": "Value", "value": "80"}), false, "still AverageValue 75 and Value 80"},
		"formula, not any more": {toAverage, composite("Value"), false, "still no such metric"},
	} {
		t.Run(name, func(t *testing.T) {
			s := whole()
			if c.hpa != nil {
				s.answers[hpaPath] = c.hpa
			}
			try(t, s, func(t *testing.T, r *Resolver) {
				r.UseProfiles(builtin{})
				followed(t, s, r)
				editKind(s, c.edit)
				time.Sleep(10 * time.Millisecond)
				_, _ = r.ask("", vllm)
				time.Sleep(2 * soonest)
				w, err := r.ask("", vllm)
				require.NoError(t, err)
				assert.True(t, w.HPA.Known)
				assert.Equal(t, c.adjusted, !w.HPA.Adjusted.IsZero())
				assert.Equal(t, c.has, w.HPA.Has)
			})
		})
	}
}

// Its name is what KEDA says, else what the ScaledObject says.
func TestHPAName(t *testing.T) {
	o := &scaledObject{}
	o.Name = "llm"
	assert.Equal(t, "keda-hpa-llm", o.hpaName())
	o.Spec.Advanced.HPA.Name = "mine"
	assert.Equal(t, "mine", o.hpaName())
	o.Status.HPA = "before"
	assert.Equal(t, "before", o.hpaName())
}

// With an older role answers wait for a fixed time, and nothing is asked for in vain.
func TestHPAMayNotBeRead(t *testing.T) {
	s := whole()
	s.answers[hpaPath] = apierrors.NewForbidden(schema.GroupResource{Resource: "horizontalpodautoscalers"}, "", errors.New("no"))
	try(t, s, func(t *testing.T, r *Resolver) {
		r.UseProfiles(builtin{})
		followed(t, s, r)
		editKind(s, toAverage)
		for range 5 {
			time.Sleep(time.Second)
			_, _ = r.ask("", vllm)
		}
		w, err := r.ask("", vllm)
		require.NoError(t, err)
		assert.Equal(t, evaluate.HPA{}, w.HPA)
		assert.False(t, w.Edited.IsZero())
		assert.Equal(t, 1, s.count(hpaPath))
	})
}
