package services

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/rest"

	"gpuscaler/scaler/evaluate"
	"gpuscaler/scaler/trigger"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// cluster is an API server with one Service of namespace shop and its pods.
type cluster struct {
	mu      sync.Mutex
	service *corev1.Service
	pods    []corev1.Pod
	status  int // other than 200 is what it answers
	asked   atomic.Int64
}

func (c *cluster) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.asked.Add(1)
	c.mu.Lock()
	defer c.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	var answer any
	switch {
	case c.status != 0:
		w.WriteHeader(c.status)
		answer = &metav1.Status{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}, Status: metav1.StatusFailure, Reason: reasons[c.status], Code: int32(c.status), Message: "cannot get services"}
	case r.URL.Path == "/api/v1/namespaces/shop/services/gateway":
		answer = c.service
	case r.URL.Path == "/api/v1/namespaces/shop/pods" && r.URL.Query().Get("labelSelector") == "app=gateway":
		answer = &corev1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}, Items: c.pods}
	default:
		http.Error(w, "unexpected "+r.URL.String(), http.StatusTeapot)
		return
	}
	_ = json.NewEncoder(w).Encode(answer)
}

var reasons = map[int]metav1.StatusReason{http.StatusNotFound: metav1.StatusReasonNotFound, http.StatusForbidden: metav1.StatusReasonForbidden, http.StatusInternalServerError: metav1.StatusReasonInternalError}

func (c *cluster) set(change func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	change()
}

// gateway is a pod that holds requests.
type gateway struct {
	page     atomic.Pointer[string]
	requests atomic.Int64
	port     int
}

func newGateway(t *testing.T, page string) *gateway {
	t.Helper()
	g := &gateway{}
	g.page.Store(&page)
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		g.requests.Add(1)
		if r.URL.Path != "/metrics" {
			http.NotFound(w, r)
			return
		}
		_, _ = fmt.Fprint(w, *g.page.Load())
	}))
	t.Cleanup(s.Close)
	_, port, err := net.SplitHostPort(s.Listener.Addr().String())
	require.NoError(t, err)
	g.port, err = strconv.Atoi(port)
	require.NoError(t, err)
	return g
}

func inFlight(n int) string {
	return fmt.Sprintf("# TYPE requests_in_flight gauge\nrequests_in_flight{handler=\"metrics\"} 1\nrequests_in_flight{handler=\"proxy\"} %d\n", n)
}

// podOf is one that is ready and where a gateway listens.
func podOf(name string, g *gateway) corev1.Pod {
	began := metav1.NewTime(time.Now().Add(-time.Hour))
	return corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID("uid-of-" + name), Labels: map[string]string{"app": "gateway"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "proxy", Ports: []corev1.ContainerPort{{Name: "metrics", ContainerPort: int32(g.port)}}}}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIP: "127.0.0.1", StartTime: &began,
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: began}}},
	}
}

func service() *corev1.Service {
	return &corev1.Service{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Service"}, ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "gateway"},
		Spec: corev1.ServiceSpec{Selector: map[string]string{"app": "gateway"}, Ports: []corev1.ServicePort{
			{Name: "http", Port: 80, TargetPort: intstr.FromInt32(8080)}, {Name: "metrics", Port: 9180, TargetPort: intstr.FromString("metrics")},
		}},
	}
}

var asked = trigger.Service{Name: "gateway", Path: "/metrics", Metric: "requests_in_flight", Labels: "handler=proxy"}

// read runs a reader on a cluster with these pods.
func read(t *testing.T, pods ...corev1.Pod) (*Reader, *cluster) {
	t.Helper()
	c := &cluster{service: service(), pods: pods}
	server := httptest.NewServer(c)
	t.Cleanup(server.Close)
	r, err := New(&rest.Config{Host: server.URL}, 3*time.Second, time.Minute, slog.New(slog.NewTextHandler(t.Output(), nil)))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- r.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
	})
	return r, c
}

// becomes waits for what is known of the Service.
func becomes(t *testing.T, r *Reader, is func(q *evaluate.Queue) bool) *evaluate.Queue {
	t.Helper()
	var q *evaluate.Queue
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); {
		updated := r.Updated()
		if q = r.Queue("shop", asked); q != nil && is(q) {
			return q
		}
		select {
		case <-updated:
		case <-time.After(50 * time.Millisecond):
		}
	}
	require.Fail(t, "never came", "%+v", q)
	return nil
}

func known(sum float64) func(q *evaluate.Queue) bool {
	return func(q *evaluate.Queue) bool {
		return q.Failure == nil && q.Unused == "" && len(q.Unread) == 0 && q.Last == sum
	}
}

// TestReads: the sum over the ready pods of the Service, all the time, of what is asked
// for and of nobody else.
func TestReads(t *testing.T) {
	a, b, other := newGateway(t, inFlight(2)), newGateway(t, inFlight(3)), newGateway(t, inFlight(40))
	starting := podOf("starting", other)
	starting.Status.Conditions[0].Status = corev1.ConditionFalse
	ending := podOf("ending", other)
	ending.DeletionTimestamp = new(metav1.Now())
	r, c := read(t, podOf("a", a), podOf("b", b), starting, ending)
	time.Sleep(interval)
	assert.Zero(t, c.asked.Load()+a.requests.Load(), "nobody asks")
	q := becomes(t, r, known(5))
	assert.InDelta(t, 5, q.Means[0], 0)
	assert.Equal(t, map[string]string{"app": "gateway"}, q.Selector)
	assert.Len(t, q.UIDs, 2)
	a.page.Store(new(inFlight(7)))
	becomes(t, r, known(10))
	c.set(func() { c.pods = c.pods[:1] })
	becomes(t, r, known(7))
	assert.Zero(t, other.requests.Load(), "neither ready nor asked for")
}

// TestNoSeries: labels that no series has ever had are told with those that there are;
// once one had them, a pod without is one where nobody waits.
func TestNoSeries(t *testing.T) {
	const unused = "# TYPE requests_in_flight gauge\nrequests_in_flight{handler=\"metrics\"} 1\n"
	a, b := newGateway(t, unused), newGateway(t, unused)
	r, _ := read(t, podOf("a", a), podOf("b", b))
	q := becomes(t, r, func(q *evaluate.Queue) bool { return q.Unused != "" })
	require.Contains(t, q.Unused, `no series of requests_in_flight has the labels "handler=proxy", and there was none since this scaler reads it; there are "handler=metrics"`)
	a.page.Store(new(inFlight(1)))
	becomes(t, r, known(1))
	a.page.Store(new(unused))
	becomes(t, r, known(0))
}

// TestOneFails: what a pod told is good for a while, and then the whole is not known.
func TestOneFails(t *testing.T) {
	a, b := newGateway(t, inFlight(2)), newGateway(t, inFlight(3))
	r, c := read(t, podOf("a", a), podOf("b", b))
	becomes(t, r, known(5))
	b.page.Store(new("<html>"))
	q := becomes(t, r, func(q *evaluate.Queue) bool { return len(q.Unread) > 0 })
	assert.Contains(t, q.Unread[0], "pod b: 127.0.0.1:")
	assert.Contains(t, q.Unread[0], "the answer is an HTML page")
	assert.InDelta(t, 2, q.Last, 0, "of the other")
	c.set(func() { c.status = http.StatusInternalServerError })
	a.page.Store(new(inFlight(4)))
	becomes(t, r, func(q *evaluate.Queue) bool { return q.Last == 4 }) // without the API server
}

// TestRefuses: what is no Service of pods is not read, and why is said.
func TestRefuses(t *testing.T) {
	g := newGateway(t, inFlight(1))
	for name, c := range map[string]struct {
		change func(c *cluster)
		want   string
	}{
		"none":          {func(c *cluster) { c.status = http.StatusNotFound }, "there is no Service gateway in namespace shop"},
		"forbidden":     {func(c *cluster) { c.status = http.StatusForbidden }, "the scaler lacks a permission (deploy/components/pod-resources/rbac.yaml has them all): cannot get services"},
		"ExternalName":  {func(c *cluster) { c.service.Spec.Type = corev1.ServiceTypeExternalName }, "gateway is an ExternalName"},
		"no selector":   {func(c *cluster) { c.service.Spec.Selector = nil }, "gateway has no selector: addresses that somebody wrote are not read"},
		"several ports": {func(c *cluster) { c.service.Spec.Ports[1].Name = "other" }, "gateway has several ports and none of them is named metrics; say which, as gateway:PORT; it has 80 (http), 9180 (other)"},
		"no such port":  {func(c *cluster) { c.pods[0].Spec.Containers[0].Ports = nil }, `pod a of gateway has no container port named "metrics"`},
		"host network":  {func(c *cluster) { c.pods[0].Spec.HostNetwork = true }, "pod a of gateway is on its node's network"},
		"no pod ready":  {func(c *cluster) { c.pods[0].Status.Conditions = nil }, "gateway has no ready pod, of 1 that it selects"},
		"too many": {func(c *cluster) {
			for range mostPods {
				c.pods = append(c.pods, c.pods[0])
			}
		}, "gateway has 33 ready pods; at most 32 are read"},
	} {
		t.Run(name, func(t *testing.T) {
			r, at := read(t, podOf("a", g))
			at.set(func() { c.change(at) })
			q := becomes(t, r, func(q *evaluate.Queue) bool { return q.Failure != nil })
			require.ErrorContains(t, q.Failure, c.want)
		})
	}
	assert.Zero(t, g.requests.Load())
}

// TestBounded: a namespace has so many Services read and no more.
func TestBounded(t *testing.T) {
	g := newGateway(t, inFlight(1))
	r, _ := read(t, podOf("a", g))
	for i := range mostOfNamespace {
		one := asked
		one.Path = "/" + strings.Repeat("m", i+1)
		assert.Nil(t, r.Queue("shop", one))
	}
	q := r.Queue("shop", asked)
	require.NotNil(t, q)
	require.ErrorContains(t, q.Failure, "16 of them of namespace shop; so many more are not read")
}

// TestLooksSeldom: a Service that cannot be read does not have the API server asked each
// time, and is read soon after it can be.
func TestLooksSeldom(t *testing.T) {
	g := newGateway(t, inFlight(1))
	r, c := read(t)
	becomes(t, r, func(q *evaluate.Queue) bool { return q.Failure != nil })
	before := c.asked.Load()
	time.Sleep(16 * interval)
	assert.LessOrEqual(t, c.asked.Load()-before, int64(18), "two for each look; at each reading it would be 32")
	c.set(func() { c.pods = []corev1.Pod{podOf("a", g)} })
	began := time.Now()
	becomes(t, r, known(1))
	assert.Less(t, time.Since(began), 2*period)
}
