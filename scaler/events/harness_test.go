package events

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// apiServer is as much of an API server as the recorder needs, in memory: it
// answers as if over HTTP, on a clock that costs nothing.
type apiServer struct {
	mu      sync.Mutex
	exist   map[string]types.UID // ScaledObjects, as namespace/name
	events  []*corev1.Event
	lookups []string
	agents  map[string]int
	posts   int
	// refuse says which requests are refused, and how; hang has all of them
	// wait for ever.
	refuse func(r *http.Request) *apierrors.StatusError
	hang   bool
}

func newAPIServer() *apiServer {
	return &apiServer{exist: map[string]types.UID{}, agents: map[string]int{}}
}

func (s *apiServer) RoundTrip(r *http.Request) (*http.Response, error) {
	s.mu.Lock()
	hang := s.hang
	s.mu.Unlock()
	if hang {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	response := w.Result()
	response.Request = r
	return response, nil
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.agents[r.UserAgent()]++
	w.Header().Set("Content-Type", "application/json")
	answer, err := s.answer(r)
	if err != nil {
		w.WriteHeader(int(err.ErrStatus.Code))
		err.ErrStatus.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}
		answer = err.ErrStatus
	}
	_ = json.NewEncoder(w).Encode(answer)
}

func (s *apiServer) answer(r *http.Request) (any, *apierrors.StatusError) {
	path := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	switch {
	case r.Method == http.MethodGet && len(path) == 7 && strings.HasPrefix(r.URL.Path, "/apis/keda.sh/v1alpha1/namespaces/") && path[5] == "scaledobjects":
		key := path[4] + "/" + path[6]
		s.lookups = append(s.lookups, key)
		if s.refuse != nil && s.refuse(r) != nil {
			return nil, s.refuse(r)
		}
		uid, found := s.exist[key]
		if !found {
			return nil, apierrors.NewNotFound(schema.GroupResource{Group: "keda.sh", Resource: "scaledobjects"}, path[6])
		}
		if !strings.Contains(r.Header.Get("Accept"), "as=PartialObjectMetadata") {
			return nil, apierrors.NewBadRequest("the whole object is nobody's business")
		}
		return &metav1.PartialObjectMetadata{
			TypeMeta:   metav1.TypeMeta{APIVersion: "meta.k8s.io/v1", Kind: "PartialObjectMetadata"},
			ObjectMeta: metav1.ObjectMeta{Namespace: path[4], Name: path[6], UID: uid, ResourceVersion: "7"},
		}, nil
	case strings.HasPrefix(r.URL.Path, "/api/v1/namespaces/") && len(path) >= 5 && path[4] == "events":
		s.posts++
		if s.refuse != nil && s.refuse(r) != nil {
			return nil, s.refuse(r)
		}
		return s.event(r, path)
	}
	return nil, apierrors.NewBadRequest("not one of the recorder's requests: " + r.Method + " " + r.URL.Path)
}

// event makes an event or patches one: the patch of a count is the same merged
// strategically or otherwise.
func (s *apiServer) event(r *http.Request, path []string) (any, *apierrors.StatusError) {
	e := &corev1.Event{}
	if r.Method == http.MethodPatch {
		for _, known := range s.events {
			if known.Name == path[5] {
				e = known
			}
		}
		if e.Name == "" {
			return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "events"}, path[5])
		}
	}
	if err := json.NewDecoder(r.Body).Decode(e); err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	if r.Method == http.MethodPost {
		for _, known := range s.events {
			// The broadcaster names events after the time, which stands still here.
			if strings.HasPrefix(e.Name, "gpuscaler.") && known.Name == e.Name && known.Namespace == e.Namespace {
				return nil, apierrors.NewAlreadyExists(schema.GroupResource{Resource: "events"}, e.Name)
			}
		}
		e.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Event"}
		s.events = append(s.events, e)
	}
	return e, nil
}

// shown are the events in short, in the order of their making.
func (s *apiServer) shown() (all []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.events {
		all = append(all, fmt.Sprintf("%s %s: %s x%d", e.InvolvedObject.Name, e.InvolvedObject.UID, e.Message, e.Count))
	}
	return all
}

func (s *apiServer) set(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
}

func (s *apiServer) lookedUp() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.lookups)
}

// bench is a running recorder and its API server, on a clock that costs nothing.
type bench struct {
	*Recorder
	*apiServer
	t    *testing.T
	log  *lines
	stop func() // ends the recorders
}

func inBubble(t *testing.T, test func(b *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &bench{apiServer: newAPIServer(), t: t, log: &lines{}}
		b.exist["shop/llm"] = "uid-1"
		b.Recorder = b.another("node-1")
		test(b)
		b.stop()
	})
}

// another is a recorder of another process, or of this one after a restart.
func (b *bench) another(host string) *Recorder {
	r, err := New(&rest.Config{Host: "http://api", Transport: b.apiServer, UserAgent: "gpuscaler/test"}, host,
		slog.New(slog.NewTextHandler(b.log, nil)))
	require.NoError(b.t, err)
	ctx, cancel := context.WithCancel(b.t.Context())
	done := make(chan error)
	go func() { done <- r.Run(ctx) }()
	before := b.stop
	b.stop = func() {
		if before != nil {
			before()
		}
		cancel()
		assert.NoError(b.t, <-done)
	}
	return r
}

// after lets time pass and everything settle.
func (b *bench) after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// lines is a log.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

// count is how many lines have the words.
func (l *lines) count(words string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), words)
}
