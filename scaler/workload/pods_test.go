package workload

import (
	"net/url"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gpuscaler/scaler/fleet"
)

func podsAt(selector string) string {
	return "/api/v1/namespaces/shop/pods?labelSelector=" + url.QueryEscape(selector)
}

func member(set, group, worker string) corev1.Pod {
	name := set + "-" + group
	if worker != "0" {
		name += "-" + worker
	}
	return corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: map[string]string{
		"app": "llm", "leaderworkerset.sigs.k8s.io/name": set, "leaderworkerset.sigs.k8s.io/group-index": group, "leaderworkerset.sigs.k8s.io/worker-index": worker,
	}}, Status: corev1.PodStatus{Phase: corev1.PodRunning}}
}

func listOf(pods ...corev1.Pod) corev1.PodList {
	return corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}, Items: pods}
}

// The groups' workers are found, whatever of a LeaderWorkerSet the selector selects.
func TestGroups(t *testing.T) {
	const leaders = "leaderworkerset.sigs.k8s.io/name=engine,leaderworkerset.sigs.k8s.io/worker-index=0"
	plain := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "router", Labels: map[string]string{"app": "llm"}}}
	failed := member("gone", "0", "0")
	failed.Status.Phase = corev1.PodFailed
	engine := []corev1.Pod{member("engine", "0", "0"), member("engine", "0", "1"), member("engine", "1", "0"), member("engine", "1", "1")}
	other := []corev1.Pod{member("other", "0", "0"), member("other", "0", "1")}
	for name, c := range map[string]struct {
		scale, podSelector string
		answers            map[string]corev1.PodList
		sets, pods         []string
		requests           int
	}{
		"the set's own selector, of leaders": {scale: leaders,
			answers: map[string]corev1.PodList{"leaderworkerset.sigs.k8s.io/name=engine": listOf(engine...)},
			sets:    []string{"engine"}, pods: []string{"engine-0", "engine-0-1", "engine-1", "engine-1-1"}, requests: 1},
		"leaders by a label of their own": {podSelector: "role=leader",
			answers: map[string]corev1.PodList{
				"role=leader": listOf(engine[0], engine[2]),
				"leaderworkerset.sigs.k8s.io/name in (engine)": listOf(engine...),
			},
			sets: []string{"engine"}, pods: []string{"engine-0", "engine-0-1", "engine-1", "engine-1-1"}, requests: 2},
		"two sets and a pod of none": {podSelector: "app=all",
			answers: map[string]corev1.PodList{
				"app=all": listOf(other[0], plain, engine[0]),
				"leaderworkerset.sigs.k8s.io/name in (engine,other)": listOf(append(append([]corev1.Pod{}, engine...), other...)...),
			},
			sets: []string{"engine", "other"}, pods: []string{"router", "engine-0", "engine-0-1", "engine-1", "engine-1-1", "other-0", "other-0-1"}, requests: 2},
		"by set, but one set has no such pod": {podSelector: "leaderworkerset.sigs.k8s.io/name in (engine,other),role=leader",
			answers: map[string]corev1.PodList{"leaderworkerset.sigs.k8s.io/name in (engine,other)": func() corev1.PodList {
				leader := member("engine", "0", "0")
				leader.Labels["role"] = "leader"
				return listOf(leader, engine[1], other[0], other[1])
			}()},
			sets: []string{"engine"}, pods: []string{"engine-0", "engine-0-1"}, requests: 1},
		"a failed leader": {podSelector: "role=leader",
			answers: map[string]corev1.PodList{
				"role=leader": listOf(failed), "leaderworkerset.sigs.k8s.io/name in (gone)": listOf(failed, member("gone", "0", "1")),
			},
			sets: []string{"gone"}, pods: []string{"gone-0-1"}, requests: 2},
		"no set": {podSelector: "app=router", answers: map[string]corev1.PodList{"app=router": listOf(plain)}, pods: []string{"router"}, requests: 1},
	} {
		t.Run(name, func(t *testing.T) {
			s := whole()
			s.answers[lwsPath] = autoscalingv1.Scale{Spec: autoscalingv1.ScaleSpec{Replicas: 2}, Status: autoscalingv1.ScaleStatus{Replicas: 2, Selector: c.scale}}
			for selector, list := range c.answers {
				s.answers[podsAt(selector)] = list
			}
			try(t, s, func(t *testing.T, r *Resolver) {
				r.Expect("shop", "llm", c.podSelector)
				synctest.Wait()
				w, err := r.ask(c.podSelector, nil)
				require.NoError(t, err)
				assert.Equal(t, c.sets, w.Sets)
				var names []string
				for _, p := range w.Pods {
					names = append(names, p.Name)
					assert.Nil(t, p.Labels)
				}
				assert.Equal(t, c.pods, names)
				requests := 0
				for selector := range c.answers {
					requests += s.count(podsAt(selector))
				}
				assert.Equal(t, c.requests, requests)
			})
		})
	}
}

func TestGroupsAreDescribed(t *testing.T) {
	s := whole()
	s.answers[podsPath] = listOf(member("engine", "3", "0"))
	s.answers[podsAt("leaderworkerset.sigs.k8s.io/name in (engine)")] = listOf(member("engine", "3", "0"), member("engine", "3", "1"))
	try(t, s, func(t *testing.T, r *Resolver) {
		r.Expect("shop", "llm", "")
		synctest.Wait()
		w, err := r.ask("", vllm)
		require.NoError(t, err)
		require.Len(t, w.Pods, 2)
		assert.Equal(t, []any{"engine/3", true, "engine/3", false}, []any{w.Pods[0].Group, w.Pods[0].Leader, w.Pods[1].Group, w.Pods[1].Leader})

		time.Sleep(3 * soonest) // and it is followed
		changed := time.Now()
		r.PodsChanged([]fleet.Pod{{Namespace: "shop", Labels: map[string]string{"leaderworkerset.sigs.k8s.io/name": "else"}}})
		synctest.Wait()
		w, _ = r.ask("", vllm)
		assert.Less(t, w.Told, changed, "of another set")
		r.PodsChanged([]fleet.Pod{{Namespace: "shop", Labels: map[string]string{"leaderworkerset.sigs.k8s.io/name": "engine"}}})
		synctest.Wait()
		w, err = r.ask("", vllm)
		require.NoError(t, err)
		assert.Equal(t, changed, w.Told, "a worker changed")
	})
}
