package fleet

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/scaler/attribution"
	"gpuscaler/scaler/window"
	"gpuscaler/shared/snapshot"
)

// reads is one metric with a mean over each window, and for how much of them, in seconds.
func reads(metric string, means window.Means, seconds ...int) Readings {
	var c window.Coverage
	for i, s := range seconds {
		c[i] = time.Duration(s) * time.Second
	}
	if seconds == nil {
		c = window.Whole
	}
	return readingsOf(map[string]measured{metric: {means, c}})
}

// What lacks of a window is from right before the restart.
func TestComplete(t *testing.T) {
	const u = "gpu_utilization"
	before := reads(u, window.Means{90, 80, 70, 60})
	for name, c := range map[string]struct {
		now, before Readings
		want        window.Means
		covered     window.Coverage
	}{
		"nothing lacks":                   {reads(u, window.Means{1, 2, 3, 4}), before, window.Means{1, 2, 3, 4}, window.Whole},
		"nothing was before":              {reads(u, window.Means{10, 10, 10, 10}, 0, 5, 5, 5), Readings{}, window.Means{10, 10, 10, 10}, window.Coverage{0, 5e9, 5e9, 5e9}},
		"another metric was":              {reads(u, window.Means{10, 10, 10, 10}, 0, 5, 5, 5), reads("temperature", window.Means{}), window.Means{10, 10, 10, 10}, window.Coverage{0, 5e9, 5e9, 5e9}},
		"right after the restart":         {reads(u, window.Means{10, 10, 10, 10}, 0, 0, 0, 0), before, window.Means{10, 80, 70, 60}, window.Whole},
		"a third of the shortest":         {reads(u, window.Means{10, 10, 10, 10}, 0, 5, 5, 5), before, window.Means{10, (5*10 + 10*80) / 15.0, (5*10 + 55*70) / 60.0, (5*10 + 295*60) / 300.0}, window.Whole},
		"10 s lack of a minute: the 15 s": {reads(u, window.Means{10, 10, 10, 10}, 0, 15, 50, 50), before, window.Means{10, 10, (50*10 + 10*80) / 60.0, (50*10 + 250*60) / 300.0}, window.Whole},
		"40 s lack of 5 minutes: the minute": {reads(u, window.Means{10, 10, 10, 10}, 0, 15, 60, 260), before,
			window.Means{10, 10, 10, (260*10 + 40*70) / 300.0}, window.Whole},
		"what was before was short": {reads(u, window.Means{10, 10, 10, 10}, 0, 5, 5, 5), reads(u, window.Means{90, 80, 80, 80}, 0, 8, 8, 8),
			window.Means{10, (5*10 + 8*80) / 13.0, (5*10 + 8*80) / 13.0, (5*10 + 8*80) / 13.0}, window.Coverage{0, 13e9, 13e9, 13e9}},
	} {
		done := c.now.Complete(c.before)
		means, ok := done.Get(u)
		require.True(t, ok, name)
		for w := range means {
			assert.InDelta(t, c.want[w], means[w], 1e-9, "%s: %v", name, window.Windows[w])
		}
		assert.Equal(t, c.covered, done.Coverage(0), name)
		assert.Equal(t, c.covered == window.Whole, done.Whole(), name)
	}
}

// restarted is a node as a peer reports it, with one device and one pod on it.
func restarted(boot uint64, s float64, means Readings, young Readings, firstReady float64) *Node {
	p := &Pod{Namespace: "shop", Name: "a", UID: "a", Node: "n", Started: at(-400), Ready: firstReady <= s, WasReady: firstReady <= s,
		Holding: attribution.Holding{Shares: []attribution.Share{{Device: "GPU-0", GPU: "GPU-0", Holders: 1, GPUHolders: 1}}}}
	if p.Ready {
		p.FirstReady = at(firstReady)
	}
	d := Device{ID: "GPU-0", Vendor: "nvidia", Heard: at(s)}
	return Node{Name: "n", Boot: boot, Heard: at(s), Allocated: at(s), PodsKnown: true, Devices: []*Device{d.Describe(means, nil)}}.
		With(NewPods([]*Pod{p}, nil, nil)).WithYoung(map[string][]Readings{"a": {young}})
}

func mean(t *testing.T, f *Fleet, w time.Duration) (device, young float64) {
	t.Helper()
	n := f.Node("n")
	device, _, ok := n.Device("GPU-0").Readings().Mean("gpu_utilization", w)
	require.True(t, ok)
	of, ok := n.Young(n.Pods[0], "GPU-0")
	require.True(t, ok)
	young, _, ok = of.Mean("gpu_utilization", w)
	require.True(t, ok)
	return device, young
}

// A scaler that restarts twice within its windows has been received whole before the
// first, and completed before the second.
func TestTwoRestarts(t *testing.T) {
	const u = "gpu_utilization"
	all := func(v float64) window.Means { return window.Means{v, v, v, v} }
	f := New(nil)
	p := f.Join("n")
	tell(t, p, restarted(1, 0, reads(u, all(80)), reads(u, all(80)), -200), true)
	tell(t, p, restarted(2, 10, reads(u, all(0), 0, 5, 5, 5), reads(u, all(0), 0, 5, 5, 5), -200), true)
	device, young := mean(t, f, time.Minute)
	assert.InDelta(t, 80*55/60.0, device, 1e-9)
	assert.InDelta(t, 80*55/60.0, young, 1e-9)
	tell(t, p, restarted(3, 20, reads(u, all(0), 0, 5, 5, 5), reads(u, all(0), 0, 5, 5, 5), -200), true)
	device, _ = mean(t, f, time.Minute)
	assert.InDelta(t, 80*55/60.0*55/60, device, 1e-9, "by what the second had, completed by the first")
	assert.True(t, f.Node("n").Device("GPU-0").Readings().Whole())
	tell(t, p, restarted(3, 400, reads(u, all(0), 0, 15, 60, 200), reads(u, all(0), 0, 15, 60, 200), -200), true)
	assert.False(t, f.Node("n").Device("GPU-0").Readings().Whole(), "five minutes after the restart nothing from before it is of use")
}

// An older version does not say that it was restarted, and nothing from long ago counts.
func TestRestartUnknown(t *testing.T) {
	const u = "gpu_utilization"
	high, none := reads(u, window.Means{80, 80, 80, 80}), reads(u, window.Means{}, 0, 5, 5, 5)
	for name, c := range map[string]struct {
		boot uint64
		at   float64
	}{"its version does not say": {0, 10}, "the same process": {1, 10}, "silent for longer than any window": {2, 301}} {
		f := New(nil)
		p := f.Join("n")
		tell(t, p, restarted(1, 0, high, high, -200), true)
		tell(t, p, restarted(c.boot, c.at, none, none, -200), true)
		device, _ := mean(t, f, time.Minute)
		assert.Zero(t, device, name)
	}
}

// What was received a while before the restart says nothing of the time since.
func TestRestartAfterSilence(t *testing.T) {
	const u = "gpu_utilization"
	high, now := reads(u, window.Means{80, 80, 80, 80}), reads(u, window.Means{}, 0, 5, 5, 5)
	for silent, want := range map[float64][3]float64{
		10: {80 * 10 / 15.0, 80 * 55 / 60.0, 80 * 295 / 300.0},
		40: {0, 80 * 20 / 25.0, 80 * 260 / 265.0},
		90: {0, 0, 80 * 210 / 215.0},
	} {
		f := New(nil)
		p := f.Join("n")
		tell(t, p, restarted(1, 0, high, high, -500), true)
		tell(t, p, restarted(2, silent, now, now, -500), true)
		for w, want := range want {
			device, young := mean(t, f, window.Windows[w+1])
			assert.InDelta(t, want, device, 1e-9, "%v s, %v", silent, window.Windows[w+1])
			assert.InDelta(t, want, young, 1e-9)
		}
	}
}

// A pod that loaded when its node's scaler restarted, and is ready now, has not the
// readings of its loading in its window.
func TestRestartWhileAPodLoads(t *testing.T) {
	const u = "gpu_utilization"
	high := reads(u, window.Means{100, 100, 100, 100})
	idle := reads(u, window.Means{}, 0, 5, 5, 5)
	f := New(nil)
	p := f.Join("n")
	tell(t, p, restarted(1, 0, high, high, 1000), true)
	tell(t, p, restarted(2, 10, idle, idle, 5), true)
	_, young := mean(t, f, 15*time.Second)
	assert.Zero(t, young)
	of, _ := f.Node("n").Young(f.Node("n").Pods[0], "GPU-0")
	_, covered, _ := of.Mean(u, 15*time.Second)
	assert.Equal(t, 5*time.Second, covered, "and has not as many as it needs")
}

// What others received before is of use for as long as the longest window, and what was
// recalled first stays.
func TestRecall(t *testing.T) {
	l := newLocal()
	before := reads("temperature", window.Means{80, 80, 80, 80})
	l.Recall(map[string]Readings{"GPU-0": before})
	l.Recall(map[string]Readings{"GPU-0": reads("temperature", window.Means{10, 10, 10, 10}), "GPU-1": before})
	s := l.Connect()
	for now := range 320 {
		require.NoError(t, apply(t, s, "w", float64(now), float64(now), gpu(0, values{"temperature": 20}), gpu(1, values{"temperature": 20})))
		switch now {
		case 0:
			assert.InDelta(t, 80, value(t, l, "GPU-0", "temperature", time.Minute), 1e-9, "by the first")
			assert.InDelta(t, 80, value(t, l, "GPU-1", "temperature", time.Minute), 1e-9)
		case 30:
			assert.InDelta(t, 50, value(t, l, "GPU-0", "temperature", time.Minute), 1e-9)
			assert.InDelta(t, 20, value(t, l, "GPU-0", "temperature", 15*time.Second), 1e-9)
		case 299:
			assert.InDelta(t, 20, value(t, l, "GPU-0", "temperature", 5*time.Minute), 0.3)
		}
	}
	assert.InDelta(t, 20, value(t, l, "GPU-0", "temperature", 5*time.Minute), 0)
	// A device that is found after the longest window is not completed at all.
	l.Recall(map[string]Readings{"GPU-2": before})
	require.NoError(t, s.Apply(&snapshot.Sample{Writer: "w", Elapsed: elapsed(321), Devices: []snapshot.Device{gpu(2, values{"temperature": 20})}}, at(321)))
	assert.InDelta(t, 20, value(t, l, "GPU-2", "temperature", time.Minute), 0)
}

// A peer that calls its node another name with each message leaves nothing behind.
func TestRenamedNodes(t *testing.T) {
	f := New(nil)
	p := f.Join("p")
	for i := range 100 {
		n := heard(fmt.Sprint("n", i), float64(i))
		n.Boot = 1
		_, _, err := p.Apply(n)
		require.NoError(t, err)
	}
	assert.Len(t, f.Nodes(), 1)
	assert.Empty(t, f.past)
}
