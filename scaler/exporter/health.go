package exporter

import (
	"slices"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"gpuscaler/scaler/fleet"
	"gpuscaler/shared/snapshot"
)

// applicationXIDs are those that a program on the GPU causes by itself, and
// that say nothing of the device: https://docs.nvidia.com/deploy/xid-errors/. They
// are the ones for which NVIDIA's device plugin keeps a device, too.
var applicationXIDs = []uint64{
	13,  // graphics engine exception: often a bad access
	31,  // memory page fault
	43,  // the application was stopped
	45,  // the same, after an earlier error or by its own end
	68,  // video processor exception
	109, // context switch timeout
}

// health is how a device is: conditions only while it is read, errors for good.
func (s *scrape) health(d *fleet.Device, up bool, plain labels) {
	h := d.Health
	if h == nil {
		return
	}
	of := func(first string) []string { return append([]string{first}, gpuNames(d)...) }
	for i, reason := range snapshot.Throttles {
		if on, told := h.States[reason.State()]; told && up {
			s.gauge(s.throttled, truth(on), of(reason.Name)...)
		}
		if h.HasThrottled {
			s.counter(s.throttledTime, float64(h.Throttled[i])/fleet.Fine, of(reason.Name)...)
		}
	}
	for state, desc := range map[string]*prometheus.Desc{snapshot.RowRemapPending: s.rowPending, snapshot.RowRemapFailed: s.rowFailed} {
		if on, told := h.States[state]; told && up {
			s.gaugeOf(desc, truth(on), plain)
		}
	}
	for counter, kind := range map[string]string{snapshot.ECCCorrected: "corrected", snapshot.ECCUncorrected: "uncorrected"} {
		if n, told := h.Errors[counter]; told {
			s.counter(s.ecc, n, of(kind)...)
		}
	}
	all, told := h.Errors[snapshot.XIDErrors]
	if !told {
		return
	}
	application := 0.0
	for counter, n := range h.Errors {
		xid, ok := snapshot.XIDOf(counter)
		if !ok {
			continue
		}
		s.counter(s.xid, n, of(strconv.FormatUint(xid, 10))...)
		if slices.Contains(applicationXIDs, xid) {
			application += n
		}
	}
	s.counter(s.xids, application, of("application")...)
	s.counter(s.xids, max(0, all-application), of("device")...)
}
