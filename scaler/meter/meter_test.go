package meter

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/scaler/fleet"
	"gpuscaler/shared/fixture"
	"gpuscaler/shared/snapshot"
)

// lab is a node that plays a recording, at a pace of the test's own.
type lab struct {
	*testing.T
	meter   *Meter
	local   *fleet.Local
	devices *fleet.Source
	kubelet *fleet.Source
	start   time.Time
	at      time.Duration
}

func newLab(t *testing.T) *lab {
	l := &lab{T: t, meter: New(time.Minute), start: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	l.local = fleet.NewLocal("node-1", 10*time.Second, slog.New(slog.DiscardHandler), l.start)
	l.local.Observe(l.meter.Observe)
	l.devices, l.kubelet = l.local.Connect(), l.local.Connect()
	return l
}

func (l *lab) now() time.Time { return l.start.Add(l.at) }

// hold has pods hold devices: "namespace/deployment/pod" by the ids.
func (l *lab) hold(held map[[3]string][]string) {
	l.Helper()
	var pods []fleet.Pod
	a := &snapshot.Allocation{}
	for p, ids := range held {
		pods = append(pods, fleet.Pod{Namespace: p[0], Name: p[2], UID: p[0] + p[2], Node: "node-1", Owner: fleet.Owner{Kind: "Deployment", Name: p[1]}})
		a.Containers = append(a.Containers, snapshot.Container{
			Namespace: p[0], Pod: p[2], Name: "engine", Plugin: []snapshot.PluginDevices{{Resource: "nvidia.com/gpu", IDs: ids}},
		})
	}
	l.local.SetPods(pods, l.now())
	require.NoError(l, l.kubelet.Apply(&snapshot.Sample{Writer: "podresources", Allocation: a}, l.now()))
}

func (l *lab) play(s *snapshot.Sample) {
	l.Helper()
	l.at = s.Elapsed
	require.NoError(l, l.devices.Apply(s, l.now()))
}

// addsUp checks that all parts are the devices together, exactly, of what instances do
// not tell of themselves.
func (l *lab) addsUp(totals ...int) *Reading {
	l.Helper()
	r := l.meter.Read()
	for _, i := range totals {
		var devices, pods, parts int64
		for _, d := range r.Devices {
			devices += d.Totals[i]
		}
		devices += r.Gone[i]
		for _, w := range r.Workloads {
			parts += w.Totals[i]
		}
		for _, p := range r.Pods {
			pods += p.Totals[i]
		}
		require.Equal(l, devices, parts+r.Unheld[i]+r.Unknown[i]+r.Expired[i], "%s after %v", fleet.Integrated[i], l.at)
		require.LessOrEqual(l, pods, parts+r.Expired[i])
	}
	return r
}

// TestHour: joules per namespace over a replayed hour match the recording's energy
// counters, with shared GPUs, MIG, and pods that come and go.
func TestHour(t *testing.T) {
	f, err := fixture.Load("../../testdata/h200-mig.csv")
	require.NoError(t, err)
	const whole = "GPU-168ec194-bdb8-52fa-9a9b-1b92114318b2"
	const llm, server, jobs = "MIG-ef78f8da-c8b5-596e-a0c2-2cc4d2b9f566", "MIG-9ac4d5a9-2a2e-54ae-a1c7-65db7bd34f9a", "MIG-7ca9245f-3ffb-5719-8e0b-7de51c3a80c7"
	scenes := []struct {
		from int // in seconds
		held map[[3]string][]string
	}{
		{0, nil},
		{100, map[[3]string][]string{{"a", "llm", "llm-1"}: {llm}}},
		{900, map[[3]string][]string{{"a", "llm", "llm-1"}: {llm}, {"b", "web", "web-1"}: {server}, {"b", "web", "web-2"}: {server}, {"c", "train", "train-1"}: {whole}}},
		{1500, map[[3]string][]string{{"a", "llm", "llm-1"}: {llm}, {"b", "web", "web-3"}: {jobs}, {"c", "train", "one-1"}: {whole + "::0", whole + "::1"}, {"d", "two", "two-1"}: {whole + "::2"}}},
		{3000, map[[3]string][]string{{"d", "two", "two-1"}: {whole}}},
	}
	// holders are the namespaces of the pods that hold a piece of a GPU now, one for each
	// pod; the recording takes two of the instances away for half of each period.
	holders := func(gpu string, s *snapshot.Sample, held map[[3]string][]string) (all []string) {
		for pod, ids := range held {
			id, _, _ := strings.Cut(ids[0], "::")
			if slices.ContainsFunc(s.Devices, func(d snapshot.Device) bool { return d.ID == id && (d.ID == gpu || d.Parent == gpu) }) {
				all = append(all, pod[0])
			}
		}
		if len(all) == 0 {
			return []string{""}
		}
		return all
	}
	type owners map[string]float64
	l := newLab(t)
	want := owners{}
	counter := map[string]float64{}
	scene := -1
	for n := 0; ; n++ {
		s := f.At(n)
		if s.Elapsed > time.Hour {
			break
		}
		if scene+1 < len(scenes) && s.Elapsed >= time.Duration(scenes[scene+1].from)*time.Second {
			scene++
			l.hold(scenes[scene].held)
		} else if n%10 == 0 {
			l.hold(scenes[scene].held) // as the kubelet is asked
		}
		l.play(&s)
		for _, d := range s.Devices {
			joules, ok := d.Counters["energy_joules"]
			if !ok {
				continue
			}
			if before, ok := counter[d.ID]; ok {
				all := holders(d.ID, &s, scenes[scene].held)
				for _, namespace := range all {
					want[namespace] += (joules - before) / float64(len(all))
				}
			}
			counter[d.ID] = joules
		}
		l.addsUp(fleet.Power)
	}
	r := l.addsUp(fleet.Power)
	got := owners{"": joulesOf(r.Unheld)}
	for _, w := range r.Workloads {
		got[w.Namespace] += joulesOf(w.Totals)
	}
	require.Len(t, got, len(want))
	for namespace, joules := range want {
		require.Greater(t, joules, 1000.0, namespace)
		assert.InEpsilon(t, joules, got[namespace], 0.005, "namespace %q", namespace)
	}
	assert.Zero(t, r.Unknown[fleet.Power]+r.Expired[fleet.Power])
}

func joulesOf(t fleet.Totals) float64 { return float64(t[fleet.Power]) / fleet.Fine }

// TestAddsUp: whatever devices, pods and readers do, the parts are the whole.
func TestAddsUp(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	l := newLab(t)
	devices := make([]snapshot.Device, 4)
	for i := range devices {
		devices[i] = snapshot.Device{ID: fmt.Sprint("GPU-", i), Vendor: "nvidia", Index: i, Counters: map[string]float64{"energy_joules": 1e6 * r.Float64()}}
	}
	for second := range 2000 {
		sample := &snapshot.Sample{Writer: "test", Elapsed: time.Duration(second+1) * time.Second}
		for i := range devices {
			d := devices[i]
			d.Values = map[string]float64{"gpu_utilization": float64(r.IntN(3)) * 33, "power_draw": 700 * r.Float64()}
			devices[i].Counters = map[string]float64{"energy_joules": devices[i].Counters["energy_joules"] + 700*r.Float64()}
			switch r.IntN(200) {
			case 0:
				continue // it is gone for a moment
			case 1:
				devices[i].Counters["energy_joules"] = r.Float64() // the driver was loaded anew
			case 2:
				d.Values, d.Counters, d.Error = nil, nil, "GPU is lost"
			}
			if d.Error == "" && i != 3 { // the last has no counter
				d.Counters = devices[i].Counters
			} else {
				d.Counters = nil
			}
			sample.Devices = append(sample.Devices, d)
		}
		l.play(sample)
		if r.IntN(20) == 0 {
			held := map[[3]string][]string{}
			for p := range r.IntN(6) {
				name := fmt.Sprint("w", r.IntN(3000))
				held[[3]string{fmt.Sprint("ns", p), name, name}] = []string{fmt.Sprintf("GPU-%d::%d", r.IntN(4), p)}
			}
			l.hold(held)
		}
		l.addsUp(fleet.Power, fleet.Utilization)
	}
	reading := l.meter.Read()
	assert.LessOrEqual(t, len(reading.Workloads), maxWorkloads)
	assert.Positive(t, reading.Unheld[fleet.Power])
	assert.Positive(t, reading.Unknown[fleet.Power], "the kubelet was silent for over a minute at times")
	assert.Positive(t, reading.Expired[fleet.Power])
}

// sample is one of a GPU that a pod holds.
func (l *lab) sample(second int, values map[string]float64, joules float64, change ...func(*snapshot.Device)) {
	l.Helper()
	d := snapshot.Device{ID: "GPU-0", Vendor: "nvidia", Values: values, Counters: map[string]float64{"energy_joules": joules}}
	for _, c := range change {
		c(&d)
	}
	l.at = time.Duration(second) * time.Second
	l.hold(map[[3]string][]string{{"a", "llm", "llm-1"}: {"GPU-0"}})
	l.play(&snapshot.Sample{Writer: "w", Elapsed: l.at, Devices: []snapshot.Device{d}})
}

func busy() map[string]float64 {
	return map[string]float64{"gpu_utilization": 90, "power_draw": 700}
}

// What was used while nothing was read is not lost, nobody's, and not idle.
func TestGap(t *testing.T) {
	l := newLab(t)
	l.sample(1, busy(), 1000)
	l.sample(2, busy(), 1700)
	l.sample(62, busy(), 43700) // the sidecar was away
	l.sample(63, busy(), 44400)
	r := l.addsUp(fleet.Power)
	require.Len(t, r.Workloads, 1)
	assert.InDelta(t, 1400, joulesOf(r.Workloads[0].Totals), 0.01)
	assert.InDelta(t, 42000, joulesOf(r.Unknown), 0.01)
	assert.Zero(t, r.Workloads[0].Idle)
}

// A device that cannot be read for a while goes on with its counter.
func TestErrorKeepsTheCounter(t *testing.T) {
	l := newLab(t)
	l.sample(1, busy(), 1000)
	l.sample(2, busy(), 1700)
	for second := 3; second < 8; second++ {
		l.sample(second, nil, 0, func(d *snapshot.Device) { d.Counters, d.Error = nil, "not found" })
	}
	l.sample(8, busy(), 5900)
	r := l.addsUp(fleet.Power)
	assert.InDelta(t, 4900, joulesOf(r.Workloads[0].Totals), 0.01)
}

// Idle is what was read as such: not a utilization that cannot be.
func TestIdle(t *testing.T) {
	l := newLab(t)
	idle := map[string]float64{"gpu_utilization": 0, "power_draw": 70}
	l.sample(1, idle, 1000)
	l.sample(2, idle, 1070)
	l.sample(3, busy(), 1770)
	l.sample(4, map[string]float64{"power_draw": 700}, 2470, func(d *snapshot.Device) { d.Failed = map[string]string{"gpu_utilization": "no"} })
	l.sample(5, map[string]float64{"power_draw": 700}, 3170) // it has none any more
	r := l.addsUp(fleet.Power)
	assert.InDelta(t, 2170, joulesOf(r.Workloads[0].Totals), 0.01)
	assert.InDelta(t, 70, float64(r.Workloads[0].Idle)/fleet.Fine, 0.01)
	assert.False(t, r.Devices[0].Device.HasTotal[fleet.Utilization])
}

// Nothing is made up for the time before the first reading, nor counted twice when a
// counter advances late.
func TestBeginning(t *testing.T) {
	l := newLab(t)
	l.sample(6, busy(), 1000)
	r := l.addsUp(fleet.Power)
	assert.Zero(t, joulesOf(r.Devices[0].Totals))
	l.sample(7, busy(), 1000) // stands still
	l.sample(8, busy(), 2400)
	l.sample(9, busy(), 3100)
	r = l.addsUp(fleet.Power)
	assert.InDelta(t, 2100, joulesOf(r.Devices[0].Totals), 0.01)
}

// A counter is enough, whenever its device is found: power may not be readable.
func TestCounterAlone(t *testing.T) {
	l := newLab(t)
	utilization := map[string]float64{"gpu_utilization": 90}
	l.sample(100, utilization, 1000)
	l.sample(101, utilization, 1700)
	l.sample(102, utilization, 2400)
	r := l.addsUp(fleet.Power)
	assert.InDelta(t, 1400, joulesOf(r.Workloads[0].Totals), 0.01)
	assert.Zero(t, r.Unknown[fleet.Power])

	l.sample(103, busy(), 3100)
	l.sample(104, busy(), 0, func(d *snapshot.Device) { d.Counters = nil }) // it is no more
	l.sample(105, busy(), 0, func(d *snapshot.Device) { d.Counters = nil })
	r = l.addsUp(fleet.Power)
	assert.InDelta(t, 3500, joulesOf(r.Workloads[0].Totals), 0.01)
}

// A writer that makes up new devices in each sample costs no more than so many, and
// all of their energy is still somewhere.
func TestDevicesAreBounded(t *testing.T) {
	l := newLab(t)
	for second := range 200 {
		sample := &snapshot.Sample{Writer: "hostile", Elapsed: time.Duration(second+1) * time.Second}
		for i := range 100 {
			sample.Devices = append(sample.Devices, snapshot.Device{
				ID: fmt.Sprint("GPU-", second/2, "-", i), Vendor: "nvidia", Values: map[string]float64{"power_draw": 100}, // each is there twice
			})
		}
		l.play(sample)
		require.LessOrEqual(t, len(l.addsUp(fleet.Power).Devices), maxDevices+100)
	}
	r := l.addsUp(fleet.Power)
	assert.Positive(t, r.Gone[fleet.Power])
	assert.InDelta(t, 100*100*100, joulesOf(r.Unknown), 1)
}

// A StatefulSet's pod that takes the place of another goes on where that stopped, and a
// device that is gone keeps its sums for a while.
func TestWhatComesBack(t *testing.T) {
	l := newLab(t)
	gpu := snapshot.Device{ID: "GPU-0", Vendor: "nvidia", Values: map[string]float64{"power_draw": 100}}
	second := 0
	play := func(seconds int, devices ...snapshot.Device) {
		for range seconds {
			second++
			l.play(&snapshot.Sample{Writer: "w", Elapsed: time.Duration(second) * time.Second, Devices: devices})
			l.hold(map[[3]string][]string{{"a", "db", "db-0"}: {"GPU-0"}})
			l.addsUp(fleet.Power)
		}
	}
	play(11, gpu)
	l.local.SetPods([]fleet.Pod{{Namespace: "a", Name: "db-0", UID: "another", Node: "node-1", Owner: fleet.Owner{Kind: "Deployment", Name: "db"}}}, l.now())
	play(10, gpu)
	play(5)
	play(11, gpu) // found again: begins anew
	r := l.meter.Read()
	require.Len(t, r.Pods, 1)
	require.Len(t, r.Devices, 1)
	assert.InDelta(t, 3000, joulesOf(r.Devices[0].Totals), 0.01)
	assert.InDelta(t, 3000, joulesOf(r.Pods[0].Totals)+joulesOf(r.Unknown), 0.01)
}
