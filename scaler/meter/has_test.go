package meter

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"gpuscaler/scaler/fleet"
	"gpuscaler/shared/snapshot"
)

// A total exists only where a device reported it: a vGPU guest has no power, an A100 in MIG
// mode no utilization.
func TestHas(t *testing.T) {
	neither := map[string]float64{"memory_used_mib": 1024}
	power := map[string]float64{"power_draw": 70}
	both := map[string]float64{"power_draw": 70, "gpu_utilization": 0}
	gpu := func(id string, values map[string]float64) snapshot.Device {
		return snapshot.Device{ID: id, Vendor: "nvidia", Values: values}
	}
	instance := func(id, of string, values map[string]float64) snapshot.Device {
		return snapshot.Device{ID: id, Vendor: "nvidia", Parent: of, Instance: 1, Values: values}
	}
	type has struct{ energy, utilization, idle bool }
	all := has{true, true, true}
	for name, c := range map[string]struct {
		held      []string // by the one pod
		before    []snapshot.Device
		after     []snapshot.Device // nil: as before
		want      has               // of the workload
		pods      map[string]has    // by device
		node      has               // of the node; idle is not shown
		unwatched bool              // nothing is known of who holds what
	}{
		"a device with neither": {
			held: []string{"GPU-0"}, before: []snapshot.Device{gpu("GPU-0", neither)}, pods: map[string]has{"GPU-0": {}},
		},
		"a device with both": {
			held: []string{"GPU-0"}, before: []snapshot.Device{gpu("GPU-0", both)}, want: all, pods: map[string]has{"GPU-0": all}, node: all,
		},
		"a device with power alone: whether it is idle is not known": {
			held: []string{"GPU-0"}, before: []snapshot.Device{gpu("GPU-0", power)},
			want: has{energy: true}, pods: map[string]has{"GPU-0": {energy: true}}, node: has{energy: true},
		},
		"a workload with one of each": {
			held: []string{"GPU-0", "GPU-1"}, before: []snapshot.Device{gpu("GPU-0", neither), gpu("GPU-1", both)},
			want: all, pods: map[string]has{"GPU-0": {}, "GPU-1": all}, node: all,
		},
		"what another workload holds": {
			held: []string{"GPU-0"}, before: []snapshot.Device{gpu("GPU-0", neither), gpu("GPU-1", both)},
			pods: map[string]has{"GPU-0": {}}, node: all,
		},
		"a device that loses both keeps what it has used": {
			held: []string{"GPU-0"}, before: []snapshot.Device{gpu("GPU-0", both)}, after: []snapshot.Device{gpu("GPU-0", neither)},
			want: all, pods: map[string]has{"GPU-0": all}, node: all,
		},
		"a device that has both from later on": {
			held: []string{"GPU-0"}, before: []snapshot.Device{gpu("GPU-0", neither)}, after: []snapshot.Device{gpu("GPU-0", both)},
			want: all, pods: map[string]has{"GPU-0": all}, node: all,
		},
		"an A100's instance: the GPU's power alone": {
			held: []string{"MIG-1"}, before: []snapshot.Device{gpu("GPU-0", power), instance("MIG-1", "GPU-0", neither)},
			want: has{energy: true}, pods: map[string]has{"GPU-0": {energy: true}, "MIG-1": {}}, node: has{energy: true},
		},
		"an instance whose neighbour alone reports utilization": {
			held:   []string{"MIG-1"},
			before: []snapshot.Device{gpu("GPU-0", both), instance("MIG-1", "GPU-0", neither), instance("MIG-2", "GPU-0", map[string]float64{"gpu_utilization": 5})},
			want:   has{energy: true}, pods: map[string]has{"GPU-0": {energy: true}, "MIG-1": {}}, node: all,
		},
		"a GPU that is lost": {
			held: []string{"GPU-0"}, before: []snapshot.Device{{ID: "GPU-0", Vendor: "nvidia", Error: "GPU is lost"}}, pods: map[string]has{"GPU-0": {}},
		},
		"who holds the device is not known": {
			unwatched: true, before: []snapshot.Device{gpu("GPU-0", both)}, node: all,
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t)
			if !c.unwatched {
				l.hold(map[[3]string][]string{{"a", "llm", "llm-1"}: c.held})
			}
			for second := range 6 {
				devices := c.before
				if second >= 3 && c.after != nil {
					devices = c.after
				}
				l.play(&snapshot.Sample{Writer: "w", Elapsed: time.Duration(second+1) * time.Second, Devices: devices})
			}
			of := func(s Sums) has { return has{s.Has[fleet.Power], s.Has[fleet.Utilization], s.HasIdle} }
			r := l.addsUp(fleet.Power)
			if !c.unwatched {
				assert.Len(t, r.Workloads, 1)
			}
			for _, w := range r.Workloads {
				assert.Equal(t, c.want, of(w.Sums))
			}
			pods := map[string]has{}
			for _, p := range r.Pods {
				pods[p.Device] = of(p.Sums)
			}
			if c.pods == nil {
				c.pods = map[string]has{}
			}
			assert.Equal(t, c.pods, pods)
			assert.Equal(t, c.node.energy, r.Has[fleet.Power], "the node's energy")
			assert.Equal(t, c.node.utilization, r.Has[fleet.Utilization], "the node's utilization")
		})
	}
}

// A pod that gets a GPU after it was lost, or while its reader is silent, has used
// something that nobody measured, and not 0 J.
func TestHasOfALatePod(t *testing.T) {
	l := newLab(t)
	ready := snapshot.Device{ID: "GPU-0", Vendor: "nvidia", Values: busy()}
	lost := snapshot.Device{ID: "GPU-0", Vendor: "nvidia", Error: "GPU is lost"}
	second := 0
	play := func(d snapshot.Device) {
		second++
		l.play(&snapshot.Sample{Writer: "w", Elapsed: time.Duration(second) * time.Second, Devices: []snapshot.Device{d}})
	}
	play(ready)
	play(ready)
	l.hold(map[[3]string][]string{{"a", "llm", "llm-1"}: {"GPU-0"}}) // the reader is silent
	assert.Equal(t, Has{}, l.meter.Read().Workloads[0].Has)
	play(lost)
	assert.Equal(t, Has{}, l.meter.Read().Workloads[0].Has)
	assert.True(t, l.meter.Read().Devices[0].Has[fleet.Power], "of the device it was measured")
	play(ready)
	r := l.meter.Read()
	assert.True(t, r.Workloads[0].Has[fleet.Power])
	assert.True(t, r.Pods[0].Has[fleet.Utilization])
}
