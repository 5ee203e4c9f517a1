package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// inference is a pod's engine: what waits in it, and who has connected.
type inference struct {
	*httptest.Server
	waiting, connections atomic.Int64
}

func newInference(t *testing.T, waiting int64) *inference {
	t.Helper()
	e, began := &inference{}, time.Now()
	e.waiting.Store(waiting)
	e.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/metrics" {
			http.NotFound(w, r)
			return
		}
		_, _ = fmt.Fprintf(w, "# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting %d\nvllm:num_requests_running 1\n", e.waiting.Load())
		for name, perSecond := range map[string]float64{"prompt_tokens": 1000, "generation_tokens": 100, "request_success": 1} {
			_, _ = fmt.Fprintf(w, "# TYPE vllm:%s_total counter\nvllm:%[1]s_total %v\n", name, perSecond*time.Since(began).Seconds())
		}
		all := int(1000 * time.Since(began).Seconds())
		for _, name := range []string{"time_to_first_token", "inter_token_latency", "e2e_request_latency", "request_queue_time"} { // 90 % below 0.5 s
			_, _ = fmt.Fprintf(w, "# TYPE vllm:%s_seconds histogram\nvllm:%[1]s_seconds_bucket{le=\"0.5\"} %d\nvllm:%[1]s_seconds_bucket{le=\"1.0\"} %[3]d\n"+
				"vllm:%[1]s_seconds_bucket{le=\"+Inf\"} %[3]d\nvllm:%[1]s_seconds_count %[3]d\nvllm:%[1]s_seconds_sum %[3]d\n", name, all*9/10, all)
		}
	}))
	e.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			e.connections.Add(1)
		}
	}
	e.Start()
	t.Cleanup(e.Close)
	return e
}

// engineCluster is an API server with default/llm, whose pods have engines.
type engineCluster struct {
	pods []string // as JSON
	node []string // the name of each one's node
}

func (c *engineCluster) add(name, node string, e *inference) {
	_, port, _ := net.SplitHostPort(e.Listener.Addr().String())
	c.node = append(c.node, node)
	c.pods = append(c.pods, fmt.Sprintf(`{"metadata":{"namespace":"default","name":%q,"uid":%q,"labels":{"app":%q}},
		"spec":{"nodeName":%q,"containers":[{"name":"engine","ports":[{"name":"http","containerPort":%s}]}]},
		"status":{"phase":"Running","podIP":"127.0.0.1","startTime":"2026-03-01T12:00:00Z","conditions":[{"type":"Ready","status":"True","lastTransitionTime":"2026-03-01T12:01:00Z"}]}}`,
		name, name, strings.TrimRight(name, "-01"), node, port))
}

func (c *engineCluster) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	query := r.URL.Query()
	list := func(has func(i int) bool) {
		var pods []string
		for i, p := range c.pods {
			if has(i) {
				pods = append(pods, p)
			}
		}
		_, _ = fmt.Fprintf(w, `{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[%s]}`, strings.Join(pods, ","))
	}
	node, ofNode := strings.CutPrefix(query.Get("fieldSelector"), "spec.nodeName=")
	switch {
	case query.Get("watch") != "" && query.Get("sendInitialEvents") == "":
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	case r.URL.Path == "/apis/keda.sh/v1alpha1/namespaces/default/scaledobjects/llm":
		_, _ = w.Write([]byte(scaledObject))
	case r.URL.Path == "/apis/keda.sh/v1alpha1/scaledobjects" && query.Get("watch") == "":
		_, _ = fmt.Fprintf(w, `{"kind":"ScaledObjectList","apiVersion":"keda.sh/v1alpha1","metadata":{"resourceVersion":"1"},"items":[%s]}`, scaledObject)
	case r.URL.Path == "/apis/apps/v1/namespaces/default/deployments/llm/scale":
		_, _ = w.Write([]byte(`{"spec":{"replicas":2},"status":{"replicas":2,"selector":"app=llm"}}`))
	case r.URL.Path == "/api/v1/pods" && ofNode && query.Get("watch") == "":
		list(func(i int) bool { return c.node[i] == node })
	case r.URL.Path == "/api/v1/namespaces/default/pods" && query.Get("labelSelector") == "app=llm":
		list(func(i int) bool { return strings.Contains(c.pods[i], `"app":"llm"`) })
	default:
		w.WriteHeader(http.StatusBadRequest)
		_ = json.NewEncoder(w).Encode(map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "BadRequest", "code": 400})
	}
}

// TestEnginesOfOtherNodes: a scaler without a node answers for engines that the scalers of
// their nodes read; these read what a trigger asks for, over one connection each, and
// nothing else.
func TestEnginesOfOtherNodes(t *testing.T) {
	first, second, other := newInference(t, 3), newInference(t, 5), newInference(t, 7)
	c := &engineCluster{}
	c.add("llm-0", "node-0", first)
	c.add("llm-1", "node-1", second)
	c.add("other-0", "node-0", other)
	server := httptest.NewServer(c)
	t.Cleanup(server.Close) // after the scalers, which watch, have ended
	config := kubeconfig(t, server.URL)

	p := &peers{}
	for range 2 {
		p.targets = append(p.targets, freeAddress(t))
		p.addresses, p.nodes = append(p.addresses, freeAddress(t)), append(p.nodes, nil)
	}
	with := []string{"--kubernetes=auto", "--kubeconfig=" + config}
	for i := range p.nodes {
		p.startNode(t, i, "two-60-80", with...)
	}
	p.addresses = append(p.addresses, freeAddress(t))
	p.startFront(t, with...)
	front := p.front()

	time.Sleep(2 * time.Second)
	for name, e := range map[string]*inference{"llm-0": first, "llm-1": second, "other-0": other} {
		require.Zero(t, e.connections.Load(), "%s is read, and nobody asks", name)
	}
	metadata := map[string]string{"metricType": "vllm_queue_depth", "targetValue": "5", "window": "0s"}
	is := func(want float64) func() error {
		return func() error {
			v, err := front.value(metadata)
			if err == nil && v != want {
				err = fmt.Errorf("%v; want %v", v, want)
			}
			return err
		}
	}
	took := front.eventually(20*time.Second, is(8))
	t.Logf("3 and 5 that wait, after %s", took)
	second.waiting.Store(15)
	t.Logf("3 and 15 after %s", front.eventually(10*time.Second, is(18)))
	_, err := front.value(map[string]string{"metricType": "engine_kv_cache_percent"})
	assert.Equal(t, codes.FailedPrecondition, status.Code(err), "%v", err)
	assert.ErrorContains(t, err, "they have engine_waiting, engine_running, engine_ttft_ms")
	for _, n := range p.clients[:2] {
		n.eventually(20*time.Second, func() error {
			v, err := n.value(metadata)
			if err == nil && v != 18 {
				err = fmt.Errorf("%v; want 18", v)
			}
			return err
		})
	}

	first.Close()
	front.eventually(20*time.Second, func() error {
		v, err := front.value(metadata)
		if err == nil && v != 15 {
			err = fmt.Errorf("%v; want 15: the one that is not read counts as 0 on the way up", v)
		}
		return err
	})
	assert.LessOrEqual(t, first.connections.Load(), int64(1), "one connection is kept")
	assert.Equal(t, int64(1), second.connections.Load(), "one connection is kept")
	assert.Zero(t, other.connections.Load(), "no trigger asks for it")

	p.nodes[1].kill()
	p.startNode(t, 1, "two-60-80", append(with, "--engines=off")...)
	p.clients[1].scaler = p.nodes[1]
	p.clients[1].eventually(20*time.Second, func() error {
		_, err := p.clients[1].value(metadata)
		if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "--engines=off") {
			return fmt.Errorf("got %w", err)
		}
		return nil
	})
}
