package pods

import (
	"cmp"
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"gpuscaler/scaler/fleet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// apiServer lists some pods and then tells of changes.
type apiServer struct {
	listed  []corev1.Pod
	changes chan metav1.WatchEvent

	mu    sync.Mutex
	asked []string // selectors of lists and watches
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	s.mu.Lock()
	s.asked = append(s.asked, r.URL.Path+"?"+query.Get("fieldSelector"))
	s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	switch {
	case query.Get("sendInitialEvents") != "": // as an older one
		err := apierrors.NewBadRequest("sendInitialEvents is forbidden")
		err.ErrStatus.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}
		w.WriteHeader(http.StatusBadRequest)
		_ = json.NewEncoder(w).Encode(err.ErrStatus)
	case query.Get("watch") == "":
		_ = json.NewEncoder(w).Encode(corev1.PodList{
			TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}, ListMeta: metav1.ListMeta{ResourceVersion: "1"}, Items: s.listed,
		})
	default:
		flush := http.NewResponseController(w).Flush
		_ = flush()
		for {
			select {
			case e := <-s.changes:
				_ = json.NewEncoder(w).Encode(e)
				_ = flush()
			case <-r.Context().Done():
				return
			}
		}
	}
}

// sink hands on what it is told.
type sink struct {
	told    chan []fleet.Pod
	changes [][]string // names of pods
}

func (s *sink) PodsChanged(changed []fleet.Pod) {
	changes := names(changed)
	slices.Sort(changes)
	s.changes = append(s.changes, changes)
}

func (s *sink) SetPods(all []fleet.Pod, _ time.Time) {
	slices.SortFunc(all, func(a, b fleet.Pod) int { return cmp.Compare(a.Name, b.Name) })
	s.told <- all
}

func podOf(name string, ready corev1.ConditionStatus) corev1.Pod {
	started := metav1.NewTime(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
	return corev1.Pod{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: name, UID: types.UID(name), ResourceVersion: "2", Labels: map[string]string{"app": "llm"},
			CreationTimestamp: started, Annotations: map[string]string{"secret": "of the workload"},
		},
		Spec: corev1.PodSpec{NodeName: "node-1", Containers: []corev1.Container{{Name: "engine", Env: []corev1.EnvVar{{Name: "TOKEN", Value: "secret"}}}}},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, StartTime: &started,
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: ready, LastTransitionTime: started}},
		},
	}
}

func event(kind string, p corev1.Pod) metav1.WatchEvent {
	e := metav1.WatchEvent{Type: kind}
	e.Object.Raw, _ = json.Marshal(p)
	return e
}

func names(all []fleet.Pod) (names []string) {
	for _, p := range all {
		names = append(names, p.Name)
	}
	return names
}

// It is told of all pods at the beginning, of changes soon after, asks for its
// own node's alone, and remembers who has been ready.
func TestWatch(t *testing.T) {
	ended := podOf("ended", corev1.ConditionFalse)
	ended.Status.Phase = corev1.PodSucceeded
	api := &apiServer{listed: []corev1.Pod{podOf("a", corev1.ConditionTrue), podOf("b", corev1.ConditionFalse), ended}, changes: make(chan metav1.WatchEvent)}
	server := httptest.NewServer(api)
	defer server.Close()
	out := &sink{told: make(chan []fleet.Pod)}
	w, err := New(&rest.Config{Host: server.URL}, "node-1", out, out, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	running := make(chan error)
	go func() { running <- w.Run(ctx) }()

	told := <-out.told
	assert.Equal(t, []string{"a", "b"}, names(told), "what has ended does not count")
	assert.True(t, told[0].Ready && told[0].WasReady)
	assert.False(t, told[1].Ready || told[1].WasReady)

	// a fails within the time in which the API does not tell that it was ready.
	api.changes <- event("MODIFIED", podOf("a", corev1.ConditionFalse))
	api.changes <- event("DELETED", podOf("b", corev1.ConditionFalse))
	api.changes <- event("ADDED", podOf("c", corev1.ConditionFalse))
	told = <-out.told
	assert.Equal(t, []string{"a", "c"}, names(told), "changes are told together")
	assert.Equal(t, []bool{false, true}, []bool{told[0].Ready, told[0].WasReady})
	assert.Empty(t, out.told)

	// Another pod of the name, as of a StatefulSet, has not been ready.
	api.changes <- event("DELETED", podOf("a", corev1.ConditionFalse))
	<-out.told
	again := podOf("a", corev1.ConditionFalse)
	again.UID = "another"
	api.changes <- event("ADDED", again)
	assert.False(t, (<-out.told)[0].WasReady)

	// What is of no interest is told, and is no change.
	again.ResourceVersion = "3"
	api.changes <- event("MODIFIED", again)
	<-out.told

	cancel()
	require.NoError(t, <-running)
	assert.Equal(t, [][]string{{"a", "b"}, {"a", "b", "c"}, {"a"}, {"a"}}, out.changes)
	api.mu.Lock()
	defer api.mu.Unlock()
	for _, asked := range api.asked {
		assert.Equal(t, "/api/v1/pods?spec.nodeName=node-1", asked)
	}
}

// Nothing of a pod is kept that is not looked at: what is in it is the workload's.
func TestStrip(t *testing.T) {
	p := podOf("a", corev1.ConditionTrue)
	text, err := json.Marshal(strip(&p))
	require.NoError(t, err)
	assert.NotContains(t, string(text), "secret")
	assert.Contains(t, string(text), "llm")
}
