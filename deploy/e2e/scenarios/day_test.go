package scenarios

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/types"

	"gpuscaler/deploy/e2e/arrivals"
	"gpuscaler/deploy/e2e/cluster"
	"gpuscaler/deploy/e2e/llmload"
)

// dayVar is how long the day takes, instead of shortDay. dayPlotVar is where its plot goes.
const (
	dayVar     = "GPUSCALER_E2E_DAY"
	dayPlotVar = "GPUSCALER_E2E_DAY_PLOT"
	shortDay   = 5 * time.Minute
	// dayRate is the rate at noon, requests a second: some four replicas' worth. The evening's burst is seven's.
	dayRate = 10
	daySeed = 1
	// look is how often replicas and pods are counted.
	look = 250 * time.Millisecond
)

// way is how the service of a day is scaled. All are woken from zero by the same trigger, and
// have the same periods, behavior and, but for one, bounds.
type way struct {
	name, title string
	most        int // replicas
	color       string
	// trigger is the one that scales it, as YAML: %[1]s is our scaler's address, %[2]s the workload's Service.
	trigger string
}

var ways = []way{
	{"llm", "profile llm", 8, "#176", `
  - type: external
    metadata: {scalerAddress: "%[1]s", profile: llm, window: 0s}`},
	{"gpu", "gpu_utilization 80", 8, "#36c", `
  - type: external
    metadata: {scalerAddress: "%[1]s", metricType: gpu_utilization, targetValue: "80", window: 0s}`},
	{"gpu5", "gpu_utilization 80, at most 5", 5, "#93c", `
  - type: external
    metadata: {scalerAddress: "%[1]s", metricType: gpu_utilization, targetValue: "80", window: 0s}`},
	{"url", "one Service URL, 5 waiting", 8, "#c33", `
  - type: metrics-api
    metadata:
      url: http://%[2]s/metrics
      format: prometheus
      valueLocation: vllm:num_requests_waiting{model_name="e2e/llama-8b"}
      targetValue: "5"`},
}

const dayScaled = `
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata: {name: %[1]s}
spec:
  scaleTargetRef: {name: %[1]s}
  pollingInterval: 2
  cooldownPeriod: 10
  minReplicaCount: 0
  maxReplicaCount: %[2]d
  advanced:
    horizontalPodAutoscalerConfig:
      behavior: {scaleDown: {stabilizationWindowSeconds: %[3]d}}
  triggers:
  - type: external-push
    metadata:
      scalerAddress: %[4]s
      metricType: service_queue
      service: gateway:metrics
      serviceMetric: caddy_http_requests_in_flight
      serviceLabels: handler=reverse_proxy
      targetValue: "1000" # it wakes the workload, and does not scale it
`

// TestDay plays a day of users of an LLM service, compressed, to the same engines scaled in
// several ways side by side: by profile llm, by the GPUs' utilization, and by what one Service
// URL says, as KEDA's metrics-api reads it. By llm it goes to zero and wakes, users wait less
// than by the URL, and fewer GPUs are used than by utilization.
func TestDay(t *testing.T) {
	length := shortDay
	if text := os.Getenv(dayVar); text != "" {
		var err error
		length, err = time.ParseDuration(text)
		require.NoError(t, err, dayVar)
	}
	within := length + 3*time.Minute
	turns.turn(t, 2*ofFleet, within)
	trace, err := arrivals.Generate(arrivals.Day(dayRate).Compress(length), arrivals.Chat(), daySeed)
	require.NoError(t, err)
	var runs []*dayRun
	for _, w := range ways {
		runs = append(runs, setDay(t, w, trace, length, within))
	}
	var all sync.WaitGroup
	for _, r := range runs { // users come to all at once
		all.Go(func() { r.err = r.run() })
	}
	all.Wait()
	for _, r := range runs {
		require.NoError(t, r.err, r.way.name)
		t.Logf("%s: woken %d times; %d requests failed, the first with: %v", r.way.name, r.woken, r.failed, r.failure)
		assert.True(t, r.slept, "%s: no replica in the silent hours", r.way.name)
		assert.GreaterOrEqual(t, r.woken, 2, "%s: at the start, and after the silent hours", r.way.name)
		assert.Less(t, r.failed, 1+len(trace)/100, r.way.name)
	}
	t.Logf("a day of %d requests in %s:\n%s", len(trace), length, dayTable(runs))
	if path := os.Getenv(dayPlotVar); path != "" {
		require.NoError(t, os.WriteFile(path, []byte(dayPlot(runs)), 0o644))
	}
	ours, gpu, url := runs[0], runs[1], runs[3]
	assert.Less(t, ours.wait(0.95), url.wait(0.95), "llm's users wait as long as the URL's")
	assert.Less(t, ours.gpuTime, gpu.gpuTime, "llm takes as many GPUs as utilization does")
}

// dayRun is a day of one way.
type dayRun struct {
	*story
	way     way
	gateway *gateway
	trace   arrivals.Trace
	length  time.Duration

	mu      sync.Mutex
	waits   []time.Duration
	failed  int
	failure error // the first

	replicas []int // asked for, each look of the day
	looked   time.Time
	wanted   int // at the last look
	gpuTime  time.Duration
	// cascades is how often more replicas were asked for while some of those before still loaded;
	// woken how often the first one was. slept: there were none in the silent hours.
	cascades, woken int
	slept           bool
	started         map[types.UID]bool // pods
	err             error
}

// setDay sets the scene of one way: at zero, with no user.
func setDay(t *testing.T, w way, trace arrivals.Trace, length, within time.Duration) *dayRun {
	loading := max(5*time.Second, length/240)
	stabilization := max(15*time.Second, length/120)
	s := begin(t, setting{name: "day-" + w.name, fixture: "h100x8-uneven", replicas: 0, node: ofWorkloads(), joins: true, within: within, workload: func(w *cluster.Workload) {
		w.Engine = fmt.Sprintf("--loading=%s --kv-tokens=9000 --max-running=32 --draining=29s", loading)
	}})
	d := &dayRun{story: s, gateway: s.gateway(), way: w, trace: trace, length: length, started: map[types.UID]bool{}}
	scaled := fmt.Sprintf(dayScaled, s.name, w.most, int(stabilization.Seconds()), s.node.Address) +
		strings.TrimPrefix(fmt.Sprintf(w.trigger, s.node.Address, d.gateway.engines), "\n")
	s.must(s.Apply(s.ctx, d.gateway.recipe["Service"]+"\n---\n"+scaled))
	s.eventually(w.name+" is Ready", s.condition("Ready", "True"))
	return d
}

// run has the users come, and counts until all are served and no pod is left.
func (d *dayRun) run() error {
	began := time.Now()
	served := make(chan error, 1)
	go func() { served <- llmload.Replay(d.ctx, d.gateway.url, d.trace, d.served) }()
	for at := time.Duration(0); at < d.length; at = time.Since(began) {
		wanted, _, err := d.look()
		if err != nil {
			return err
		}
		d.replicas = append(d.replicas, wanted)
		hour := time.Duration(float64(at) / float64(d.length) * float64(24*time.Hour))
		d.slept = d.slept || (hour > arrivals.SilentFrom && hour < arrivals.SilentTo && wanted == 0)
		time.Sleep(time.Until(began.Add(time.Duration(len(d.replicas)) * look)))
	}
	if err := <-served; err != nil {
		return err
	}
	slices.Sort(d.waits)
	return cluster.Until(d.ctx, func(context.Context) error {
		wanted, pods, err := d.look()
		if err == nil && wanted+pods > 0 {
			err = fmt.Errorf("%d replicas, %d pods", wanted, pods)
		}
		return err
	})
}

// served counts an answer.
func (d *dayRun) served(r llmload.Result) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if r.Err == nil {
		d.waits = append(d.waits, r.Wait)
	} else if d.failed++; d.failed == 1 {
		d.failure = r.Err
	}
}

// look counts replicas and pods, from the watch.
func (d *dayRun) look() (wanted, there int, err error) {
	wanted, _, err = d.Replicas(d.ctx)
	if err != nil {
		return 0, 0, err
	}
	pods, err := d.Pods(d.ctx)
	if err != nil {
		return 0, 0, err
	}
	loading := false
	for i := range pods {
		loading = loading || pods[i].DeletionTimestamp == nil && !cluster.Serves(&pods[i])
		d.started[pods[i].UID] = true
	}
	now := time.Now()
	switch {
	case d.looked.IsZero():
	case wanted > d.wanted && d.wanted == 0:
		d.woken++
	case wanted > d.wanted && loading:
		d.cascades++
	}
	if !d.looked.IsZero() {
		d.gpuTime += time.Duration(len(pods)) * now.Sub(d.looked)
	}
	d.looked, d.wanted = now, wanted
	return wanted, len(pods), nil
}

// wait is a quantile of the time to the first token.
func (d *dayRun) wait(quantile float64) time.Duration {
	if len(d.waits) == 0 {
		return 0
	}
	return d.waits[int(quantile*float64(len(d.waits)-1))]
}

// dayTable is what the documentation has.
func dayTable(runs []*dayRun) string {
	var b strings.Builder
	b.WriteString("| scaled by | GPU time | time to first token, p50 | p95 | p99 | pods started | more asked for while pods load | failed |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n")
	for _, r := range runs {
		fmt.Fprintf(&b, "| %s | %.2f h | %.2f s | %.1f s | %.1f s | %d | %d times | %d |\n", r.way.title, r.gpuTime.Hours(),
			r.wait(0.5).Seconds(), r.wait(0.95).Seconds(), r.wait(0.99).Seconds(), len(r.started), r.cascades, r.failed)
	}
	return b.String()
}

// dayPlot draws the replicas over the hours of the day, and the rate of arrivals.
func dayPlot(runs []*dayRun) string {
	day := arrivals.Day(dayRate)
	var rate []float64
	for i := range runs[0].replicas {
		rate = append(rate, day.At(time.Duration(float64(i)*float64(look)/float64(runs[0].length)*float64(24*time.Hour)))/2)
	}
	curves := []curve{{rate, false, "#999", `stroke-dasharray="4 3"`, "requests/s, halved"}}
	for _, r := range slices.Backward(runs) { // ours on top
		curves = append(curves, curve{floats(r.replicas), true, r.way.color, `stroke-width="1.5"`, r.way.title})
	}
	return plot(axis{"0:00", "4:00", "8:00", "12:00", "16:00", "20:00", "24:00"}, curves...)
}
