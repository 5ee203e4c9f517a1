package evaluate

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/scaler/fleet"
	"gpuscaler/shared/snapshot"
)

// A pod that is not read now may be busy: by its last value, or because there is none.
// Then the workload is active. One that is known to do nothing keeps nothing alive.
func TestInactiveOnlyIfKnown(t *testing.T) {
	quiet := []podOn{llm("a", id(0)), llm("b", id(1))}
	idle := gpus(0, 0)
	for name, c := range map[string]struct {
		scene  scene
		active bool
		err    string
	}{
		"all read":                                 {scene{gpus: idle, pods: quiet}, false, ""},
		"one on a node that was never received":    {scene{gpus: idle, pods: quiet, w: Workload{Pods: elsewhere("c")}}, true, ""},
		"one whose GPU is lost does nothing":       {scene{gpus: []snapshot.Device{gpus(0)[0], lost(1, "GPU_IS_LOST")}, pods: quiet}, false, ""},
		"one whose getter fails, and never worked": {scene{gpus: []snapshot.Device{gpus(0)[0], failing(1, "gpu_utilization", "UNKNOWN")}, pods: quiet}, true, ""},
		"one without a GPU":                        {scene{gpus: gpus(0), pods: []podOn{llm("a", id(0)), llm("b")}}, false, ""},
		"one of its GPUs lost":                     {scene{gpus: []snapshot.Device{gpus(0)[0], lost(1, "GPU_IS_LOST")}, pods: []podOn{llm("a", id(0), id(1))}}, false, ""},
		"one of its GPUs that no reader reports":   {scene{gpus: gpus(0), pods: []podOn{llm("a", id(0), "GPU-z")}}, true, ""},
		"all about to end": {scene{gpus: gpus(0), pods: []podOn{func() podOn { p := llm("a", id(0)); p.Terminating = true; return p }()}, w: Workload{Spec: 1}}, false,
			"ScaledObject shop/llm: its 1 pods are about to end, and those that follow are not there yet"},
		"asked for, and no pod there": {scene{gpus: gpus(0), w: Workload{Spec: 4}}, false,
			"ScaledObject shop/llm: 4 replicas are asked for, and there is no pod; see the events of its ReplicaSet (quota, admission)"},
		"no pod, and no scale subresource": {scene{gpus: gpus(0), w: Workload{Spec: -1, Status: -1}}, false,
			"ScaledObject shop/llm: no pod has the labels app=llm, and the target has no scale subresource that says how many replicas are asked for; check podSelector"},
	} {
		t.Run(name, func(t *testing.T) {
			f, w := c.scene.at(t)
			active, err := activity(parse(t, utilization(nil)), f, w, at(2), limits)
			assert.Equal(t, c.active, active)
			if c.err == "" {
				require.NoError(t, err)
				return
			}
			var e *Error
			require.True(t, errors.As(err, &e))
			assert.Equal(t, Error{Unavailable, c.err}, *e)
		})
	}
}

// A stale pod is active if it was when it was read last.
func TestLastValue(t *testing.T) {
	for last, want := range map[float64]bool{0: false, 90: true} {
		f := front(t)
		f.add("n1", 11, gpus(0), llm("a", id(0)))
		f.add("n2", 11, gpus(0), llm("b", id(0)))
		f.add("n3", 1, gpus(last), llm("c", id(0)))
		w := f.workload(map[string][]string{"n1": {"a"}, "n2": {"b"}, "n3": {"c"}})
		w.Told = at(12)
		active, err := activity(parse(t, utilization(nil)), f, w, at(12), limits)
		require.NoError(t, err)
		assert.Equal(t, want, active, "%v", last)
	}
}

// A pod that loads its weights keeps its workload for startupTimeout, and not
// for ever.
func TestStartupTimeout(t *testing.T) {
	waited := llm("a", id(0)).loading()
	waited.Created, waited.Started = at(-3600), at(0) // for its node
	f, w := scene{gpus: gpus(0), pods: []podOn{waited}}.at(t)
	for _, c := range []struct {
		timeout string
		age     float64
		active  bool
	}{{"", 1, true}, {"", 9, true}, {"5s", 4.9, true}, {"5s", 5, false}, {"0s", 0, false}} {
		md := utilization(nil)
		if c.timeout != "" {
			md["startupTimeout"] = c.timeout
		}
		active, err := activity(parse(t, md), f, w, at(c.age), limits)
		require.NoError(t, err)
		assert.Equal(t, c.active, active, "%+v", c)
	}
}

// One that finds no node keeps it for as long, and then no longer.
func TestStartupTimeoutWithoutANode(t *testing.T) {
	pending := llm("pending").loading().Pod
	pending.Node = ""
	f, w := scene{gpus: gpus(0), pods: []podOn{llm("a", id(0))}, w: Workload{Pods: []*fleet.Pod{&pending}}}.at(t)
	for _, c := range []struct {
		age    float64
		active bool
	}{{4, true}, {6, false}} {
		active, err := activity(parse(t, utilization(metadata{"startupTimeout": "5s"})), f, w, at(c.age), limits)
		require.NoError(t, err)
		assert.Equal(t, c.active, active, "%+v", c)
	}
}
