package nvml

import (
	"context"
	"sync"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// slowFresh is the age up to which a slow reading is reported with a sample.
const slowFresh = 5 * time.Second

// slowValues are the readings that take too long for the sample: PCIe
// throughput is measured for 20 ms by each call. They are refreshed beside it.
type slowValues struct {
	mu   sync.Mutex
	read map[string]slowValue
}

type slowValue struct {
	value float64
	ret   nvml.Return
	at    time.Time
}

// report adds the slow readings to a sample's.
func (s *slowValues) report(r *reading, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for metric, v := range s.read {
		if now.Sub(v.at) > slowFresh {
			r.device.Failed[metric] = "no reading for " + now.Sub(v.at).Round(time.Second).String()
			continue
		}
		r.value(metric, v.value, v.ret)
	}
}

func (s *slowValues) set(metric string, v slowValue) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.read == nil {
		s.read = map[string]slowValue{}
	}
	s.read[metric] = v
}

// ReadSlow refreshes the slow readings of all GPUs every interval until ctx is
// done.
func (d *Driver) ReadSlow(ctx context.Context, interval time.Duration) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		for i := 0; ctx.Err() == nil && d.readSlowGPU(i); i++ {
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
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
		d.slowBusy.Store(time.Now().UnixNano())
		kbps, ret := g.handle.GetPcieThroughput(counter)
		g.slow.set(metric, slowValue{float64(kbps), ret, time.Now()})
	}
	return true
}
