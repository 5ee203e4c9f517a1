package evaluate

import (
	"math"
	"slices"
	"time"

	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/window"
)

// gpuTruth is one device, or an instance of one.
type gpuTruth struct {
	id, parent string
	index      int
	instance   int
	memory     float64 // percent, once a model is loaded
	idle       float64 // gpu_utilization, percent
	without    []string
	lost       bool
	failing    string
	slots      int          // how many pods it may be allocated to
	others     int          // pods of other workloads that it is allocated to
	owners     int          // all that it is allocated to at the moment
	gpuOwners  func() int   // the same, of the GPU that it is an instance of
	loads      [][2]float64 // when a process loaded on it
}

const totalMiB = 80000

// reading is what a device reads at a second, of one metric; ok is false where it has none.
func (g *gpuTruth) reading(metric string, from, to float64) (v float64, ok bool) {
	if slices.Contains(g.without, metric) {
		return 0, false
	}
	load := 0.0 // the share of the time
	stepped := to
	if len(g.loads) > 0 {
		stepped = g.loads[0][0]
	}
	for _, l := range g.loads {
		load += max(0, min(to, l[1])-max(from, l[0]))
	}
	switch {
	case to > from:
		load /= to - from
	case len(g.loads) > 0 && slices.ContainsFunc(g.loads, func(l [2]float64) bool { return l[0] <= to && to < l[1] }):
		load = 1
	}
	switch metric {
	case "gpu_utilization":
		return g.idle + load*(100-g.idle), true
	case "memory_utilization", "sm_activity":
		return g.idle/2 + load*90, true
	case "memory_used_percent", "memory_used_mib":
		loaded := 1.0
		if len(g.loads) > 0 {
			loaded = 0
			if to > from {
				loaded = max(0, to-max(from, stepped)) / (to - from)
			} else if to >= stepped {
				loaded = 1
			}
		}
		v = 2 + (g.memory-2)*loaded
		if metric == "memory_used_mib" {
			v *= totalMiB / 100
		}
		return v, true
	case "power_draw":
		return 70 + load*600, true
	case "nvlink_tx_mbps":
		return load * 100, true
	}
	return 0, false
}

// metrics are those that the devices have, as far as the trigger is concerned; sorted.
func metricsFor(metric string) (names []string) {
	names = append(names, "gpu_utilization", "memory_used_percent", metric)
	slices.Sort(names)
	return slices.Compact(names)
}

// means are those of what was read since a moment, at now; all in seconds.
func (g *gpuTruth) means(metrics []string, now, since float64) fleet.Readings {
	names := make([]string, 0, len(metrics))
	means, coverage := make([]window.Means, 0, len(metrics)), make([]window.Coverage, 0, len(metrics))
	for _, metric := range metrics {
		if metric == g.failing {
			continue
		}
		var m window.Means
		var c window.Coverage
		has := true
		for i, w := range window.Windows {
			span := min(w.Seconds(), now-since)
			var ok bool
			m[i], ok = g.reading(metric, now-span, now)
			has = has && ok
			c[i] = time.Duration(int64(span)) * time.Second
		}
		if has {
			names, means, coverage = append(names, metric), append(means, m), append(coverage, c)
		}
	}
	return fleet.NewReadings(names, means, coverage)
}

// motion is as window.Gauge has it.
func (g *gpuTruth) motion(now, since float64) (m fleet.Motion) {
	_, memory := g.reading("memory_used_percent", now, now)
	if !memory || g.failing == "memory_used_percent" || now-since < window.Longest.Seconds() {
		return m
	}
	m.Known = true
	_, work := g.reading("gpu_utilization", now, now)
	m.WorkKnown = work && g.failing != "gpu_utilization"
	for i, l := range g.loads {
		if i == 0 && now-l[0] < window.Longest.Seconds() {
			m.Minutes = 1
		}
		m.Worked = m.Worked || (m.WorkKnown && now-l[1] < window.Longest.Seconds() && now > l[0])
	}
	return m
}

// replicaPod is one pod of the workload over time; seconds, 0: not yet.
type replicaPod struct {
	name                    string
	on                      *machine
	gpus                    []*gpuTruth
	created, started, ready float64
	ends                    float64 // it is terminating from then on, for a few seconds; never: forever
	group                   string
	leader                  bool // it is a replica, or the leader of one
	plain                   bool
}

const grace = 8 // seconds that a pod takes to end

// forever is the end of a pod that nothing ends.
var forever = math.Inf(1)

func (p *replicaPod) gone(s float64) bool { return s >= p.ends+grace }

// at is the pod at a second.
func (p *replicaPod) at(s float64) *fleet.Pod {
	pod := &fleet.Pod{
		Namespace: "shop", Name: p.name, UID: p.name, Labels: map[string]string{"app": "llm"},
		Created: at(p.created), Group: p.group, Leader: p.group != "" && p.leader, Plain: p.plain,
		Terminating: s >= p.ends, Pending: true,
	}
	if p.on == nil || s < p.started {
		return pod
	}
	pod.Node, pod.Started, pod.Pending, pod.Changed = p.on.name, at(p.started), false, at(p.started)
	if s >= p.ready {
		pod.Ready, pod.WasReady, pod.FirstReady, pod.Changed = true, true, at(p.ready), at(p.ready)
	}
	return pod
}
