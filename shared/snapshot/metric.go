package snapshot

import (
	"fmt"
	"math"
	"strings"
)

// Metric describes one metric of a device: the only place where its name,
// unit, range and origin are written down. Everything that lists metrics
// (metadata errors, the fixture's columns, the README's table) is derived
// from Metrics.
type Metric struct {
	// Name is the value of metricType in a trigger.
	Name string
	// Unit is the unit as shown to people: "%", "MiB", "°C", "W", "KB/s", "MB/s".
	Unit string
	// Min and Max bound what a writer may report, both inclusive, in Unit.
	Min, Max float64
	// Sums says that adding the metric over devices has a meaning (watts do,
	// temperatures do not).
	Sums bool
	// Counter is the cumulative counter whose slope is this metric, or nil.
	Counter *Counter
	// Source says where NVML has it, for people.
	Source string
}

// Counter is a cumulative figure that only grows while its writer lives.
type Counter struct {
	// Name is the counter's name in Device.Counters.
	Name string
	// PerUnitSecond is by how much the counter grows in one second when the
	// metric stands at one unit: 1 J for 1 W, 1e6 bytes for 1 MB/s.
	PerUnitSecond float64
	// Complete says that the counter alone defines the metric, so that a
	// counter at rest means zero. A counter that is not complete (the energy
	// counter, which some boards have but never advance) yields to the mean
	// of the samples while it rests.
	Complete bool
}

const maxCounter = 1 << 62

var (
	energy   = &Counter{Name: "energy_joules", PerUnitSecond: 1}
	nvlinkTx = &Counter{Name: "nvlink_tx_bytes", PerUnitSecond: 1e6, Complete: true}
	nvlinkRx = &Counter{Name: "nvlink_rx_bytes", PerUnitSecond: 1e6, Complete: true}
)

// Metrics is the table of all built-in metrics, in the order shown to people.
// It must not be modified.
var Metrics = []Metric{
	{Name: "gpu_utilization", Unit: "%", Max: 100, Source: "utilization.gpu; on a MIG instance GPM graphics utilization"},
	{Name: "memory_utilization", Unit: "%", Max: 100, Source: "utilization.memory (the memory controller)"},
	{Name: "memory_used_percent", Unit: "%", Max: 100, Source: "used / total, memory info v2"},
	{Name: "memory_used_mib", Unit: "MiB", Max: 1e9, Sums: true, Source: "used, memory info v2"},
	{Name: "temperature", Unit: "°C", Min: -100, Max: 300, Source: "GPU sensor"},
	{Name: "power_draw", Unit: "W", Max: 1e5, Sums: true, Counter: energy, Source: "power usage; over a window the energy counter's slope"},
	{Name: "pcie_tx_kbps", Unit: "KB/s", Max: 1e10, Sums: true, Source: "PCIe throughput, transmitted"},
	{Name: "pcie_rx_kbps", Unit: "KB/s", Max: 1e10, Sums: true, Source: "PCIe throughput, received"},
	{Name: "nvlink_tx_mbps", Unit: "MB/s", Max: 1e8, Sums: true, Counter: nvlinkTx, Source: "NVLink data counters, rate over the window"},
	{Name: "nvlink_rx_mbps", Unit: "MB/s", Max: 1e8, Sums: true, Counter: nvlinkRx, Source: "NVLink data counters, rate over the window"},
	{Name: "sm_activity", Unit: "%", Max: 100, Source: "GPM SM utilization (Hopper and later)"},
	{Name: "sm_occupancy", Unit: "%", Max: 100, Source: "GPM SM occupancy"},
	{Name: "tensor_activity", Unit: "%", Max: 100, Source: "GPM any-tensor utilization"},
	{Name: "dram_activity", Unit: "%", Max: 100, Source: "GPM DRAM bandwidth utilization"},
	{Name: "encoder_utilization", Unit: "%", Max: 100, Source: "encoder utilization"},
	{Name: "decoder_utilization", Unit: "%", Max: 100, Source: "decoder utilization"},
}

var byName = func() map[string]Metric {
	m := make(map[string]Metric, len(Metrics))
	for _, metric := range Metrics {
		m[metric.Name] = metric
	}
	return m
}()

// customPrefix marks metrics that a writer defines itself.
const customPrefix = "x_"

// Lookup finds a metric by name: a built-in one, or one with the prefix "x_"
// that some writer defines (any finite number up to ±1e15, unit unknown).
func Lookup(name string) (Metric, bool) {
	if m, ok := byName[name]; ok {
		return m, true
	}
	if !isCustom(name) {
		return Metric{}, false
	}
	return Metric{Name: name, Min: -1e15, Max: 1e15, Source: "defined by its writer"}, true
}

// MetricNames lists the built-in metrics in table order.
func MetricNames() []string {
	names := make([]string, len(Metrics))
	for i, m := range Metrics {
		names[i] = m.Name
	}
	return names
}

// Check says whether v is a value this metric can have. NaN never is.
func (m Metric) Check(v float64) error {
	if math.IsNaN(v) || v < m.Min || v > m.Max {
		return fmt.Errorf("%s: %v is outside %v to %v %s", m.Name, v, m.Min, m.Max, m.Unit)
	}
	return nil
}

// Divides says whether each owner of a shared device counts with a part of the metric, so
// that the parts add up to the device: quantities do (MiB, W, MB/s). A percentage counts
// whole for each: an owner of one of N slots asked for 1/N of the device, and a device at
// 100 % means that its slots are used up. A temperature is the same for all, and what a
// reader's own metric means is not known.
func (m Metric) Divides() bool { return m.Sums }

// Percentage says whether the metric is in percent.
func (m Metric) Percentage() bool { return m.Unit == "%" }

// isCustom accepts x_ followed by 1 to 60 lower-case letters, digits or underscores.
func isCustom(name string) bool {
	rest, ok := strings.CutPrefix(name, customPrefix)
	if !ok || rest == "" || len(rest) > 60 {
		return false
	}
	for _, c := range []byte(rest) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' {
			return false
		}
	}
	return true
}

// Builtin says whether the metric is one of Metrics.
func (m Metric) Builtin() bool { return !strings.HasPrefix(m.Name, customPrefix) }

// UsedPercent is the share of a memory that is in use, in percent. ok is false
// when the total is unknown.
func UsedPercent(usedMiB, totalMiB float64) (percent float64, ok bool) {
	if !(totalMiB > 0) {
		return 0, false
	}
	return 100 * usedMiB / totalMiB, true
}
