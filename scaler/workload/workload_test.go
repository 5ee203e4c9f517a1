package workload

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/rest"

	"gpuscaler/scaler/evaluate"
	"gpuscaler/scaler/trigger"
)

func TestMain(m *testing.M) {
	// client-go's handler waits by the time since the last error, which is of a real
	// clock at first, and of a test's then.
	utilruntime.ErrorHandlers = nil
	goleak.VerifyTestMain(m)
}

const (
	soPath  = "/apis/keda.sh/v1alpha1/namespaces/shop/scaledobjects/llm"
	jobPath = "/apis/keda.sh/v1alpha1/namespaces/shop/scaledjobs/llm"
	// lwsPath is of a custom kind with a scale subresource.
	lwsPath  = "/apis/leaderworkerset.x-k8s.io/v1/namespaces/shop/leaderworkersets/engine/scale"
	podsPath = "/api/v1/namespaces/shop/pods?labelSelector=app%3Dllm"
)

// whole is a ScaledObject with a target of a custom kind, three replicas, and a
// pod that waits for a node.
func whole() *apiServer {
	scaledObject := map[string]any{
		"kind": "ScaledObject", "apiVersion": "keda.sh/v1alpha1", "metadata": map[string]any{"namespace": "shop", "name": "llm", "uid": "u", "resourceVersion": "1"},
		"spec": map[string]any{
			"scaleTargetRef": map[string]any{"apiVersion": "leaderworkerset.x-k8s.io/v1", "kind": "LeaderWorkerSet", "name": "engine"},
			"triggers": []any{
				map[string]any{"type": "cpu", "metricType": "Utilization", "metadata": map[string]any{"value": "80"}},
				map[string]any{"type": "external", "metadata": map[string]any{"profile": "triton-inference"}},
				map[string]any{"type": "external-push", "metricType": "Value", "metadata": map[string]any{"profile": "vllm-inference"}},
			},
		},
		"status": map[string]any{"scaleTargetGVKR": map[string]any{
			"group": "leaderworkerset.x-k8s.io", "version": "v1", "kind": "LeaderWorkerSet", "resource": "leaderworkersets",
		}},
	}
	return &apiServer{asked: map[string]int{}, answers: map[string]any{
		soPath:  scaledObject,
		lwsPath: autoscalingv1.Scale{Spec: autoscalingv1.ScaleSpec{Replicas: 4}, Status: autoscalingv1.ScaleStatus{Replicas: 3, Selector: "app=llm"}},
		podsPath: corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}, Items: []corev1.Pod{
			{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "llm-2"}, Status: corev1.PodStatus{Phase: corev1.PodPending}},
			{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "evicted"}, Status: corev1.PodStatus{Phase: corev1.PodFailed}},
		}},
	}}
}

// try runs a resolver against a server, on a clock that costs nothing.
func try(t *testing.T, s *apiServer, story func(t *testing.T, r *Resolver)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r, err := New(&rest.Config{Host: "http://kubernetes", Transport: s}, slog.New(slog.DiscardHandler))
		require.NoError(t, err)
		var running sync.WaitGroup
		defer running.Wait()
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		running.Go(func() { assert.NoError(t, r.Run(ctx)) })
		story(t, r)
	})
}

func (r *Resolver) ask(podSelector string, metadata map[string]string) (*evaluate.Workload, error) {
	return r.Workload("shop", "llm", podSelector, metadata)
}

func requireError(t *testing.T, err error, kind evaluate.Kind, want string) {
	t.Helper()
	var e *evaluate.Error
	require.ErrorAs(t, err, &e)
	assert.Contains(t, e.Reason, want)
	assert.Equal(t, kind, e.Kind)
}

func TestWorkload(t *testing.T) {
	s := whole()
	try(t, s, func(t *testing.T, r *Resolver) {
		_, err := r.ask("", nil)
		requireError(t, err, evaluate.Unavailable, "ScaledObject shop/llm: not read yet from the API server")
		synctest.Wait()
		w, err := r.ask("", map[string]string{"profile": "triton-inference"})
		require.NoError(t, err)
		assert.Equal(t, "ScaledObject shop/llm", w.Name)
		assert.Equal(t, "shop", w.Namespace)
		assert.Equal(t, "app=llm", w.Selector.String())
		assert.Equal(t, []int{4, 3}, []int{w.Spec, w.Status})
		assert.Equal(t, trigger.AverageValue, w.TargetType)
		assert.Equal(t, time.Now(), w.Told)
		require.Len(t, w.Pods, 1, "what has failed does not count")
		assert.Equal(t, "llm-2", w.Pods[0].Name)
		assert.Empty(t, w.Pods[0].Node)

		w, err = r.ask("", map[string]string{"profile": "vllm-inference"})
		require.NoError(t, err)
		assert.Equal(t, trigger.Value, w.TargetType, "the other trigger's")
	})
}

// With the API server down, or hanging, nobody waits, and what was known stays
// known with its age.
func TestNobodyWaits(t *testing.T) {
	for name, away := range map[string]func(s *apiServer){
		"hanging": func(s *apiServer) { s.hang = true },
		"failing": func(s *apiServer) { s.answers[podsPath] = apierrors.NewInternalError(assert.AnError) },
	} {
		t.Run(name, func(t *testing.T) {
			s := whole()
			try(t, s, func(t *testing.T, r *Resolver) {
				r.Expect("shop", "llm", "")
				synctest.Wait()
				known := time.Now()
				s.set(away)
				for range 60 {
					time.Sleep(time.Second)
					started := time.Now()
					w, err := r.ask("", nil)
					require.NoError(t, err)
					assert.Zero(t, time.Since(started), "it waits")
					assert.LessOrEqual(t, w.Told.Sub(known), period)
				}
				_, err := r.Workload("shop", "other", "", nil)
				requireError(t, err, evaluate.Unavailable, "not read yet")
			})
		})
	}
}

func TestPodSelector(t *testing.T) {
	s := whole()
	s.answers["/api/v1/namespaces/shop/pods?labelSelector=role%3Dleader"] = corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}}
	try(t, s, func(t *testing.T, r *Resolver) {
		_, err := r.ask("role=leader", nil)
		requireError(t, err, evaluate.Unavailable, "not read yet")
		synctest.Wait()
		w, err := r.ask("role=leader", nil)
		require.NoError(t, err)
		assert.True(t, w.Selector.Matches(labels.Set{"role": "leader"}))
		assert.Equal(t, 3, w.Status, "the target's replicas all the same")

		s.set(func(s *apiServer) { delete(s.answers, lwsPath) })
		time.Sleep(2 * period)
		w, err = r.ask("role=leader", nil)
		require.NoError(t, err, "it needs no scale subresource")
		assert.Equal(t, -1, w.Status)

		_, err = r.ask("a in b", nil)
		requireError(t, err, evaluate.Invalid, `podSelector: unable to parse requirement`)
	})
}

func TestNoWorkload(t *testing.T) {
	forbidden := apierrors.NewForbidden(schema.GroupResource{Group: "leaderworkerset.x-k8s.io", Resource: "leaderworkersets/scale"}, "engine",
		assert.AnError)
	for name, c := range map[string]struct {
		spoil func(s *apiServer)
		kind  evaluate.Kind
		want  string
	}{
		"a ScaledJob": {func(s *apiServer) { delete(s.answers, soPath); s.answers[jobPath] = struct{}{} }, evaluate.Impossible,
			"shop/llm is a ScaledJob: its jobs come and go by the queue"},
		"gone": {func(s *apiServer) { delete(s.answers, soPath) }, evaluate.Impossible, "ScaledObject shop/llm: things"},
		"KEDA has not looked yet": {func(s *apiServer) { s.answers[soPath].(map[string]any)["status"] = nil }, evaluate.Unavailable,
			"ScaledObject shop/llm: KEDA has not found its target yet"},
		"a missing permission": {func(s *apiServer) { s.answers[lwsPath] = forbidden }, evaluate.Impossible,
			"the scaler lacks a permission (deploy/components/pod-resources/rbac.yaml has them all): leaderworkersets/scale.leaderworkerset.x-k8s.io \"engine\" is forbidden"},
		"no scale subresource": {func(s *apiServer) { delete(s.answers, lwsPath) }, evaluate.Impossible, "things"},
		"no selector": {func(s *apiServer) { s.answers[lwsPath] = autoscalingv1.Scale{} }, evaluate.Impossible,
			"its target LeaderWorkerSet engine has no selector in its scale subresource, which the HPA requires, too: set labelSelectorPath"},
		"a broken answer": {func(s *apiServer) { s.answers[soPath] = []string{} }, evaluate.Unavailable, "cannot unmarshal"},
	} {
		t.Run(name, func(t *testing.T) {
			s := whole()
			c.spoil(s)
			try(t, s, func(t *testing.T, r *Resolver) {
				r.Expect("shop", "llm", "")
				synctest.Wait()
				_, err := r.ask("", nil)
				requireError(t, err, c.kind, c.want)
			})
		})
	}
}

// Whoever makes up names costs the API server little, and nobody else anything.
func TestMadeUpNames(t *testing.T) {
	s := whole()
	try(t, s, func(t *testing.T, r *Resolver) {
		r.Expect("shop", "llm", "")
		synctest.Wait()
		for i := range 60 {
			for j := range 1000 {
				_, err := r.Workload("shop", fmt.Sprint("made-up-", i, "-", j), "", nil)
				require.Error(t, err)
			}
			w, err := r.ask("", nil)
			require.NoError(t, err)
			require.LessOrEqual(t, time.Since(w.Told), 2*period)
			time.Sleep(time.Second)
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		asked := 0
		for path, n := range s.asked {
			if strings.Contains(path, "made-up") {
				asked += n
			}
		}
		assert.LessOrEqual(t, asked, 2*(newNameBurst+60*newNames), "as ScaledObject and as ScaledJob")
	})
}

// One that is not there yet is found soon after it is.
func TestComesLater(t *testing.T) {
	s := whole()
	scaledObject := s.answers[soPath]
	delete(s.answers, soPath)
	try(t, s, func(t *testing.T, r *Resolver) {
		r.Expect("shop", "llm", "")
		synctest.Wait()
		_, err := r.ask("", nil)
		requireError(t, err, evaluate.Impossible, "ScaledObject shop/llm")
		s.set(func(s *apiServer) { s.answers[soPath] = scaledObject })
		time.Sleep(period)
		_, err = r.ask("", nil)
		require.Error(t, err, "of before")
		synctest.Wait()
		_, err = r.ask("", nil)
		require.NoError(t, err)
	})
}

// Names become parts of a path, and are kept: those that no object has are refused.
func TestBadNames(t *testing.T) {
	s := whole()
	try(t, s, func(t *testing.T, r *Resolver) {
		for _, bad := range [][2]string{
			{"shop", "../../../../../../api/v1/pods"}, {"../..", "llm"}, {"", "llm"}, {"shop", ""}, {"shop", strings.Repeat("a", 1<<20)}, {"Shop", "llm"},
		} {
			r.Expect(bad[0], bad[1], "")
			_, err := r.Workload(bad[0], bad[1], "", nil)
			requireError(t, err, evaluate.Invalid, "is no name of an object")
			assert.Less(t, len(err.Error()), 400)
		}
		synctest.Wait()
		s.mu.Lock()
		defer s.mu.Unlock()
		assert.Empty(t, s.asked)
	})
	s.answers[soPath].(map[string]any)["spec"].(map[string]any)["scaleTargetRef"].(map[string]any)["name"] = "../../pods"
	try(t, s, func(t *testing.T, r *Resolver) {
		r.Expect("shop", "llm", "")
		synctest.Wait()
		_, err := r.ask("", nil)
		requireError(t, err, evaluate.Unavailable, `may not contain '/'`)
	})
}

// A scale subresource that cannot be read now is not one that is not there.
func TestPodSelectorWithoutScaleForNow(t *testing.T) {
	s := whole()
	s.answers["/api/v1/namespaces/shop/pods?labelSelector=role%3Dleader"] = corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}}
	try(t, s, func(t *testing.T, r *Resolver) {
		r.Expect("shop", "llm", "role=leader")
		synctest.Wait()
		s.set(func(s *apiServer) { s.answers[lwsPath] = apierrors.NewInternalError(assert.AnError) })
		known := time.Now()
		time.Sleep(2 * period)
		w, err := r.ask("role=leader", nil)
		require.NoError(t, err)
		assert.Equal(t, 3, w.Status, "the last that was told")
		assert.LessOrEqual(t, w.Told.Sub(known), period)
	})
}
