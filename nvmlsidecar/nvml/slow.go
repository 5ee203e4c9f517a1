package nvml

import (
	"context"
	"sync"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

const (
	// fresh is how old a reading may be to be reported. A scaler calls a node
	// silent after 10 s.
	fresh = 5 * time.Second
	// slowEvery is the longest time between two passes of ReadSlow: one that
	// fails must not yet leave the readings too old.
	slowEvery = 2 * time.Second
)

// kept are a device's readings that take longer than a sample: PCIe
// throughput, which each call measures for 20 ms, and the GPM figures, which
// need two samples some time apart. They are refreshed as they come, reported
// with every sample while they are fresh, and outlive a reopening: what is
// missing from a sample counts as something that the device does not have.
type kept struct {
	mu   sync.Mutex
	read map[string]keptValue
}

type keptValue struct {
	value float64
	ret   nvml.Return
	at    time.Time // zero: not read yet
	why   string    // why a value that the driver gave is none, or ""
}

// keptFor is what is kept of a device.
func (d *Driver) keptFor(id string) *kept {
	if d.kept[id] == nil {
		d.kept[id] = &kept{read: map[string]keptValue{}}
	}
	return d.kept[id]
}

// expect announces readings that are about to be tried, for the first time or
// after they failed.
func (k *kept) expect(metrics ...string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, metric := range metrics {
		v, ok := k.read[metric]
		if !ok || (v.ret != nvml.SUCCESS && !absent(v.ret)) {
			k.read[metric] = keptValue{}
		}
	}
}

func (k *kept) set(metric string, v keptValue) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.read[metric] = v
}

func (k *kept) forget(metrics []gpmMetric) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, m := range metrics {
		delete(k.read, m.metric)
	}
}

// report adds the kept readings to a sample's.
func (k *kept) report(r *reading, now time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for metric, v := range k.read {
		switch {
		case absent(v.ret): // however long ago
		case v.at.IsZero():
			r.device.Failed[metric] = "not read yet"
		case now.Sub(v.at) > fresh:
			r.device.Failed[metric] = "no reading for " + now.Sub(v.at).Round(time.Second).String()
		case v.why != "":
			r.device.Failed[metric] = v.why
		default:
			r.value(metric, v.value, v.ret)
		}
	}
}

// ReadSlow refreshes the slow readings of all GPUs until ctx is done: every
// interval, or slowEvery if that is less, and at once when NVML was opened.
func (d *Driver) ReadSlow(ctx context.Context, interval time.Duration) {
	tick := time.NewTicker(min(interval, slowEvery))
	defer tick.Stop()
	for {
		for i := 0; ctx.Err() == nil && d.readSlowGPU(i); i++ {
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-d.reopened:
		}
	}
}

// readSlowGPU reads one GPU; false when there is none at this index. The
// handles are held for one GPU at a time, so that a reopening need not wait
// for all of them.
func (d *Driver) readSlowGPU(i int) bool {
	d.open.RLock()
	defer d.open.RUnlock()
	if i >= len(d.gpus) {
		return false
	}
	g := d.gpus[i]
	if g.handle == nil || !d.slowSymbol {
		return true
	}
	defer d.slowBusy.Store(0)
	for metric, counter := range map[string]nvml.PcieUtilCounter{
		"pcie_tx_kbps": nvml.PCIE_UTIL_TX_BYTES,
		"pcie_rx_kbps": nvml.PCIE_UTIL_RX_BYTES,
	} {
		d.slowBusy.Store(clock(time.Now()))
		kbps, ret := g.handle.GetPcieThroughput(counter)
		g.kept.set(metric, keptValue{value: float64(kbps), ret: ret, at: time.Now()})
	}
	return true
}
