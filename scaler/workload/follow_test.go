package workload

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gpuscaler/scaler/evaluate"
	"gpuscaler/scaler/trigger"
)

var vllm = map[string]string{"profile": "vllm-inference"}

// followed is a resolver that follows the ScaledObject, which has been read.
func followed(t *testing.T, s *apiServer, r *Resolver) {
	t.Helper()
	r.Expect("shop", "llm", "")
	time.Sleep(period)
	synctest.Wait()
	_, err := r.ask("", vllm)
	require.NoError(t, err)
	require.Equal(t, []int{1, 1}, []int{s.count(listPath), s.count(listPath + "?watch")})
}

// An edit is in the next answer, and nothing is asked for.
func TestEdit(t *testing.T) {
	s := whole()
	try(t, s, func(t *testing.T, r *Resolver) {
		followed(t, s, r)
		before := s.count(soPath)
		s.edit("MODIFIED", func(_, spec map[string]any) {
			spec["triggers"].([]any)[2].(map[string]any)["metricType"] = "AverageValue"
			spec["minReplicaCount"] = 1
			spec["advanced"] = map[string]any{
				"scalingModifiers":              map[string]any{"formula": "a", "metricType": "Value"},
				"horizontalPodAutoscalerConfig": map[string]any{"behavior": map[string]any{"scaleUp": map[string]any{"tolerance": "0.02"}}},
			}
		})
		time.Sleep(200 * time.Millisecond)
		w, err := r.ask("", vllm)
		require.NoError(t, err)
		assert.Equal(t, trigger.AverageValue, w.TargetType)
		assert.Equal(t, trigger.Value, w.Composite)
		require.NotNil(t, w.ScaleUpTolerance)
		assert.InDelta(t, 0.02, *w.ScaleUpTolerance, 1e-9)

		edited := time.Now()
		time.Sleep(2 * soonest)
		w, err = r.ask("", vllm)
		require.NoError(t, err)
		assert.Less(t, w.Told.Sub(edited), period, "its pods are read again, too")
		assert.Equal(t, before, s.count(soPath), "it was not read")
	})
}

// From an edit of its triggers on it takes KEDA a moment to change the HPA; edits of
// anything else change no target.
func TestEditedTriggers(t *testing.T) {
	s := whole()
	try(t, s, func(t *testing.T, r *Resolver) {
		followed(t, s, r)
		edited := func(what func(object, spec map[string]any)) time.Duration {
			began := time.Now()
			s.edit("MODIFIED", what)
			time.Sleep(time.Second)
			w, err := r.ask("", vllm)
			require.NoError(t, err)
			if w.Edited.IsZero() {
				return -1
			}
			return w.Edited.Sub(began).Round(100 * time.Millisecond)
		}
		status := func(object, _ map[string]any) {
			object["status"].(map[string]any)["lastActiveTime"] = time.Now().Format(time.RFC3339)
		}
		minimum := func(_, spec map[string]any) { spec["minReplicaCount"] = 1 }
		assert.EqualValues(t, -1, edited(status))
		assert.EqualValues(t, -1, edited(minimum))
		assert.EqualValues(t, 0, edited(func(_, spec map[string]any) {
			spec["triggers"].([]any)[2].(map[string]any)["metricType"] = "AverageValue"
		}))
		assert.EqualValues(t, -time.Second, edited(func(_, spec map[string]any) { spec["minReplicaCount"] = 2 }), "that was before")
		assert.EqualValues(t, 0, edited(func(_, spec map[string]any) {
			spec["advanced"] = map[string]any{"scalingModifiers": map[string]any{"formula": "a", "metricType": "Value"}}
		}))
	})
}

// Followed ScaledObjects are not read one by one, whatever KEDA writes to their status.
func TestFollowedIsNotRead(t *testing.T) {
	s := whole()
	try(t, s, func(t *testing.T, r *Resolver) {
		followed(t, s, r)
		before, pods := s.count(soPath), s.count(podsPath)
		for range 100 {
			s.edit("MODIFIED", func(object, _ map[string]any) {
				object["status"].(map[string]any)["lastActiveTime"] = time.Now().Format(time.RFC3339)
			})
			time.Sleep(time.Second)
			_, err := r.ask("", vllm)
			require.NoError(t, err)
		}
		assert.Equal(t, before, s.count(soPath))
		assert.InDelta(t, 100*time.Second/period, s.count(podsPath)-pods, 4)
		assert.Equal(t, 1, s.count(listPath))
	})
}

// The pods of the target of before are no answer for the target of now.
func TestTargetChanged(t *testing.T) {
	const nextScale = "/apis/leaderworkerset.x-k8s.io/v1/namespaces/shop/leaderworkersets/next/scale"
	const nextPods = "/api/v1/namespaces/shop/pods?labelSelector=app%3Dnext"
	s := whole()
	s.answers[nextScale] = autoscalingv1.Scale{Spec: autoscalingv1.ScaleSpec{Replicas: 7}, Status: autoscalingv1.ScaleStatus{Replicas: 7, Selector: "app=next"}}
	s.answers[nextPods] = corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}}
	target := func(key, value string) func(_, spec map[string]any) {
		return func(_, spec map[string]any) { spec["scaleTargetRef"].(map[string]any)[key] = value }
	}
	try(t, s, func(t *testing.T, r *Resolver) {
		followed(t, s, r)
		s.edit("MODIFIED", target("name", "next"))
		for range 20 {
			time.Sleep(soonest / 10)
			if w, err := r.ask("", vllm); err == nil {
				assert.Equal(t, 7, w.Spec, "that of before")
			} else {
				requireError(t, err, evaluate.Unavailable, "not read yet")
			}
		}
		w, err := r.ask("", vllm)
		require.NoError(t, err)
		assert.Equal(t, "app=next", w.Selector.String())

		s.edit("MODIFIED", target("kind", "Other")) // KEDA has not looked at it
		time.Sleep(2 * soonest)
		_, err = r.ask("", vllm)
		requireError(t, err, evaluate.Unavailable, "KEDA has not found its target yet")
		s.edit("MODIFIED", target("kind", "LeaderWorkerSet"))
		time.Sleep(2 * soonest)
		_, err = r.ask("", vllm)
		require.NoError(t, err)
	})
}

// One that is deleted is known to be, and one that comes is found, at once.
func TestDeleted(t *testing.T) {
	s := whole()
	try(t, s, func(t *testing.T, r *Resolver) {
		followed(t, s, r)
		object := s.answers[soPath]
		s.edit("DELETED", func(_, _ map[string]any) {})
		time.Sleep(2 * soonest)
		_, err := r.ask("", vllm)
		requireError(t, err, evaluate.Impossible, "ScaledObject shop/llm")
		s.set(func(s *apiServer) { s.answers[soPath] = object })
		s.edit("ADDED", func(_, _ map[string]any) {})
		time.Sleep(2 * soonest)
		_, err = r.ask("", vllm)
		require.NoError(t, err)
	})
}

// Without the permission ScaledObjects are read as before, and the list is seldom tried.
func TestFollowingIsForbidden(t *testing.T) {
	s := forbidden(whole())
	try(t, s, func(t *testing.T, r *Resolver) {
		r.Expect("shop", "llm", "")
		synctest.Wait()
		for range 60 {
			time.Sleep(time.Second)
			_, err := r.ask("", vllm)
			require.NoError(t, err)
		}
		assert.InDelta(t, time.Minute/objectPeriod, s.count(soPath), 2)
		assert.LessOrEqual(t, s.count(listPath), 1)

		s.set(func(s *apiServer) { delete(s.answers, listPath) })
		for range 2 * refusedPeriod / time.Minute {
			time.Sleep(time.Minute)
			_, err := r.ask("", vllm)
			require.NoError(t, err)
		}
		before := s.count(soPath)
		time.Sleep(2 * objectPeriod)
		assert.Equal(t, before, s.count(soPath), "with the permission they are followed")
	})
}

// While changes do not arrive the ScaledObject is read, and what it is by now counts.
func TestWatchBreaks(t *testing.T) {
	s := whole()
	try(t, s, func(t *testing.T, r *Resolver) {
		followed(t, s, r)
		s.set(func(s *apiServer) { s.answers[listPath+"?watch"] = apierrors.NewServiceUnavailable("away") })
		s.set(func(s *apiServer) { s.answers[listPath] = apierrors.NewServiceUnavailable("away") })
		s.cut()
		time.Sleep(lastRead)
		before := s.count(soPath)
		s.edit("MODIFIED", func(_, spec map[string]any) {
			spec["triggers"].([]any)[2].(map[string]any)["metricType"] = "AverageValue"
		})
		time.Sleep(objectPeriod + 2*period)
		w, err := r.ask("", vllm)
		require.NoError(t, err)
		assert.Equal(t, trigger.AverageValue, w.TargetType)
		assert.Greater(t, s.count(soPath), before)

		s.set(func(s *apiServer) { delete(s.answers, listPath); delete(s.answers, listPath+"?watch") })
		time.Sleep(time.Minute)
		before = s.count(soPath)
		time.Sleep(time.Minute)
		assert.Equal(t, before, s.count(soPath), "followed again")
	})
}

// lastRead is more than the reflector takes to notice that a watch has ended.
const lastRead = 20 * time.Second

// ScaledObjects are followed only while workloads are asked for.
func TestFollowsWhileAsked(t *testing.T) {
	s := whole()
	try(t, s, func(t *testing.T, r *Resolver) {
		time.Sleep(time.Hour)
		assert.Zero(t, s.count(listPath), "nothing was asked for yet")
		followed(t, s, r)
		time.Sleep(2 * asked)
		s.edit("MODIFIED", func(_, spec map[string]any) {
			spec["triggers"].([]any)[2].(map[string]any)["metricType"] = "AverageValue"
		})
		time.Sleep(time.Hour)
		assert.Equal(t, 1, s.count(listPath))
		assert.Equal(t, 1, s.count(listPath+"?watch"))

		_, err := r.ask("", vllm)
		requireError(t, err, evaluate.Unavailable, "not read yet")
		time.Sleep(period)
		w, err := r.ask("", vllm)
		require.NoError(t, err)
		assert.Equal(t, trigger.AverageValue, w.TargetType)
		assert.Equal(t, 2, s.count(listPath))
	})
}

// A ScaledJob of the same name is distinguished from the ScaledObject by its trigger's metadata.
func TestScaledJobOfThatName(t *testing.T) {
	s := whole()
	job := map[string]string{"profile": "batch"}
	s.answers[jobPath] = map[string]any{"spec": map[string]any{"triggers": []any{map[string]any{"type": "external", "metadata": job}}}}
	try(t, s, func(t *testing.T, r *Resolver) {
		followed(t, s, r)
		assert.Zero(t, s.count(jobPath), "a trigger fits")
		_, err := r.ask("", job)
		require.NoError(t, err, "not looked for yet")
		for range 20 * 4 {
			time.Sleep(250 * time.Millisecond)
			_, _ = r.ask("", job)
		}
		for range 100 {
			_, err = r.ask("", job)
			requireError(t, err, evaluate.Impossible, "shop/llm is a ScaledJob")
		}
		_, err = r.ask("", vllm)
		require.NoError(t, err, "the ScaledObject's own")
		_, err = r.ask("", map[string]string{"profile": "ollama"})
		require.NoError(t, err, "of neither")
		assert.LessOrEqual(t, s.count(jobPath), 2)
	})
}
