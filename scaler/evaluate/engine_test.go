package evaluate

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/labels"

	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/replicas"
	"gpuscaler/scaler/terms"
	"gpuscaler/scaler/trigger"
	"gpuscaler/scaler/window"
)

// engines is a fleet of one peer's node with pods that have inference engines.
type engines struct {
	node *fleet.Node
	w    *Workload
}

func (e *engines) Own() *fleet.Node { return nil }
func (e *engines) Node(name string) *fleet.Node {
	if name == "a" {
		return e.node
	}
	return nil
}
func (e *engines) Nodes() []*fleet.Node { return []*fleet.Node{e.node} }
func (e *engines) Unheard() []string    { return nil }

const nowSecond = 10_000

// newEngines has a pod for each engine; nil is one that is not read.
func newEngines(t *trigger.Trigger, all ...*fleet.Engine) *engines {
	e := &engines{w: &Workload{Name: "ScaledObject default/llm", Namespace: "default", Selector: labels.Everything(), Spec: len(all), Status: len(all), Told: at(nowSecond)}}
	known := map[fleet.EngineKey]*fleet.Engine{}
	for i, engine := range all {
		uid := fmt.Sprint("pod-", i)
		e.w.Pods = append(e.w.Pods, &fleet.Pod{Namespace: "default", Name: uid, UID: uid, Node: "a", Ready: true, WasReady: true, Created: at(0), Started: at(0), FirstReady: at(100), Changed: at(100)})
		if engine != nil {
			known[EngineKey(t, uid)] = engine
		}
	}
	node := fleet.Node{Name: "a", Heard: at(nowSecond), PodsKnown: true}
	e.node = node.With(fleet.NewPods(nil, nil, nil)).WithEngines(known)
	return e
}

func (e *engines) decide(t *trigger.Trigger) (Decision, error) {
	return ForWorkload(t, e, e.w, at(nowSecond), Limits{StaleAfter: staleAfter, AttributionStaleAfter: time.Minute, Tolerance: 0.1})
}

// engineWith is an engine with metrics whose means are the same over all windows.
func engineWith(metrics map[string]float64) *fleet.Engine {
	e := &fleet.Engine{Name: "vllm", Address: "10.0.0.1:8000/metrics", Heard: at(nowSecond)}
	var names []string
	var means []window.Means
	for name, v := range metrics {
		names, means = append(names, name), append(means, window.Means{v, v, v, v})
		metric := name
		for i := range name {
			if name[i] == '/' {
				metric = name[:i]
			}
		}
		if !slices.Contains(e.Metrics, metric) {
			e.Metrics = append(e.Metrics, metric)
		}
	}
	slices.Sort(e.Metrics)
	e.Readings = fleet.NewReadings(names, means, nil)
	return e
}

func waiting(n float64) *fleet.Engine { return engineWith(map[string]float64{"engine_waiting": n}) }

// notHeard is an engine that answered so many seconds ago for the last time.
func notHeard(e *fleet.Engine, ago float64) *fleet.Engine {
	e.Error, e.Heard = "10.0.0.1:8000/metrics: connection refused", at(nowSecond-ago)
	return e
}

const ttft95 = "engine_ttft_ms/0.95"

func latency(ms, waiting, running float64) *fleet.Engine {
	return engineWith(map[string]float64{ttft95: ms, "engine_waiting": waiting, "engine_running": running})
}

// TestEngines has what is decided on engines: by the rules for GPUs, with those of
// latencies and of saturation.
func TestEngines(t *testing.T) {
	for name, c := range map[string]struct {
		md      metadata
		engines []*fleet.Engine
		value   float64
		desired int
		active  bool
	}{
		"a queue":                    {metadata{"profile": "vllm-queue-depth"}, []*fleet.Engine{waiting(4), waiting(9)}, 13, 3, true},
		"at the target":              {metadata{"profile": "vllm-queue-depth"}, []*fleet.Engine{waiting(5), waiting(5)}, 10, 2, true},
		"idle":                       {metadata{"profile": "vllm-queue-depth"}, []*fleet.Engine{waiting(0), waiting(1)}, 1, 1, false},
		"one not read, up":           {metadata{"profile": "vllm-queue-depth"}, []*fleet.Engine{waiting(20), nil}, 20, 4, true},
		"one not read, down":         {metadata{"profile": "vllm-queue-depth"}, []*fleet.Engine{waiting(0), waiting(0), nil}, 5, 1, true},
		"one silent that was idle":   {metadata{"profile": "vllm-queue-depth"}, []*fleet.Engine{waiting(0), waiting(0), notHeard(waiting(0), 11)}, 5, 1, false},
		"one silent that was busy":   {metadata{"profile": "vllm-queue-depth"}, []*fleet.Engine{waiting(0), waiting(0), notHeard(waiting(3), 11)}, 5, 1, true},
		"one that failed just now":   {metadata{"profile": "vllm-queue-depth"}, []*fleet.Engine{waiting(4), notHeard(waiting(4), 3)}, 8, 2, true},
		"saturation by the queue":    {metadata{"profile": "llm"}, []*fleet.Engine{engineWith(map[string]float64{"engine_waiting": 8, "engine_kv_cache_percent": 40})}, 160, 2, true},
		"saturation by the cache":    {metadata{"profile": "llm"}, []*fleet.Engine{engineWith(map[string]float64{"engine_waiting": 0, "engine_kv_cache_percent": 96})}, 120, 2, true},
		"saturation without a cache": {metadata{"profile": "llm"}, []*fleet.Engine{waiting(2)}, 40, 1, true},
		"saturation, all idle":       {metadata{"profile": "llm"}, []*fleet.Engine{engineWith(map[string]float64{"engine_waiting": 0, "engine_kv_cache_percent": 0})}, 0, 0, false},
		"saturation by running":      {metadata{"profile": "llm", "saturationRunning": "64"}, []*fleet.Engine{engineWith(map[string]float64{"engine_waiting": 0, "engine_kv_cache_percent": 0, "engine_running": 64})}, 100, 2, true},

		"latency near the target":  {metadata{"profile": "llm-latency"}, []*fleet.Engine{latency(1090, 0, 3), latency(930, 0, 3)}, 2000, 2, true},
		"latency, vertical":        {metadata{"profile": "llm-latency"}, []*fleet.Engine{latency(60_000, 50, 9), latency(1000, 0, 9)}, 3000, 3, true},
		"latency, hardly any":      {metadata{"profile": "llm-latency"}, []*fleet.Engine{latency(20, 0, 1), latency(20, 0, 1), latency(20, 0, 1), latency(20, 0, 1)}, 3200, 4, true},
		"latency, known idle":      {metadata{"profile": "llm-latency"}, []*fleet.Engine{latency(terms.NoRequest, 0, 0)}, 0, 0, false},
		"latency, one idle":        {metadata{"profile": "llm-latency"}, []*fleet.Engine{latency(1000, 0, 2), latency(terms.NoRequest, 0, 0)}, 1000, 1, true},
		"latency, stalled":         {metadata{"profile": "llm-latency"}, []*fleet.Engine{latency(terms.NoRequest, 0, 4)}, 1000, 1, true},
		"latency, stalled in line": {metadata{"profile": "llm-latency", "activationThreshold": "999999"}, []*fleet.Engine{latency(terms.NoRequest, 9, 0)}, 1000, 1, true},
		"never to zero":            {metadata{"profile": "llm-prefill"}, []*fleet.Engine{waiting(0)}, 0, 0, true},
		"another quantile":         {metadata{"metricType": "engine_ttft_ms", "targetValue": "100", "quantile": "0.5"}, []*fleet.Engine{engineWith(map[string]float64{"engine_ttft_ms/0.5": 150, ttft95: 900})}, 150, 2, true},
	} {
		t.Run(name, func(t *testing.T) {
			tr := parse(t, c.md)
			d, err := newEngines(tr, c.engines...).decide(tr)
			require.NoError(t, err)
			assert.InDelta(t, c.value, d.Value, 1e-9)
			assert.Equal(t, c.desired, d.Replicas.Desired)
			assert.Equal(t, c.active, d.Active)
		})
	}
}

// TestEnginesFail: what cannot be read is an error that says why, and never a zero.
func TestEnginesFail(t *testing.T) {
	refused := &fleet.Engine{Error: "10.0.0.1:8000: cannot be reached: connection refused"}
	for name, c := range map[string]struct {
		md      metadata
		engines []*fleet.Engine
		kind    Kind
		says    []string
		active  bool
	}{
		"not read yet":     {metadata{"profile": "llm"}, []*fleet.Engine{nil}, Unavailable, []string{"nothing is known of the engines of 1 of its 1 pods", "node a has not read its engine yet"}, false},
		"never answered":   {metadata{"profile": "llm"}, []*fleet.Engine{refused}, Unavailable, []string{"its engine cannot be read", "connection refused"}, false},
		"over half silent": {metadata{"profile": "vllm-queue-depth"}, []*fleet.Engine{waiting(0), notHeard(waiting(0), 60), notHeard(waiting(0), 60)}, Unavailable, []string{"2 of its 3 pods", "is not heard for 1m0s"}, false},
		"without the metric": {metadata{"profile": "llm-latency"}, []*fleet.Engine{waiting(1), waiting(1)}, Impossible,
			[]string{"the engines (vllm) of 2 of the 2 pods", "have no engine_ttft_ms; they have engine_waiting"}, false},
		"without any part of it": {metadata{"profile": "llm"}, []*fleet.Engine{engineWith(map[string]float64{"engine_running": 1})}, Impossible, []string{"have no engine_saturation; they have engine_running"}, false},
		"no figures in flight":   {metadata{"profile": "llm-latency"}, []*fleet.Engine{engineWith(map[string]float64{ttft95: terms.NoRequest})}, Unavailable, []string{"does not say whether there are any"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			tr := parse(t, c.md)
			d, err := newEngines(tr, c.engines...).decide(tr)
			var e *Error
			require.ErrorAs(t, err, &e)
			assert.Equal(t, c.kind, e.Kind)
			for _, part := range c.says {
				assert.Contains(t, e.Reason, part)
			}
			assert.Equal(t, c.active, d.Active)
		})
	}
	tr := parse(t, metadata{"profile": "llm"})
	_, err := Evaluate(tr, &fleet.Node{Name: "a"}, at(nowSecond), staleAfter)
	assert.ErrorContains(t, err, "engine_saturation is about a workload")
}

// TestEnginesYoung: a pod counts once there are 15 s of its engine since it became ready;
// before, and while it loads and does not answer, it counts as one that is not ready.
func TestEnginesYoung(t *testing.T) {
	tr := parse(t, metadata{"profile": "vllm-queue-depth"})
	for name, c := range map[string]struct {
		ready   float64 // seconds ago; negative: not yet
		covered time.Duration
		engine  bool
		want    replicas.State
	}{
		"loading":              {-1, 0, false, replicas.Starting},
		"loading, answers":     {-1, 15 * time.Second, true, replicas.Starting},
		"ready, not read yet":  {2, 0, false, replicas.Starting},
		"ready for 10 s":       {10, 9 * time.Second, true, replicas.Starting},
		"ready for 20 s":       {20, 15 * time.Second, true, replicas.Counting},
		"its scaler restarted": {1000, 5 * time.Second, true, replicas.Missing},
		"never answered":       {1000, 0, false, replicas.Missing},
	} {
		t.Run(name, func(t *testing.T) {
			engine := waiting(30)
			engine.Readings = fleet.NewReadings([]string{"engine_waiting"}, []window.Means{{30, 30, 30, 30}}, []window.Coverage{{0, c.covered, c.covered, c.covered}})
			if !c.engine {
				engine = nil
			}
			e := newEngines(tr, waiting(9), waiting(9), engine)
			p := e.w.Pods[2]
			p.Created, p.Started = at(nowSecond-1000), at(nowSecond-1000)
			p.FirstReady, p.Changed = at(nowSecond-c.ready), at(nowSecond-c.ready)
			if c.ready < 0 {
				p.Ready, p.WasReady, p.FirstReady, p.Changed = false, false, time.Time{}, time.Time{}
			}
			d, err := e.decide(tr)
			require.NoError(t, err)
			assert.Equal(t, c.want, d.Pods[2].State, d.Pods[2].Reason)
		})
	}
}

// TestEnginePods: the engines of groups are their leaders', and of pods that end none is
// read.
func TestEnginePods(t *testing.T) {
	tr := parse(t, metadata{"profile": "vllm-queue-depth"})
	e := newEngines(tr, waiting(5), waiting(5), waiting(5), waiting(5))
	e.w.Pods[3].Terminating = true
	e.w.Sets = []string{"llm"}
	e.w.Pods[0].Group, e.w.Pods[0].Leader, e.w.Pods[1].Group = "llm/0", true, "llm/0"
	e.w.Pods[2].Node = ""
	assert.Equal(t, []PlacedPod{{"pod-0", "a"}}, EnginePods(e, e.w))
}
