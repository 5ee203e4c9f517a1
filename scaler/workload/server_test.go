package workload

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// listPath is where ScaledObjects are listed and watched.
const listPath = "/apis/keda.sh/v1alpha1/scaledobjects"

// apiServer answers from a table, in memory, and serves a list and a watch of the
// ScaledObjects in it.
type apiServer struct {
	mu      sync.Mutex
	answers map[string]any // by path and query; a StatusError is refused
	asked   map[string]int // a watch as listPath and ?watch
	hang    bool
	watches []*io.PipeWriter
}

func (s *apiServer) RoundTrip(r *http.Request) (*http.Response, error) {
	watch := r.URL.Path == listPath && r.URL.Query().Get("watch") != ""
	key := r.URL.RequestURI()
	switch {
	case watch:
		key = listPath + "?watch"
	case r.URL.Path == listPath:
		key = listPath
	}
	s.mu.Lock()
	hang, answer := s.hang, s.answers[key]
	if r.URL.Query().Get("sendInitialEvents") != "" { // as an older one
		answer = apierrors.NewBadRequest("sendInitialEvents is forbidden")
	} else {
		s.asked[key]++
	}
	if key == listPath && answer == nil {
		answer = s.list()
	}
	w := httptest.NewRecorder()
	w.Header().Set("Content-Type", "application/json")
	if watch && answer == nil && !hang {
		body, changes := io.Pipe()
		s.watches = append(s.watches, changes)
		s.mu.Unlock()
		response := w.Result()
		response.Request, response.Body = r, body
		return response, nil
	}
	s.mu.Unlock()
	if hang {
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	if answer == nil {
		answer = apierrors.NewNotFound(schema.GroupResource{Resource: "things"}, r.URL.Path)
	}
	if err, refused := answer.(*apierrors.StatusError); refused {
		w.WriteHeader(int(err.ErrStatus.Code))
		err.ErrStatus.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}
		answer = err.ErrStatus
	}
	_ = json.NewEncoder(w).Encode(answer)
	response := w.Result()
	response.Request = r
	return response, nil
}

func (s *apiServer) list() any {
	items := []any{}
	for path, object := range s.answers {
		if o, ok := object.(map[string]any); ok && strings.Contains(path, "/scaledobjects/") {
			items = append(items, o)
		}
	}
	return map[string]any{"kind": "ScaledObjectList", "apiVersion": "keda.sh/v1alpha1", "metadata": map[string]any{"resourceVersion": "1"}, "items": items}
}

func (s *apiServer) set(change func(s *apiServer)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s)
}

// edit changes the ScaledObject and sends it to those that watch, as the type of a watch event.
func (s *apiServer) edit(what string, change func(object, spec map[string]any)) {
	s.mu.Lock()
	object := s.answers[soPath].(map[string]any)
	change(object, object["spec"].(map[string]any))
	if what == "DELETED" {
		delete(s.answers, soPath)
	}
	event, _ := json.Marshal(map[string]any{"type": what, "object": object})
	watches := s.watches
	s.mu.Unlock()
	for _, w := range watches {
		_, _ = w.Write(append(event, '\n')) // fails where the watch has ended
	}
}

// cut ends all watches.
func (s *apiServer) cut() {
	s.mu.Lock()
	watches := s.watches
	s.watches = nil
	s.mu.Unlock()
	for _, w := range watches {
		_ = w.Close()
	}
}

// count is how often a path was asked for.
func (s *apiServer) count(path string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked[path]
}

// forbidden is an older role.
func forbidden(s *apiServer) *apiServer {
	s.answers[listPath] = apierrors.NewForbidden(schema.GroupResource{Group: "keda.sh", Resource: "scaledobjects"}, "", errors.New("no list"))
	return s
}
