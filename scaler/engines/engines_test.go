package engines

import (
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"gpuscaler/scaler/demand"
	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/window"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// asks are changed by tests.
type asks struct {
	mu  sync.Mutex
	all []demand.Ask
}

func (a *asks) Here() []demand.Ask {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.all
}

func (a *asks) set(all ...demand.Ask) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.all = all
}

// pod is a pod with engines behind HTTP handlers, each on a port of its own.
type pod struct {
	fleet.Pod
	connections, requests atomic.Int64
	open                  atomic.Int64
}

func newPod(t *testing.T, uid string, handlers ...http.HandlerFunc) *pod {
	t.Helper()
	p := &pod{Pod: fleet.Pod{Namespace: "shop", Name: uid, UID: uid, IP: "127.0.0.1", Ready: true, WasReady: true, FirstReady: time.Now().Add(-time.Hour)}}
	for _, handler := range handlers {
		s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			p.requests.Add(1)
			handler(w, r)
		}))
		s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				p.connections.Add(1)
				p.open.Add(1)
			case http.StateClosed, http.StateHijacked:
				p.open.Add(-1)
			case http.StateActive, http.StateIdle:
			}
		}
		s.Start()
		t.Cleanup(s.Close)
		_, port, err := net.SplitHostPort(s.Listener.Addr().String())
		require.NoError(t, err)
		number, err := strconv.Atoi(port)
		require.NoError(t, err)
		p.Ports = append(p.Ports, fleet.Port{Container: "engine", Number: number})
	}
	return p
}

func (p *pod) ask(change ...func(*demand.Ask)) demand.Ask {
	a := demand.Ask{EngineKey: fleet.EngineKey{UID: p.UID}, Quantile: 0.5}
	for _, c := range change {
		c(&a)
	}
	return a
}

// read runs a reader on a node with these pods.
func read(t *testing.T, a *asks, pods ...*pod) *fleet.Local {
	t.Helper()
	node := fleet.NewLocal("node", time.Minute, slog.New(slog.DiscardHandler), time.Now())
	var all []fleet.Pod
	for _, p := range pods {
		all = append(all, p.Pod)
	}
	node.SetPods(all, time.Now())
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- New(node, a, slog.New(slog.NewTextHandler(t.Output(), nil))).Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-ended)
	})
	return node
}

// becomes waits for what is known of an engine.
func becomes(t *testing.T, node *fleet.Local, key fleet.EngineKey, is func(e *fleet.Engine) bool) *fleet.Engine {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if e := node.Node().Engine(key); is(e) {
			return e
		}
	}
	require.Fail(t, "never came", "%+v", node.Node().Engine(key))
	return nil
}

func recording(t *testing.T, name string) string {
	body, err := os.ReadFile("../../testdata/engines/" + name)
	require.NoError(t, err)
	return string(body)
}

func page(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/metrics" {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		_, _ = io.WriteString(w, text)
	}
}

// Nothing is read that nobody asks for; who is asked for is read over one connection, at
// the port and the path where an engine answers; and no longer than somebody asks.
func TestReadsWhatIsAskedFor(t *testing.T) {
	sidecar := page("envoy_requests_total 1\n")
	trtllm := func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/metrics":
			_, _ = io.WriteString(w, `[{"iter":1}]`)
		case "/prometheus/metrics":
			_, _ = io.WriteString(w, recording(t, "tensorrt-llm-1.3.txt"))
		default:
			http.NotFound(w, r)
		}
	}
	asked, other := newPod(t, "asked", sidecar, trtllm), newPod(t, "other", page(recording(t, "vllm-0.11.txt")))
	a := &asks{}
	node := read(t, a, asked, other)
	time.Sleep(2 * interval)
	assert.Zero(t, asked.connections.Load()+other.connections.Load(), "nobody asks")

	a.set(asked.ask())
	e := becomes(t, node, asked.ask().EngineKey, func(e *fleet.Engine) bool { return e != nil && e.Readings.Len() > 5 })
	assert.Equal(t, "tensorrt-llm", e.Name)
	assert.Equal(t, fmt.Sprintf("127.0.0.1:%d/prometheus/metrics", asked.Ports[1].Number), e.Address)
	assert.Empty(t, e.Error)
	v, _, ok := e.Readings.Mean("engine_waiting", window.Longest)
	assert.True(t, ok)
	assert.InDelta(t, 3, v, 0)
	assert.True(t, e.Has("engine_ttft_ms"))
	v, _, ok = e.Readings.Mean("engine_ttft_ms/0.5", 0)
	assert.True(t, ok)
	assert.InDelta(t, -1, v, 0, "no request")
	assert.EqualValues(t, 2, asked.connections.Load(), "one to each port")
	assert.Zero(t, other.connections.Load())

	a.set()
	becomes(t, node, asked.ask().EngineKey, func(e *fleet.Engine) bool { return e == nil })
	require.Eventually(t, func() bool { return asked.open.Load() == 0 }, 10*time.Second, 10*time.Millisecond, "connections stay open")
	n := asked.requests.Load()
	time.Sleep(2 * interval)
	assert.Equal(t, n, asked.requests.Load())
}

// What a pod answers can neither make a figure nor hold up the others.
func TestHostileAnswers(t *testing.T) {
	block := make(chan struct{})
	defer close(block)
	hang := func(r *http.Request) {
		select {
		case <-block:
		case <-r.Context().Done():
		}
	}
	vllm := recording(t, "vllm-0.11.txt")
	victim := newPod(t, "victim", func(http.ResponseWriter, *http.Request) {})
	cases := map[string]struct {
		answer http.HandlerFunc
		want   string
	}{
		"50MB": {func(w http.ResponseWriter, _ *http.Request) {
			line := []byte(strings.Repeat("vllm:num_requests_waiting{a=\"b\"} 1\n", 1<<10))
			for range 1500 {
				if _, err := w.Write(line); err != nil {
					return
				}
			}
		}, "more than 4 MiB"},
		"header-hangs": {func(_ http.ResponseWriter, r *http.Request) { hang(r) }, "no answer within 2s"},
		"body-hangs": {func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.WriteString(w, "vllm:num_requests_waiting 1\n")
			_ = http.NewResponseController(w).Flush()
			hang(r)
		}, "breaks off after 28 bytes: no answer within 2s"},
		"html": {func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") }, "an HTML page"},
		"gzip": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			_, _ = z.Write(make([]byte, 8<<20))
			_ = z.Close()
		}, `encoded as "gzip"`},
		"redirect": {func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, fmt.Sprintf("http://127.0.0.1:%d/metrics", victim.Ports[0].Number), http.StatusFound)
		}, "HTTP status 302 leads to"},
		"500":     {func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusInternalServerError) }, "HTTP status 500"},
		"renamed": {page(strings.ReplaceAll(vllm, "vllm:", "vllm_")), "metrics of no engine that is known"},
		"nan":     {page(strings.ReplaceAll(vllm, "vllm:num_requests_waiting{engine=\"0\",model_name=\"acme/llm-8b\"} 3.0", "vllm:num_requests_waiting NaN")), "stands at NaN"},
		"header":  {func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("A", strings.Repeat("b", 1<<20)) }, "cannot be reached"},
	}
	good := newPod(t, "good", page(vllm))
	pods, all := []*pod{good}, []demand.Ask{good.ask()}
	for name, c := range cases {
		p := newPod(t, name, c.answer)
		pods, all = append(pods, p), append(all, p.ask(func(a *demand.Ask) { a.Path = "/metrics" }))
	}
	closed := newPod(t, "closed")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	closed.Ports = []fleet.Port{{Number: l.Addr().(*net.TCPAddr).Port}}
	require.NoError(t, l.Close())
	portless := newPod(t, "portless")
	pods, all = append(pods, closed, portless), append(all, closed.ask(), portless.ask())
	a := &asks{}
	a.set(all...)
	node := read(t, a, pods...)
	for name, c := range cases {
		key := fleet.EngineKey{UID: name, Path: "/metrics"}
		// On a slow machine the first answers may take more than the 2 s that they have.
		e := becomes(t, node, key, func(e *fleet.Engine) bool { return e != nil && strings.Contains(e.Error, c.want) })
		assert.Zero(t, e.Readings.Len(), name)
		assert.True(t, e.Heard.IsZero(), name)
	}
	e := becomes(t, node, closed.ask().EngineKey, func(e *fleet.Engine) bool { return e != nil })
	assert.Contains(t, e.Error, "cannot be reached: connection refused (SGLang has metrics with --enable-metrics only;")
	e = becomes(t, node, portless.ask().EngineKey, func(e *fleet.Engine) bool { return e != nil })
	assert.Equal(t, "its containers declare no port; set enginePort", e.Error)

	began := becomes(t, node, good.ask().EngineKey, func(e *fleet.Engine) bool { return e != nil && !e.Heard.IsZero() }).Heard
	becomes(t, node, good.ask().EngineKey, func(e *fleet.Engine) bool { return e.Heard.After(began.Add(2 * interval)) })
	assert.Zero(t, victim.requests.Load(), "a redirect is followed")
}

// An engine that goes away keeps what was known of it, with an error; one that comes back
// goes on, and one on another port is found.
func TestEngineComesBack(t *testing.T) {
	var broken atomic.Bool
	vllm := recording(t, "vllm-0.6.txt")
	flaky := func(at bool) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			if broken.Load() == at {
				http.Error(w, "loading", http.StatusServiceUnavailable)
				return
			}
			page(vllm)(w, r)
		}
	}
	p := newPod(t, "llm", flaky(true), flaky(false))
	a := &asks{}
	a.set(p.ask())
	node := read(t, a, p)
	e := becomes(t, node, p.ask().EngineKey, func(e *fleet.Engine) bool { return e != nil && e.Error == "" })
	first := e.Address
	broken.Store(true)
	e = becomes(t, node, p.ask().EngineKey, func(e *fleet.Engine) bool { return e.Error != "" })
	assert.Contains(t, e.Error, "HTTP status 503")
	assert.Positive(t, e.Readings.Len())
	assert.Equal(t, first, e.Address)
	e = becomes(t, node, p.ask().EngineKey, func(e *fleet.Engine) bool { return e.Error == "" })
	assert.NotEqual(t, first, e.Address)
}
