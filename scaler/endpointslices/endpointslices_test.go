package endpointslices

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"k8s.io/client-go/rest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const list = `{"kind":"EndpointSliceList","apiVersion":"discovery.k8s.io/v1","metadata":{"resourceVersion":"1"},"items":[
 {"metadata":{"name":"v6","namespace":"gpuscaler"},"addressType":"IPv6","endpoints":[
  {"addresses":["fd00::1"],"nodeName":"node-1","targetRef":{"kind":"Pod","uid":"p1"}},
  {"addresses":["fd00::3"],"nodeName":"node-3","targetRef":{"kind":"Pod","uid":"p3"}}]},
 {"metadata":{"name":"v4","namespace":"gpuscaler"},"addressType":"IPv4","endpoints":[
  {"addresses":["10.0.0.1"],"nodeName":"node-1","targetRef":{"kind":"Pod","uid":"p1"},"conditions":{"ready":false}},
  {"addresses":["10.0.0.2"],"targetRef":{"kind":"Pod","uid":"p2"}},{"addresses":[]}]},
 {"metadata":{"name":"names","namespace":"gpuscaler"},"addressType":"FQDN","endpoints":[{"addresses":["somewhere.example.com"]}]}]}`

const added = `{"type":"ADDED","object":{"kind":"EndpointSlice","apiVersion":"discovery.k8s.io/v1","metadata":{"name":"more","namespace":"gpuscaler","resourceVersion":"2"},
 "addressType":"IPv4","endpoints":[{"addresses":["10.0.0.9"],"nodeName":"node-9","targetRef":{"kind":"Pod","uid":"p9"}}]}}`

// It tells of each pod once, ready or not, and of changes.
func TestFinder(t *testing.T) {
	more := make(chan string)
	var asked []string
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Query().Get("watch") == "" {
			asked = append(asked, r.URL.Path+" "+r.URL.Query().Get("labelSelector"))
			_, _ = w.Write([]byte(list))
			return
		}
		if r.URL.Query().Get("sendInitialEvents") != "" {
			http.Error(w, "not known", http.StatusBadRequest)
			return
		}
		_ = http.NewResponseController(w).Flush()
		for {
			select {
			case <-r.Context().Done():
				return
			case event := <-more:
				_, _ = w.Write([]byte(event + "\n"))
				_ = http.NewResponseController(w).Flush()
			}
		}
	}))
	defer server.Close()
	f, err := New(&rest.Config{Host: server.URL}, "gpuscaler", "gpuscaler-peers", "6001", slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	found, done := make(chan map[string]string), make(chan error, 1)
	go func() { done <- f.Run(ctx, func(all map[string]string) { found <- all }) }()
	want := map[string]string{"10.0.0.1:6001": "node-1", "10.0.0.2:6001": "10.0.0.2:6001", "[fd00::3]:6001": "node-3"}
	assert.Equal(t, want, <-found)
	more <- added
	want["10.0.0.9:6001"] = "node-9"
	assert.Equal(t, want, <-found)
	cancel()
	require.NoError(t, <-done)
	assert.Equal(t, []string{"/apis/discovery.k8s.io/v1/namespaces/gpuscaler/endpointslices kubernetes.io/service-name=gpuscaler-peers"}, asked)
}
