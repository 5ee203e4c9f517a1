package evaluate

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/labels"

	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/trigger"
	"gpuscaler/scaler/window"
)

var queueOf = metadata{"metricType": "service_queue", "service": "gateway", "serviceMetric": "m", "targetValue": "5", "activationThreshold": "1"}

// queued is a queue of one pod that has so many requests, now and over all windows.
func queued(n float64) *Queue {
	return &Queue{Selector: map[string]string{"app": "gateway"}, UIDs: []string{"g"}, Last: n, Means: window.Means{n, n, n, n}, Heard: at(nowSecond)}
}

// queueWorkload has so many pods, of which the last starts if starting.
func queueWorkload(n int, starting bool) *engines {
	e := newEngines(&trigger.Trigger{}, make([]*fleet.Engine, n)...)
	e.w.Selector = labels.SelectorFromSet(labels.Set{"app": "llm"})
	if starting {
		p := e.w.Pods[n-1]
		p.Ready, p.WasReady, p.FirstReady, p.Created, p.Started = false, false, time.Time{}, at(nowSecond-60), at(nowSecond-60)
	}
	return e
}

// TestForQueue: one replica for each target, active above the threshold or while a pod
// starts, and without data an error that says why, but active where that is known.
func TestForQueue(t *testing.T) {
	partly, stale, none, own, ownPods := queued(9), queued(9), queued(0), queued(9), queued(9)
	partly.UIDs, partly.Unread = []string{"g", "h"}, []string{"pod h: connection refused"}
	stale.Heard = at(nowSecond - 60)
	none.Failure = fail(Unavailable, "service: gateway has no ready pod, of 0 that it selects")
	unused := queued(0)
	unused.Unused = "no series of m has the labels"
	own.Selector = map[string]string{"app": "llm"}
	ownPods.UIDs = []string{"pod-0"}
	rising := queued(0)
	rising.Last = 7
	for name, c := range map[string]struct {
		q        *Queue
		pods     int
		starting bool
		value    float64
		desired  int
		active   bool
		kind     Kind
		says     string
	}{
		"waits at zero":            {q: queued(7), value: 7, desired: 2, active: true},
		"nobody waits":             {q: queued(0), pods: 3},
		"not above the threshold":  {q: queued(1), pods: 1, value: 1, desired: 1},
		"it rises":                 {q: rising, active: true},
		"nobody waits, one starts": {q: queued(0), pods: 1, starting: true, active: true},
		"not read yet":             {says: `service: "gateway/metrics" has not been read yet`},
		"not read yet, one starts": {pods: 1, starting: true, active: true, says: "has not been read yet"},
		"one of two pods":          {q: partly, active: true, says: "1 of its 2 ready pods cannot be read: pod h: connection refused"},
		"silent":                   {q: stale, active: true, says: "nothing heard for 1m0s, more than 10s"},
		"unused at zero":           {q: unused},
		"unused, and one starts":   {q: unused, pods: 1, starting: true, active: true, says: "no series of m has the labels"},
		"no pod":                   {q: none, says: "has no ready pod"},
		"its own Service":          {q: own, kind: Impossible, says: "is the workload's own"},
		"its own pods":             {q: ownPods, pods: 1, kind: Impossible, says: "is the workload's own"},
	} {
		t.Run(name, func(t *testing.T) {
			tr := parse(t, queueOf)
			e := queueWorkload(c.pods, c.starting)
			if c.says != "" && c.kind == 0 {
				c.kind = Unavailable
			}
			d, err := ForQueue(tr, c.q, e, e.w, at(nowSecond), Limits{StaleAfter: staleAfter, AttributionStaleAfter: time.Minute, Tolerance: 0.1})
			assert.Equal(t, c.active, d.Active)
			if c.says != "" {
				var failed *Error
				require.ErrorAs(t, err, &failed)
				assert.Equal(t, c.kind, failed.Kind)
				assert.Contains(t, failed.Reason, c.says)
				return
			}
			require.NoError(t, err)
			assert.InDelta(t, c.value, d.Value, 0)
			assert.Equal(t, c.desired, d.Replicas.Desired)
		})
	}
	tr := parse(t, queueOf)
	e := queueWorkload(0, false)
	e.w.Guess = true
	_, err := ForQueue(tr, queued(7), e, e.w, at(nowSecond), Limits{StaleAfter: staleAfter, AttributionStaleAfter: time.Minute, Tolerance: 0.1})
	assert.ErrorContains(t, err, "no trigger of ScaledObject default/llm has this metadata")
}
