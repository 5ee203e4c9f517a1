package snapshot

import (
	"fmt"
	"strconv"
	"strings"
)

// What tells how a device is, and is nothing to scale on: states that hold or
// do not, in Device.States, and events that are counted, in Device.Counters.

// Throttle is a reason for which a device runs slower than it could.
type Throttle struct {
	// Name is the reason's, for people and for labels.
	Name string
	// Bit is NVML's nvmlClocksEventReason, which fixtures have as clock_events.
	Bit uint64
}

// Throttles are the reasons that are told of. Idle clocks and those that
// somebody has set are none.
var Throttles = [...]Throttle{
	{"sw_power_cap", 0x4},    // the power limit
	{"hw_slowdown", 0x8},     // any of the two below, or a fast trigger
	{"sw_thermal", 0x20},     // the driver keeps it below its temperature limit
	{"hw_thermal", 0x40},     // it is too hot
	{"hw_power_brake", 0x80}, // the power supply asks for it
}

// State is the name of the throttle's state.
func (t Throttle) State() string { return "throttled_" + t.Name }

// States of a memory whose bad rows are replaced by spare ones.
const (
	RowRemapPending = "row_remap_pending" // one will be at the next reset
	RowRemapFailed  = "row_remap_failed"  // one could not be: there is no spare
)

// Throttled are the states by NVML's bits.
func Throttled(states map[string]bool, bits uint64) {
	for _, t := range Throttles {
		states[t.State()] = bits&t.Bit != 0
	}
}

// Counters of errors. The ECC ones are over the device's life.
const (
	ECCCorrected   = "ecc_corrected_errors"
	ECCUncorrected = "ecc_uncorrected_errors"
	// XIDErrors are all XIDs since the writer began; it is there, and 0, where
	// the device can tell of them. XIDCounter has those of one number.
	XIDErrors = "xid_errors"

	xidPrefix = "xid_"
	// MaxXIDs are the numbers that a device has counters for. Further ones are
	// in XIDErrors alone.
	MaxXIDs = 32
)

// XIDCounter is the counter of XIDs of one number:
// https://docs.nvidia.com/deploy/xid-errors/.
func XIDCounter(xid uint64) string { return xidPrefix + strconv.FormatUint(xid, 10) }

// XIDOf is the number that a counter is of.
func XIDOf(counter string) (xid uint64, ok bool) {
	text, ok := strings.CutPrefix(counter, xidPrefix)
	if !ok {
		return 0, false
	}
	xid, err := strconv.ParseUint(text, 10, 32)
	return xid, err == nil
}

// AddXID counts one XID.
func AddXID(counters map[string]float64, xid uint64) {
	counters[XIDErrors]++
	name, numbers := XIDCounter(xid), 0
	for counter := range counters {
		if _, ok := XIDOf(counter); ok {
			numbers++
		}
	}
	if _, again := counters[name]; again || numbers < MaxXIDs {
		counters[name]++
	}
}

// Counts says that a counter is of single events, and may be told of a device
// that cannot be read any more: why may be one of them.
func Counts(counter string) bool {
	_, one := XIDOf(counter)
	return one || counter == XIDErrors
}

// IsError says that a counter is of errors.
func IsError(counter string) bool {
	return Counts(counter) || counter == ECCCorrected || counter == ECCUncorrected
}

// validateHealth is the part of a device's validation that is about this.
func (d *Device) validateHealth() error {
	if len(d.States) > MaxMetrics {
		return fmt.Errorf("%d states, at most %d are allowed", len(d.States), MaxMetrics)
	}
	for name := range d.States {
		if err := texts(name); err != nil {
			return err
		}
	}
	if d.Error == "" {
		return nil
	}
	if len(d.Values)+len(d.States) > 0 {
		return fmt.Errorf("a device with an error (%s) cannot have values or states", d.Error)
	}
	for name := range d.Counters {
		if !Counts(name) {
			return fmt.Errorf("a device with an error (%s) cannot have the counter %s", d.Error, cut(name))
		}
	}
	return nil
}
