package status

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/window"
	"gpuscaler/shared/snapshot"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func request(h http.Handler, method, path string) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, path, nil))
	return w
}

func TestProbes(t *testing.T) {
	var trouble error
	h := Handler(fleet.New(nil), func(time.Time) error { return trouble }, http.NotFoundHandler())
	for _, c := range []struct {
		trouble      error
		method, path string
		code         int
		body         string
	}{
		{nil, "GET", "/healthz", 200, "ok\n"},
		{nil, "GET", "/readyz", 200, "ok\n"},
		{nil, "HEAD", "/readyz", 200, "ok\n"},
		{errors.New("node node-1: nothing heard for 12.4s"), "GET", "/healthz", 200, "ok\n"},
		{errors.New("node node-1: GPU 0: nothing heard for 12.4s"), "GET", "/readyz", 503, "node node-1: GPU 0: nothing heard for 12.4s\n"},
		{nil, "GET", "/", 404, "404 page not found\n"},
		{nil, "POST", "/state", 405, "Method Not Allowed\n"},
	} {
		trouble = c.trouble
		w := request(h, c.method, c.path)
		assert.Equal(t, c.code, w.Code, "%s %s", c.method, c.path)
		assert.Equal(t, c.body, w.Body.String(), "%s %s", c.method, c.path)
	}
}

// node is a fleet with all that /state can show.
func node(t *testing.T, now time.Time) *fleet.Local {
	start := now.Add(-time.Minute)
	l := fleet.NewLocal("node-1", 10*time.Second, slog.New(slog.DiscardHandler), start)
	s := l.Connect()
	for i, v := range []float64{50, 75} {
		require.NoError(t, s.Apply(&snapshot.Sample{Writer: "nvmlsidecar", Version: "v1", Refused: 1, Devices: []snapshot.Device{
			{ID: "GPU-a", Vendor: "nvidia", Model: "NVIDIA H200", Index: 0, MemoryTotalMiB: 8192, Values: map[string]float64{"gpu_utilization": v},
				States: map[string]bool{"throttled_hw_thermal": true, "row_remap_failed": false}, Counters: map[string]float64{"xid_errors": 1, "xid_31": 1, "ecc_corrected_errors": 0}},
			{ID: "GPU-b", Vendor: "nvidia", Index: 1, Error: "GPU_IS_LOST"},
			{ID: "MIG-a", Vendor: "nvidia", Index: 0, Parent: "GPU-a", Instance: 7, Profile: "1g.18gb"},
		}}, now.Add(time.Duration(i-3)*time.Second)))
	}
	require.NoError(t, l.Connect().Apply(&snapshot.Sample{Writer: "acme", Error: "no devices found"}, now))
	return l
}

func TestState(t *testing.T) {
	l := node(t, time.Now())
	w := request(Handler(fleet.New(l), func(time.Time) error { return errors.New("too old") }, http.NotFoundHandler()), "GET", "/state")
	assert.Equal(t, 200, w.Code)
	assert.Equal(t, "application/json", w.Header().Get("Content-Type"))
	var state map[string]any
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &state))
	ages := []any{}
	for _, list := range []string{"writers", "devices"} {
		for _, entry := range state[list].([]any) {
			ages = append(ages, entry.(map[string]any)["ageSeconds"])
			delete(entry.(map[string]any), "ageSeconds")
		}
	}
	for i, want := range []float64{2, 0, 2, 2, 2} {
		assert.InDelta(t, want, ages[i], 1)
	}
	want := `{
		"node": "node-1", "notReady": "too old", "leftOutTotal": 2,
		"writers": [{"name": "nvmlsidecar", "version": "v1", "refusedDevices": 1}, {"name": "acme", "error": "no devices found"}],
		"devices": [
			{"id": "GPU-a", "vendor": "nvidia", "index": 0, "model": "NVIDIA H200", "memoryTotalMiB": 8192,
				"states": ["throttled_hw_thermal"], "errors": {"xid_errors": 1, "xid_31": 1},
				"metrics": {"gpu_utilization": {"0s": 75, "15s": 62.5, "1m": 62.5, "5m": 62.5}}},
			{"id": "MIG-a", "vendor": "nvidia", "index": 0, "model": "", "parent": "GPU-a", "instance": 7, "profile": "1g.18gb", "metrics": {}},
			{"id": "GPU-b", "vendor": "nvidia", "index": 1, "model": "", "error": "GPU_IS_LOST", "metrics": {}}
		]}`
	got, err := json.Marshal(state)
	require.NoError(t, err)
	assert.JSONEq(t, want, string(got))

	w = request(Handler(fleet.New(fleet.NewLocal("n", time.Second, slog.New(slog.DiscardHandler), time.Now())), func(time.Time) error { return nil }, http.NotFoundHandler()), "GET", "/state")
	assert.JSONEq(t, `{"node": "n", "writers": [], "devices": [], "leftOutTotal": 0}`, w.Body.String(), "lists are never null")
}

func TestStateOfPods(t *testing.T) {
	now := time.Now()
	l := node(t, now)
	l.SetPods([]fleet.Pod{
		{Namespace: "shop", Name: "llm-0", UID: "1", Ready: true},
		{Namespace: "shop", Name: "llm-1", UID: "2"},
		{Namespace: "shop", Name: "web-0", UID: "3", Ready: true},
	}, now)
	holds := func(pod string, ids ...string) snapshot.Container {
		return snapshot.Container{Namespace: "shop", Pod: pod, Name: "engine", Plugin: []snapshot.PluginDevices{{Resource: "nvidia.com/gpu", IDs: ids}}}
	}
	require.NoError(t, l.Connect().Apply(&snapshot.Sample{Writer: "podresources", Allocation: &snapshot.Allocation{Containers: []snapshot.Container{
		holds("llm-0", "GPU-b::0"), holds("llm-1", "GPU-b::1", "GPU-c"),
	}}}, now.Add(-2*time.Second)))
	s := Describe(fleet.New(l), now)
	assert.Equal(t, []Pod{
		{Namespace: "shop", Name: "llm-0", Ready: true, Holds: []Holds{{"GPU-b", 2}}},
		{Namespace: "shop", Name: "llm-1", Holds: []Holds{{"GPU-b", 2}}, Unknown: []string{"GPU-c"}},
	}, s.Pods)
	assert.InDelta(t, 2, *s.KubeletAgeSeconds, 0.1)
}

// serve runs h until stop is called, which returns what Run returned.
func serve(t *testing.T, h http.Handler) (url string, stop func() error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, l, h, slog.New(slog.DiscardHandler)) }()
	return "http://" + l.Addr().String(), func() error {
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(5 * time.Second):
			return errors.New("it does not end")
		}
	}
}

func TestCleanStop(t *testing.T) {
	now := time.Now()
	l := node(t, now)
	entered, leave := make(chan struct{}), make(chan struct{})
	mux := http.NewServeMux()
	mux.Handle("/", Handler(fleet.New(l), func(time.Time) error { return nil }, http.NotFoundHandler()))
	mux.HandleFunc("/slow", func(w http.ResponseWriter, _ *http.Request) {
		close(entered)
		<-leave
		_, _ = io.WriteString(w, "whole answer")
	})
	url, stop := serve(t, mux)
	client := &http.Client{Timeout: 10 * time.Second}
	defer client.CloseIdleConnections()
	r, err := client.Get(url + "/readyz")
	require.NoError(t, err)
	require.NoError(t, r.Body.Close())
	assert.Equal(t, 200, r.StatusCode)

	// A request that is being answered gets its answer, and Run waits for it.
	answer := make(chan string)
	go func() {
		r, err := client.Get(url + "/slow")
		if err != nil {
			answer <- err.Error()
			return
		}
		body, _ := io.ReadAll(r.Body)
		_ = r.Body.Close()
		answer <- string(body)
	}()
	<-entered
	time.AfterFunc(100*time.Millisecond, func() { close(leave) })
	require.NoError(t, stop())
	select {
	case <-leave:
	default:
		assert.Fail(t, "Run did not wait")
	}
	assert.Equal(t, "whole answer", <-answer)
	_, err = client.Get(url + "/healthz")
	assert.Error(t, err)
}

// One that never ends does not keep the process.
func TestStopInSpiteOfASlowRequest(t *testing.T) {
	entered := make(chan struct{})
	url, stop := serve(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done()
	}))
	failed := make(chan error)
	go func() {
		client := &http.Client{Timeout: 10 * time.Second}
		defer client.CloseIdleConnections()
		r, err := client.Get(url)
		if err == nil {
			_ = r.Body.Close()
		}
		failed <- err
	}()
	<-entered
	begun := time.Now()
	require.NoError(t, stop())
	assert.Less(t, time.Since(begun), 3*time.Second)
	assert.Error(t, <-failed)
}

func TestStoppedBeforeItBegan(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	assert.NoError(t, Run(ctx, l, http.NotFoundHandler(), slog.New(slog.DiscardHandler)))
	assert.Error(t, l.Close(), "the listener is closed")
}

func TestListenerThatFails(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, l.Close())
	assert.ErrorContains(t, Run(t.Context(), l, http.NotFoundHandler(), slog.New(slog.DiscardHandler)), "serving HTTP: ")
}

// TestStateOfEngines: what is read of a pod's engine, from where, and why it is not.
func TestStateOfEngines(t *testing.T) {
	now := time.Now()
	l := fleet.NewLocal("node-1", 10*time.Second, slog.New(slog.DiscardHandler), now)
	l.SetPods([]fleet.Pod{{Namespace: "shop", Name: "llm-0", UID: "a"}, {Namespace: "shop", Name: "llm-1", UID: "b"}}, now)
	l.SetEngines(map[fleet.EngineKey]*fleet.Engine{
		{UID: "a"}: {Name: "vllm", Address: "10.0.0.1:8000/metrics", Heard: now.Add(-time.Second), From: []string{"vllm:num_requests_waiting"},
			Readings: fleet.NewReadings([]string{"engine_waiting"}, []window.Means{{1, 2, 3, 4}}, nil)},
		{UID: "b"}:    {Error: "connection refused"},
		{UID: "gone"}: {Error: "connection refused"},
	}, now)
	engines := Describe(fleet.New(l), now).Engines
	require.Len(t, engines, 2)
	assert.Equal(t, Engine{
		Namespace: "shop", Pod: "llm-0", Engine: "vllm", Address: "10.0.0.1:8000/metrics", AgeSeconds: new(1.0), From: []string{"vllm:num_requests_waiting"},
		Metrics: map[string]map[string]float64{"engine_waiting": {"0s": 1, "15s": 2, "1m": 3, "5m": 4}},
	}, engines[0])
	assert.Equal(t, Engine{Namespace: "shop", Pod: "llm-1", Error: "connection refused", Metrics: map[string]map[string]float64{}}, engines[1])
}
