package oracle

import (
	"fmt"
	"log/slog"
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpuscaler/profiles"
	"gpuscaler/scaler/attribution"
	"gpuscaler/scaler/evaluate"
	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/pod"
	"gpuscaler/scaler/trigger"
	"gpuscaler/shared/snapshot"
)

func thousandths(v float64) int64 { return int64(math.Round(v * 1000)) }

// gpuscaler decides for a situation: all the way from the readers' messages and the API
// server's pods.
func (s *situation) gpuscaler(t *testing.T) (evaluate.Decision, error) {
	t.Helper()
	now := time.Now()
	local := fleet.NewLocal(here, time.Minute, slog.New(slog.DiscardHandler), ago(60))
	s.read(t, local)
	w := evaluate.Workload{
		Name: "ScaledObject shop/llm", Namespace: namespace, Selector: s.selector(), Spec: s.spec, Status: s.status, Told: now,
		TargetType: trigger.AverageValue, ScaleUpTolerance: s.up, ScaleDownTolerance: s.down,
	}
	if s.value {
		w.TargetType = trigger.Value
	}
	if s.groups {
		w.Sets = []string{set}
	}
	var onNode []fleet.Pod
	var ended []attribution.Pod
	allocation := &snapshot.Allocation{}
	for i := range s.pods {
		p := &s.pods[i]
		o := s.object(p)
		if p.device >= 0 && p.node == here {
			allocation.Containers = append(allocation.Containers, snapshot.Container{
				Namespace: namespace, Pod: p.name, Name: "engine", Plugin: []snapshot.PluginDevices{{Resource: "nvidia.com/gpu", IDs: []string{fmt.Sprintf("%s::%d", id(p.device), i)}}},
			})
		}
		if pod.Ended(o) {
			ended = append(ended, attribution.Pod{Namespace: namespace, Name: p.name})
			continue
		}
		if p.node == here { // as scaler/pods has it
			d := pod.Describe(o)
			if first, known := s.firstReady(p); s.watched && known {
				d.WasReady, d.FirstReady = true, ago(first)
			}
			onNode = append(onNode, d)
		}
		if p.replica >= 0 { // as scaler/workload has it
			d := pod.Describe(o)
			d.Plain, d.Labels = pod.Plain(o), nil
			w.Pods = append(w.Pods, &d)
		}
	}
	require.NoError(t, local.Connect().Apply(&snapshot.Sample{Writer: "podresources", Allocation: allocation}, now))
	local.SetPods(onNode, now, ended...)
	parsed, err := trigger.Parse(map[string]string{
		"metricType": "gpu_utilization", "window": s.window.String(), "targetValue": fmt.Sprint(s.target), "aggregation": s.aggregation,
	}, profiles.Builtin())
	require.NoError(t, err)
	return evaluate.ForWorkload(&parsed, fleet.New(local), &w, now, evaluate.Limits{
		StaleAfter: time.Minute, AttributionStaleAfter: time.Minute, Tolerance: defaultTolerance,
	})
}

func id(device int) string { return fmt.Sprint("GPU-", device) }

// read gives the node its readings: one a second, for as long as the window needs. A
// device of a single pod is at 100 % until the pod became ready first: it loads.
func (s *situation) read(t *testing.T, local *fleet.Local) {
	t.Helper()
	owners, loads := make([]int, len(s.devices)), make([]int, len(s.devices))
	for i := range s.pods {
		p := &s.pods[i]
		if p.device < 0 {
			continue
		}
		owners[p.device]++
		leader := p
		if p.replica >= 0 {
			leader = &s.pods[s.replicas[p.replica][0]]
		}
		if first, known := s.firstReady(leader); known {
			loads[p.device] = first
		} else {
			loads[p.device] = math.MaxInt // not known
		}
	}
	reader := local.Connect()
	for at := s.sampled + int(s.window.Seconds()); at >= s.sampled; at-- {
		sample := &snapshot.Sample{Writer: "nvmlsidecar"}
		for i, d := range s.devices {
			percent := d.percent
			if owners[i] == 1 && at > loads[i] {
				percent = 100
			}
			device := snapshot.Device{ID: id(i), Vendor: "nvidia", Model: "NVIDIA H200", Index: i, Values: map[string]float64{"gpu_utilization": percent}}
			if d.silent && at == s.sampled {
				device.Values, device.Error = nil, "GPU_IS_LOST"
			}
			sample.Devices = append(sample.Devices, device)
		}
		require.NoError(t, reader.Apply(sample, ago(at)))
	}
}
