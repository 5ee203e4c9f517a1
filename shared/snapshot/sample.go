// Package snapshot holds the vocabulary that the readers and the scaler share:
// what a metric is, what a device reports, what one sample of a node looks
// like. It is pure: no I/O, no clock, no knowledge of NVML, Kubernetes or KEDA.
package snapshot

import (
	"fmt"
	"math"
	"strings"
	"time"
)

// Limits on one sample. A sample beyond them is rejected whole, because its
// writer is not to be trusted with the node's memory.
const (
	MaxDevices   = 256  // devices in one sample: 8 GPUs with 7 MIG instances each are 64
	MaxMetrics   = 64   // values, counters or failures of one device, each
	MaxProcesses = 1024 // processes on one device
	MaxText      = 256  // bytes of any name, id or reason
)

// Sample is everything one writer knows about its devices at one moment. It is
// self-contained: a reader that missed the one before has lost nothing else.
// Read-only once built.
type Sample struct {
	// Writer names the program, for people: "nvmlsidecar".
	Writer string
	// Version is the writer's version, for people.
	Version string
	// Elapsed is the writer's own monotonic time at which the sample was
	// taken. Only differences within one connection mean anything.
	Elapsed time.Duration
	// Error says why nothing could be read at all (no driver, say). A sample
	// with an Error has no devices.
	Error string
	// Devices are all the devices there are, lost ones included.
	Devices []Device
	// Allocation says which containers hold devices; nil when the writer does
	// not know.
	Allocation *Allocation
	// Refused is how many devices the driver counts that the writer may not open. They are
	// not lost: they are not for it.
	Refused int
}

// Device is one device, or one MIG instance, in a Sample. Read-only.
type Device struct {
	// ID is unique and survives restarts: "GPU-<uuid>", "MIG-<uuid>".
	ID string
	// Vendor is lower case: "nvidia".
	Vendor string
	// Model is the product name: "NVIDIA H200".
	Model string
	// Index is the vendor's index of the physical device on this node.
	Index int
	// File is the name of the device file in /dev, of an instance its parent's:
	// "nvidia0". Some device plugins name devices by it. Empty when unknown.
	File string
	// Parent is the ID of the device this is an instance of, or "".
	Parent string
	// Instance is the GPU instance id within Parent.
	Instance int
	// Profile is the MIG profile, "1g.18gb", or "".
	Profile string
	// MemoryTotalMiB and MemoryReservedMiB are 0 when unknown. Reserved
	// memory (firmware, ECC) belongs to nobody and does not count as used.
	MemoryTotalMiB, MemoryReservedMiB float64
	// Values are the metrics by name, in the metric's unit. A metric that the
	// device does not have is absent, never 0.
	Values map[string]float64
	// Counters are cumulative figures by name (see Counter), and errors that are
	// counted (see XIDErrors).
	Counters map[string]float64
	// States are conditions by name (see Throttles): whether each holds. One that
	// the device does not tell of is absent.
	States map[string]bool
	// Failed are the metrics that the device has but whose reading failed,
	// with the reason.
	Failed map[string]string
	// Error says why the whole device cannot be read ("GPU_IS_LOST"). The
	// device keeps its place; it then has no values.
	Error string
	// Processes are those that hold memory on the device.
	Processes []Process
}

// Process is one process on a device. The pid is the host's.
type Process struct {
	PID     uint32
	UsedMiB float64
}

// Validate rejects a sample that a well-behaved writer cannot have produced.
// The error names the device and the offending name or number. Metric names
// that this version does not know are no error: an older scaler beside a newer
// writer ignores them.
func (s *Sample) Validate() error {
	if len(s.Devices) > MaxDevices {
		return fmt.Errorf("%d devices, at most %d are allowed", len(s.Devices), MaxDevices)
	}
	if s.Elapsed < 0 {
		return fmt.Errorf("elapsed is %v, it cannot be negative", s.Elapsed)
	}
	if err := texts(s.Writer, s.Version, s.Error); err != nil {
		return err
	}
	if s.Refused < 0 || s.Refused > MaxDevices {
		return fmt.Errorf("%d devices refused, 0 to %d are allowed", s.Refused, MaxDevices)
	}
	if s.Error != "" && (len(s.Devices) > 0 || s.Allocation != nil) {
		return fmt.Errorf("a sample with an error (%s) cannot have devices or an allocation", s.Error)
	}
	if err := s.Allocation.validate(); err != nil {
		return err
	}
	seen := make(map[string]*Device, len(s.Devices))
	for i := range s.Devices {
		d := &s.Devices[i]
		if err := d.validate(); err != nil {
			return fmt.Errorf("device %d (%q): %w", i, cut(d.ID), err)
		}
		if seen[d.ID] != nil {
			return fmt.Errorf("device %d: id %q appears twice", i, d.ID)
		}
		seen[d.ID] = d
	}
	for i := range s.Devices {
		d := &s.Devices[i]
		if d.Parent == "" {
			continue
		}
		if p := seen[d.Parent]; p == nil || p.Parent != "" {
			return fmt.Errorf("device %d (%q): parent %q is no physical device of this sample", i, d.ID, d.Parent)
		}
	}
	return nil
}

func (d *Device) validate() error {
	if d.ID == "" || d.Vendor == "" {
		return fmt.Errorf("id and vendor must not be empty")
	}
	if err := texts(d.ID, d.Vendor, d.Model, d.File, d.Parent, d.Profile, d.Error); err != nil {
		return err
	}
	if d.Index < 0 || d.Index > math.MaxUint16 {
		return fmt.Errorf("index %d is outside 0 to %d", d.Index, math.MaxUint16)
	}
	if d.Instance < 0 || d.Instance > math.MaxUint16 {
		return fmt.Errorf("instance %d is outside 0 to %d", d.Instance, math.MaxUint16)
	}
	if len(d.Values) > MaxMetrics || len(d.Counters) > MaxMetrics || len(d.Failed) > MaxMetrics {
		return fmt.Errorf("%d values, %d counters, %d failures, at most %d each are allowed",
			len(d.Values), len(d.Counters), len(d.Failed), MaxMetrics)
	}
	if len(d.Processes) > MaxProcesses {
		return fmt.Errorf("%d processes, at most %d are allowed", len(d.Processes), MaxProcesses)
	}
	if err := d.validateHealth(); err != nil {
		return err
	}
	for _, mib := range []float64{d.MemoryTotalMiB, d.MemoryReservedMiB} {
		if !(mib >= 0 && mib <= 1e9) {
			return fmt.Errorf("memory of %v MiB is outside 0 to 1e9", mib)
		}
	}
	for name, v := range d.Values {
		if err := texts(name); err != nil {
			return err
		}
		if m, ok := Lookup(name); ok {
			if err := m.Check(v); err != nil {
				return err
			}
		} else if math.IsNaN(v) || math.IsInf(v, 0) {
			return fmt.Errorf("%s: %v is not a finite number", cut(name), v)
		}
	}
	for name, v := range d.Counters {
		if err := texts(name); err != nil {
			return err
		}
		if !(v >= 0 && v <= maxCounter) {
			return fmt.Errorf("counter %s: %v is outside 0 to %v", cut(name), v, float64(maxCounter))
		}
	}
	for name, reason := range d.Failed {
		if err := texts(name, reason); err != nil {
			return err
		}
		if _, both := d.Values[name]; both {
			return fmt.Errorf("%s has a value and a failure", name)
		}
	}
	for _, p := range d.Processes {
		if !(p.UsedMiB >= 0 && p.UsedMiB <= 1e9) {
			return fmt.Errorf("process %d: %v MiB is outside 0 to 1e9", p.PID, p.UsedMiB)
		}
	}
	return nil
}

// Text makes a text from elsewhere fit for a name or a reason in a Sample: with
// no control characters and no invalid UTF-8, and of at most MaxText bytes.
func Text(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == 0xfffd {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, ""))
	if len(s) > MaxText {
		s = strings.ToValidUTF8(s[:MaxText], "") // no half character
	}
	return s
}

func texts(all ...string) error {
	for _, t := range all {
		if len(t) > MaxText {
			return fmt.Errorf("text of %d bytes (%q...), at most %d are allowed", len(t), t[:32], MaxText)
		}
		for _, r := range t {
			if r < ' ' || r == 0x7f || r == 0xfffd {
				return fmt.Errorf("%q has a control character or invalid UTF-8", cut(t))
			}
		}
	}
	return nil
}

func cut(s string) string {
	if len(s) > 64 {
		return s[:64] + "..."
	}
	return s
}
