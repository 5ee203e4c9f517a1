package fleet

import (
	"time"

	"gpuscaler/shared/snapshot"
)

// Health is how a device is, beside its metrics. Read-only.
type Health struct {
	// States are its conditions by name, as read last: see snapshot.Throttles.
	States map[string]bool
	// Errors are its counters of errors by name: see snapshot.XIDErrors. They stay
	// when it is lost.
	Errors map[string]float64
	// Throttled is for how long it has been throttled since it was found, for each of
	// snapshot.Throttles, in units of 1/Fine of a second; HasThrottled says that the
	// device tells of it.
	Throttled    [len(snapshot.Throttles)]int64
	HasThrottled bool
}

// diagnose says how the device is by a reading, taken t after the start, and by what it
// was before (nil: it was not there).
func (d *device) diagnose(in *snapshot.Device, before *Device, t, gap time.Duration) *Health {
	h := &Health{States: in.States, Errors: errorsOf(in.Counters)}
	if in.Error != "" && before != nil {
		for name, n := range before.Health.Errors {
			if _, told := h.Errors[name]; !told {
				h.Errors[name] = n
			}
		}
	}
	for i, reason := range snapshot.Throttles {
		s := &d.slowed[i]
		on, told := in.States[reason.State()]
		switch {
		case told && on:
			s.add(t, 1, gap)
		case told:
			s.add(t, 0, gap)
		}
		h.Throttled[i] = s.sum
		h.HasThrottled = h.HasThrottled || s.known
	}
	return h
}

// errorsOf are the counters that are of errors.
func errorsOf(counters map[string]float64) map[string]float64 {
	errors := map[string]float64{}
	for name, n := range counters {
		if snapshot.IsError(name) {
			errors[name] = n
		}
	}
	return errors
}
