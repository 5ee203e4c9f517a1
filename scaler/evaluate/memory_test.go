package evaluate

import (
	"fmt"
	"maps"
	"testing"

	"github.com/stretchr/testify/assert"
)

var vllm = metadata{"profile": "vllm-inference"}

// Engines reserve their memory at start. Idle ones never ask for more, and go to zero;
// busy ones hold.
func TestFlatMemory(t *testing.T) {
	for replicas := 1; replicas <= 8; replicas++ {
		s := tell(t)
		var pods []podOn
		for i := range replicas {
			s.reads = append(s.reads, constant(0, 90))
			pods = append(pods, llm(fmt.Sprint("p", i), id(i)))
		}
		s.place(pods...)
		s.until(20)
		d := s.must(vllm)
		assert.Equal(t, replicas, d.Replicas.Desired, "five minutes are not known yet: hold")
		assert.True(t, d.Active)
		assert.Zero(t, d.Flat)
		s.until(301)
		d = s.must(vllm)
		assert.Zero(t, d.Replicas.Desired, "idle for five minutes")
		assert.False(t, d.Active)
		assert.Equal(t, replicas, d.Flat)
		assert.Equal(t, FlatSignal, d.Notices[len(d.Notices)-1].Reason)
	}
}

func TestMemory(t *testing.T) {
	wave := func(low, high float64) func(int) values {
		return func(second int) values {
			return values{"gpu_utilization": 60, "memory_used_percent": low + (high-low)*float64(second%20)/20}
		}
	}
	stops := func(second int) values { // worked two minutes ago
		return values{"gpu_utilization": 50 * (1 - float64(min(1, second/200))), "memory_used_percent": 90}
	}
	flicker := func(second int) values { // a health check's request, 4 % as a mean
		return values{"gpu_utilization": 60 * float64(max(0, 1-second%15)), "memory_used_percent": 90}
	}
	loaded := func(second int) values { // one step
		return values{"gpu_utilization": 0, "memory_used_percent": 10 + 80*float64(min(1, second/200))}
	}
	for name, c := range map[string]struct {
		reads   []func(int) values
		pods    func() []podOn
		md      metadata
		seconds int
		want    int
		active  bool
		flat    int
	}{
		"memory that moves scales up":                    {reads: []func(int) values{wave(85, 99)}, want: 2, active: true},
		"and down":                                       {reads: []func(int) values{wave(20, 40), wave(20, 40)}, want: 1, active: true},
		"a busy engine with flat memory holds":           {reads: []func(int) values{constant(100, 90), constant(100, 90)}, want: 2, active: true, flat: 2},
		"flat and below the target holds while it works": {reads: []func(int) values{constant(100, 30), constant(100, 30), constant(100, 30)}, want: 3, active: true, flat: 3},
		"idle replicas go":                               {reads: []func(int) values{constant(100, 90), constant(0, 90), constant(0, 90)}, want: 1, active: true, flat: 3},
		"worked in the last five minutes":                {reads: []func(int) values{stops}, want: 1, active: false, flat: 1},
		"a loaded model is one step":                     {reads: []func(int) values{loaded}, want: 0, active: false, flat: 1},
		"a health check is no work":                      {reads: []func(int) values{flicker}, want: 0, active: false, flat: 1},
		"activationThreshold is in units of memory":      {reads: []func(int) values{constant(100, 90)}, md: metadata{"activationThreshold": "95"}, want: 1, active: true, flat: 1},
		"without gpu_utilization: the target, active":    {reads: []func(int) values{func(int) values { return values{"memory_used_percent": 95} }}, want: 1, active: true, flat: 1},
		"a sum over flat GPUs is the target, too":        {reads: []func(int) values{constant(100, 90), constant(100, 90)}, pods: func() []podOn { return []podOn{llm("a", id(0), id(1))} }, md: metadata{"aggregation": "sum"}, want: 1, active: true, flat: 1},
		"of a pod's GPUs those count whose memory moves": {reads: []func(int) values{constant(100, 99), wave(20, 40)}, pods: func() []podOn { return []podOn{llm("a", id(0), id(1))} }, want: 1, active: true},
		"memory of a shared GPU is flat":                 {reads: []func(int) values{wave(85, 99)}, pods: func() []podOn { return []podOn{llm("a", id(0)+"::0"), llm("b", id(0)+"::1")} }, want: 2, active: true, flat: 2},
		"a young pod counts as the target":               {reads: []func(int) values{constant(0, 95)}, pods: func() []podOn { return []podOn{llm("a", id(0)).since(100, 200)} }, want: 1, active: true},
		"in MiB, too": {reads: []func(int) values{func(int) values {
			return values{"gpu_utilization": 0, "memory_used_percent": 90, "memory_used_mib": 72000}
		}}, md: metadata{"profile": "", "metricType": "memory_used_mib", "targetValue": "40000"}, want: 0, active: false, flat: 1},
	} {
		t.Run(name, func(t *testing.T) {
			s := tell(t, c.reads...)
			var pods []podOn
			if c.pods != nil {
				pods = c.pods()
			} else {
				for i := range c.reads {
					pods = append(pods, llm(fmt.Sprint("p", i), id(i)))
				}
			}
			s.place(pods...)
			s.until(320)
			md := maps.Clone(vllm)
			maps.Copy(md, c.md)
			if md["profile"] == "" {
				delete(md, "profile")
			}
			d := s.must(md)
			assert.Equal(t, c.want, d.Replicas.Desired)
			assert.Equal(t, c.want, d.Replicas.Leads)
			assert.Equal(t, c.active, d.Active)
			assert.Equal(t, c.flat, d.Flat)
		})
	}
}
