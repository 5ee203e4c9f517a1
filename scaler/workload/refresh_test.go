package workload

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/trigger"
)

// What is asked for stays fresh, and what nobody asks for any more is left alone.
func TestRefresh(t *testing.T) {
	s := forbidden(whole())
	try(t, s, func(t *testing.T, r *Resolver) {
		r.Expect("shop", "llm", "")
		synctest.Wait()
		s.set(func(s *apiServer) {
			s.answers[lwsPath] = autoscalingv1.Scale{Spec: autoscalingv1.ScaleSpec{Replicas: 9}, Status: autoscalingv1.ScaleStatus{Replicas: 9, Selector: "app=llm"}}
		})
		time.Sleep(period + period/4)
		w, err := r.ask("", nil)
		require.NoError(t, err)
		assert.Equal(t, 9, w.Spec)
		assert.LessOrEqual(t, time.Since(w.Told), period)

		time.Sleep(asked + period)
		s.mu.Lock()
		before := s.asked[podsPath]
		assert.InDelta(t, float64(asked/objectPeriod), s.asked[soPath], 6, "it seldom changes")
		s.mu.Unlock()
		assert.InDelta(t, float64(asked/period), before, 30)
		time.Sleep(time.Hour)
		s.mu.Lock()
		assert.LessOrEqual(t, s.asked[podsPath], before+1)
		s.mu.Unlock()
	})
}

func podOf(namespace, app string) fleet.Pod {
	return fleet.Pod{Namespace: namespace, Labels: map[string]string{"app": app}}
}

// A trigger that has just been changed is looked for at once, and not when the
// ScaledObject is read anyway, where ScaledObjects cannot be followed.
func TestTriggerChanged(t *testing.T) {
	s := forbidden(whole())
	try(t, s, func(t *testing.T, r *Resolver) {
		changed := map[string]string{"profile": "batch"}
		r.Expect("shop", "llm", "")
		synctest.Wait()
		s.set(func(s *apiServer) {
			s.answers[soPath].(map[string]any)["spec"].(map[string]any)["triggers"] = []any{
				map[string]any{"type": "external", "metricType": "Value", "metadata": changed},
			}
		})
		_, err := r.ask("", changed)
		require.NoError(t, err)
		time.Sleep(period + soonest)
		w, err := r.ask("", changed)
		require.NoError(t, err)
		assert.Equal(t, trigger.Value, w.TargetType)
	})
}

// When its pods change, what is known of a workload is read again at once.
func TestPodsChanged(t *testing.T) {
	s := whole()
	try(t, s, func(t *testing.T, r *Resolver) {
		r.Expect("shop", "llm", "")
		synctest.Wait()
		time.Sleep(soonest)
		changed := time.Now()
		r.PodsChanged([]fleet.Pod{podOf("other", "llm"), podOf("shop", "llm")})
		synctest.Wait()
		w, err := r.ask("", nil)
		require.NoError(t, err)
		assert.Equal(t, changed, w.Told)
		for range 100 { // however often
			r.PodsChanged([]fleet.Pod{podOf("shop", "llm")})
			time.Sleep(soonest / 100)
		}
		time.Sleep(soonest)
		w, err = r.ask("", nil)
		require.NoError(t, err)
		assert.Greater(t, w.Told, changed)
		s.mu.Lock()
		assert.LessOrEqual(t, s.asked[podsPath], 4)
		s.mu.Unlock()
		last := w.Told
		r.PodsChanged([]fleet.Pod{podOf("other", "llm"), podOf("shop", "web")})
		time.Sleep(soonest)
		w, _ = r.ask("", nil)
		assert.Equal(t, last, w.Told, "of other workloads")
	})
}

// The first pod of a workload that had none is seen soon, though no node tells of it.
func TestFirstPod(t *testing.T) {
	s := whole()
	pods := s.answers[podsPath]
	s.answers[podsPath] = corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}}
	try(t, s, func(t *testing.T, r *Resolver) {
		r.Expect("shop", "llm", "")
		synctest.Wait()
		s.set(func(s *apiServer) { s.answers[podsPath] = pods })
		time.Sleep(emptyPeriod + soonest)
		w, err := r.ask("", nil)
		require.NoError(t, err)
		assert.Len(t, w.Pods, 1)
	})
}
