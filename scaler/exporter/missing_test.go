package exporter

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"gpuscaler/scaler/fleet"
	"gpuscaler/shared/snapshot"
)

// What no device reports has no series, and is no 0.
func TestNoFalseZeros(t *testing.T) {
	vgpu := func(i int) snapshot.Device {
		d := gpu(i, 0, 0, 0)
		d.Values = map[string]float64{"memory_used_mib": 1024}
		d.Counters = nil
		return d
	}
	a100 := gpu(1, 0, 300, 500)
	delete(a100.Values, "gpu_utilization")
	mig := instance(1, "GPU-1", 0)
	delete(mig.Values, "gpu_utilization")
	const energy, idle, busy = "gpuscaler_workload_energy_joules_total", "gpuscaler_workload_idle_energy_joules_total", "gpuscaler_workload_gpu_utilization_seconds_total"
	const podEnergy, podBusy = "gpuscaler_pod_gpu_energy_joules_total", "gpuscaler_pod_gpu_utilization_seconds_total"
	node := []string{"gpuscaler_unheld_energy_joules_total", "gpuscaler_unattributed_energy_joules_total", "gpuscaler_expired_energy_joules_total", "gpuscaler_gone_gpu_energy_joules_total"}
	of := []string{energy, idle, busy, podEnergy, podBusy}
	for name, c := range map[string]struct {
		held    []string
		devices []snapshot.Device
		later   []snapshot.Device // nil: the same
		want    map[string]int    // series by family; energy of the node is there where its devices have any
		energy  bool
	}{
		"a vGPU guest": {held: []string{"GPU-0"}, devices: []snapshot.Device{vgpu(0)}},
		"a GPU with both": {
			held: []string{"GPU-0"}, devices: []snapshot.Device{gpu(0, 0, 70, 100)},
			want: map[string]int{energy: 1, idle: 1, busy: 1, podEnergy: 1, podBusy: 1}, energy: true,
		},
		"an A100 in MIG mode": {
			held: []string{"MIG-1"}, devices: []snapshot.Device{a100, mig},
			want: map[string]int{energy: 1, podEnergy: 1}, energy: true,
		},
		"a workload with one of each": {
			held: []string{"GPU-0", "GPU-2"}, devices: []snapshot.Device{vgpu(0), gpu(2, 0, 70, 100)},
			want: map[string]int{energy: 1, idle: 1, busy: 1, podEnergy: 1, podBusy: 1}, energy: true,
		},
		"a GPU that loses both": {
			held: []string{"GPU-0"}, devices: []snapshot.Device{gpu(0, 0, 70, 100)}, later: []snapshot.Device{vgpu(0)},
			want: map[string]int{energy: 1, idle: 1, busy: 1, podEnergy: 1, podBusy: 1}, energy: true,
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			l.hold(map[string][]string{"a": c.held})
			l.say(57*time.Second, c.devices...)
			l.say(58*time.Second, c.devices...)
			if c.later != nil {
				c.devices = c.later
			}
			l.say(59*time.Second, c.devices...)
			all := l.families()
			for _, family := range of {
				assert.Len(t, all[family].GetMetric(), c.want[family], family)
			}
			for _, family := range node {
				_, there := all[family]
				assert.Equal(t, c.energy, there, family)
			}
		})
	}
}

// With no workload there is no age of what is known of workloads.
func TestNoWorkloads(t *testing.T) {
	l := newLab(t)
	l.handler = Handler(Options{Node: "front", Fleet: fleet.New(nil), Triggers: &triggers{}, Workloads: none{}, StaleAfter: time.Second})
	all := l.families()
	assert.Contains(t, all, "gpuscaler_workloads")
	assert.NotContains(t, all, "gpuscaler_workload_age_seconds")
}

type none struct{}

func (none) Health(time.Time) (known, failing int, oldest time.Duration) { return 0, 0, 0 }

// How many pods are flat or left out is said where the answer is about a workload's pods.
func TestFlatAndLeftOut(t *testing.T) {
	l := newLab(t)
	l.triggers = triggers{
		{Namespace: "shop", Name: "llm", MetricName: "m", Metric: "memory_used_percent", Target: 80, Known: true, Replicas: 4, Flat: 3, LeftOut: 1, At: time.Now()},
		{Namespace: "shop", Name: "fine", MetricName: "m", Metric: "memory_used_percent", Target: 80, Known: true, Replicas: 2, At: time.Now()},
		{Namespace: "shop", Name: "node", MetricName: "m", Metric: "memory_used_percent", Target: 80, Replicas: -1, At: time.Now()},
		{Namespace: "shop", Name: "failing", MetricName: "m", Metric: "memory_used_percent", Target: 80, Known: true, Failed: true, Replicas: -1, At: time.Now()},
	}
	f := l.families()
	for family, want := range map[string]map[string]float64{
		"gpuscaler_trigger_flat_pods": {"llm": 3, "fine": 0}, "gpuscaler_trigger_pods_left_out": {"llm": 1, "fine": 0},
	} {
		assert.Len(t, f[family].GetMetric(), 2, family)
		for name, pods := range want {
			got, n := sum(f[family], "namespace", "shop", "scaledobject", name, "metric_name", "m", "metric", "memory_used_percent")
			assert.Equal(t, 1, n, "%s of %s", family, name)
			assert.InDelta(t, pods, got, 0, "%s of %s", family, name)
		}
	}
}
