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

	"gpuscaler/scaler/attribution"
	"gpuscaler/scaler/fleet"
	"gpuscaler/shared/snapshot"
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
	ended   [][]attribution.Pod
	changes [][]string // names of pods
}

func (s *sink) PodsChanged(changed []fleet.Pod) {
	changes := names(changed)
	slices.Sort(changes)
	s.changes = append(s.changes, changes)
}

func (s *sink) SetPods(all []fleet.Pod, _ time.Time, ended ...attribution.Pod) {
	s.ended = append(s.ended, ended)
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
	assert.InDelta(t, time.Now().Unix(), told[0].Seen, 10)
	seen := told[0].Seen

	// a fails within the time in which the API does not tell that it was ready.
	api.changes <- event("MODIFIED", podOf("a", corev1.ConditionFalse))
	api.changes <- event("DELETED", podOf("b", corev1.ConditionFalse))
	api.changes <- event("ADDED", podOf("c", corev1.ConditionFalse))
	told = <-out.told
	assert.Equal(t, []string{"a", "c"}, names(told), "changes are told together")
	assert.Equal(t, []bool{false, true}, []bool{told[0].Ready, told[0].WasReady})
	assert.Equal(t, seen, told[0].Seen, "when it was listed first")
	assert.GreaterOrEqual(t, told[1].Seen, seen, "it came later")
	assert.Empty(t, out.told)

	// Another pod of the name, as of a StatefulSet, has not been ready.
	api.changes <- event("DELETED", podOf("a", corev1.ConditionFalse))
	<-out.told
	again := podOf("a", corev1.ConditionFalse)
	again.UID = "another"
	api.changes <- event("ADDED", again)
	told = <-out.told
	assert.False(t, told[0].WasReady)
	assert.GreaterOrEqual(t, told[0].Seen, seen)

	// What is of no interest is told, and is no change.
	again.ResourceVersion = "3"
	api.changes <- event("MODIFIED", again)
	<-out.told

	cancel()
	require.NoError(t, <-running)
	assert.Equal(t, [][]string{{"a", "b"}, {"a", "b", "c"}, {"a"}, {"a"}}, out.changes)
	for _, ended := range out.ended {
		assert.Equal(t, []attribution.Pod{{Namespace: "shop", Name: "ended"}}, ended)
	}
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

// node is the real sink, which says when it has taken the pods.
type node struct {
	*fleet.Local
	taken chan struct{}
}

func (n *node) SetPods(all []fleet.Pod, now time.Time, ended ...attribution.Pod) {
	n.Local.SetPods(all, now, ended...)
	n.taken <- struct{}{}
}

// A job that has ended shares the GPU with nobody, though the kubelet lists it for
// as long as the API server has it; its successor of the same name does.
func TestEndedPodsThroughTheNode(t *testing.T) {
	job, llm := podOf("job-0", corev1.ConditionTrue), podOf("llm", corev1.ConditionTrue)
	api := &apiServer{listed: []corev1.Pod{job, llm}, changes: make(chan metav1.WatchEvent)}
	server := httptest.NewServer(api)
	defer server.Close()
	n := &node{fleet.NewLocal("node-1", 10*time.Second, slog.New(slog.DiscardHandler), time.Now()), make(chan struct{})}
	require.NoError(t, n.Connect().Apply(&snapshot.Sample{Writer: "nvmlsidecar", Devices: []snapshot.Device{{ID: "GPU-0", Vendor: "nvidia"}}}, time.Now()))
	a := &snapshot.Allocation{}
	for _, name := range []string{"job-0", "llm"} {
		a.Containers = append(a.Containers, snapshot.Container{
			Namespace: "shop", Pod: name, Name: "engine", Plugin: []snapshot.PluginDevices{{Resource: "nvidia.com/gpu", IDs: []string{"GPU-0::0"}}},
		})
	}
	require.NoError(t, n.Connect().Apply(&snapshot.Sample{Writer: "podresources", Allocation: a}, time.Now()))
	w, err := New(&rest.Config{Host: server.URL}, "node-1", n, &sink{}, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	running := make(chan error)
	go func() { running <- w.Run(ctx) }()
	// holders is how many hold the GPU with llm, once there was a change.
	holders := func() int {
		t.Helper()
		<-n.taken
		assert.Empty(t, n.Node().Strangers)
		p := n.Node().Pod("llm")
		require.NotNil(t, p)
		require.Len(t, p.Shares, 1)
		return p.Shares[0].Holders
	}

	assert.Equal(t, 2, holders())
	for _, phase := range []corev1.PodPhase{corev1.PodSucceeded, corev1.PodFailed} {
		job.Status.Phase = phase
		api.changes <- event("MODIFIED", job)
		assert.Equal(t, 1, holders(), phase)
	}
	again := podOf("job-0", corev1.ConditionTrue)
	again.UID = "another"
	api.changes <- event("DELETED", job)
	api.changes <- event("ADDED", again)
	assert.Equal(t, 2, holders(), "alive")

	cancel()
	require.NoError(t, <-running)
}

// The API has but the last change of a pod's readiness.
func TestRemember(t *testing.T) {
	at := func(s int) time.Time { return time.Date(2026, 3, 1, 12, 0, s, 0, time.UTC) }
	for name, c := range map[string]struct {
		before, now, want fleet.Pod
	}{
		"first listed, loading": {
			fleet.Pod{}, fleet.Pod{},
			fleet.Pod{Seen: at(50).Unix()},
		},
		"first listed, ready": {
			fleet.Pod{}, fleet.Pod{Ready: true, WasReady: true, FirstReady: at(5)},
			fleet.Pod{Ready: true, WasReady: true, FirstReady: at(5), Seen: at(50).Unix()},
		},
		"becomes ready": {
			fleet.Pod{Seen: at(1).Unix()}, fleet.Pod{Ready: true, WasReady: true, FirstReady: at(40)},
			fleet.Pod{Ready: true, WasReady: true, FirstReady: at(40), Seen: at(1).Unix()},
		},
		"not ready any more, and the API does not say that it was": {
			fleet.Pod{Ready: true, WasReady: true, FirstReady: at(5), Seen: at(1).Unix()}, fleet.Pod{},
			fleet.Pod{WasReady: true, FirstReady: at(5), Seen: at(1).Unix()},
		},
		"ready again": {
			fleet.Pod{WasReady: true, FirstReady: at(5), Seen: at(1).Unix()}, fleet.Pod{Ready: true, WasReady: true, FirstReady: at(45)},
			fleet.Pod{Ready: true, WasReady: true, FirstReady: at(5), Seen: at(1).Unix()},
		},
		"known to be ready for longer than was known": {
			fleet.Pod{WasReady: true, FirstReady: at(30), Seen: at(1).Unix()}, fleet.Pod{Ready: true, WasReady: true, FirstReady: at(20)},
			fleet.Pod{Ready: true, WasReady: true, FirstReady: at(20), Seen: at(1).Unix()},
		},
	} {
		remember(&c.now, c.before, at(50))
		assert.Equal(t, c.want, c.now, name)
	}
}
