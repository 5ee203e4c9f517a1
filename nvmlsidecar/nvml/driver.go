// Package nvml reads all GPUs of a node through NVML: the only code that is
// linked against C. It calls getters, and listens for XIDs: never a function that changes
// anything. It knows neither sockets nor who wants the readings.
//
// What NVML demands of its callers, and how this package obeys:
//   - A call before a successful nvmlInit, or of a function that the installed
//     driver lacks, ends the process ("symbol lookup error"). So nothing is
//     called while the driver is closed, and every function that a driver may
//     lack is looked up first (see has).
//   - Handles die with the driver that gave them. When a GPU is lost, the set
//     of GPUs changes or the driver says that it was reloaded, everything is
//     shut down, initialised and enumerated anew.
//   - Some getters take long or hang. The slow ones run beside the sample
//     (see slow.go), and Busy says for how long a call has been in progress.
package nvml

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"

	"gpuscaler/shared/snapshot"
)

const (
	// reopenAfter is how long a closed or troubled driver is left alone before
	// it is opened anew.
	reopenAfter = 4 * time.Second
	// mostPause bounds the time between reopenings that do not help, which doubles from
	// reopenAfter on: to initialise takes seconds and wakes all idle GPUs of the node, and
	// XIDs are missed meanwhile. A GPU that falls off the bus or comes back changes the
	// kernel's list of GPUs, for which the driver is reopened at once.
	mostPause = 5 * time.Minute
	// mismatchPatience is how long a library that does not fit the kernel's
	// driver is waited for.
	mismatchPatience = 15 * time.Second
	// kernelGPUs has an entry for each GPU that the kernel driver knows. NVML
	// itself learns of a new GPU only when it is initialised.
	kernelGPUs = "/proc/driver/nvidia/gpus"
	// defaultLibrary is a name that the dynamic linker finds.
	defaultLibrary = "libnvidia-ml.so.1"
)

// ErrOutdated says that the loaded library no longer fits the kernel's driver.
// A process cannot unload a library that it has called into: it must be
// restarted to find the new one.
var ErrOutdated = errors.New("the NVML library does not fit the kernel driver (LIB_RM_VERSION_MISMATCH): the driver was upgraded; a restart loads the new library")

// Driver reads NVML. Read must not be called concurrently; Busy may be called
// at any time, and ReadSlow runs beside Read. There is no Close: a call that
// hangs could not be waited for, so NVML is left to the end of the process.
type Driver struct {
	lib  nvml.Interface
	path string // of lib: a path, or a name that the dynamic linker finds
	log  *slog.Logger

	// open guards the handles: whoever calls into NVML holds it for reading,
	// Shutdown and Init for writing.
	open   sync.RWMutex
	opened bool
	count  int // of GPUs, those included that this process may not open
	gpus   []*gpu
	// refused is how many GPUs this process may not open: the driver counts them all the
	// same (nvml.h, nvmlDeviceGetCount_v2).
	refused int
	events  nvml.EventSet // of XIDs; nil: the driver tells of none

	slowSymbol bool          // the driver has nvmlDeviceGetPcieThroughput
	reopened   chan struct{} // there are new handles for ReadSlow
	kernel     string        // version of the driver
	library    string        // version of NVML

	symbols    map[string]bool               // looked up so far: a process has one NVML for good
	kept       map[string]*kept              // by device id
	xids       map[string]map[string]float64 // counted so far, by device id
	known      map[int]identity              // the last identity seen at each index
	instances  map[string][]snapshot.Device  // as last read, by their GPU's id
	tried      time.Time                     // the last attempt to open
	pause      time.Duration                 // until the next one, while the driver is open
	mismatched time.Time                     // since when the library has not fitted
	trouble    string                        // why the driver has to be reopened, or ""
	logged     string                        // the trouble that was logged last
	topology   []string
	container  container

	readBusy, slowBusy atomic.Int64 // start of the call in progress, as clock has it, or 0
}

// begun makes clock monotonic: setting the node's time must not look like a
// call that hangs.
var begun = time.Now()

func clock(now time.Time) int64 { return int64(now.Sub(begun)) }

// identity is what a device is called.
type identity struct{ uuid, model, file string }

// Options say how a driver is read.
type Options struct {
	// Library is a path, or a name that the dynamic linker finds; "" is libnvidia-ml.so.1.
	Library string
	// ContainerTimeout is how long a failure may last that only a new container can end, until
	// Read returns an *ErrContainer. 0: for ever, as is right outside of containers.
	ContainerTimeout time.Duration
	Log              *slog.Logger
}

// New prepares to read. Nothing is loaded yet.
func New(o Options) *Driver {
	library := cmp.Or(o.Library, defaultLibrary)
	return &Driver{
		lib: nvml.New(nvml.WithLibraryPath(library)), path: library, log: o.Log, reopened: make(chan struct{}, 1),
		pause: reopenAfter, container: container{timeout: o.ContainerTimeout, vacant: map[string]vacancy{}, seen: map[string]bool{}},
		symbols: map[string]bool{}, kept: map[string]*kept{}, known: map[int]identity{},
		instances: map[string][]snapshot.Device{}, xids: map[string]map[string]float64{},
	}
}

// Read takes one sample of all devices. What cannot be read is said in the
// sample, not by an error: the only errors are ErrOutdated and *ErrContainer, after
// which only another process can go on. It may block for as long as NVML does.
func (d *Driver) Read(now time.Time) (*snapshot.Sample, error) {
	defer d.readBusy.Store(0)
	d.busy()
	if err := d.ready(now); err != nil {
		if over := (*ErrContainer)(nil); errors.Is(err, ErrOutdated) || errors.As(err, &over) {
			return nil, err
		}
		return &snapshot.Sample{Elapsed: time.Since(begun), Error: err.Error()}, nil
	}
	d.open.RLock()
	defer d.open.RUnlock()
	// Not earlier: to open a driver can take far longer than to read it.
	opened := time.Now()
	s := &snapshot.Sample{Elapsed: opened.Sub(begun), Refused: d.refused}
	d.hear()
	for _, g := range d.gpus {
		d.busy()
		s.Devices = append(s.Devices, d.readGPU(g, now)...)
	}
	if took := time.Since(opened); took > fresh {
		// What was read first is as old as that.
		reason := fmt.Sprintf("reading the GPUs took %v, that is too old to be reported", took.Round(time.Second))
		return &snapshot.Sample{Elapsed: s.Elapsed, Error: reason}, nil
	}
	maps.DeleteFunc(d.kept, func(id string, _ *kept) bool {
		return !slices.ContainsFunc(s.Devices, func(device snapshot.Device) bool { return device.ID == id })
	})
	if err := d.container.outdated(d.gpus, now); err != nil {
		return nil, err
	}
	return s, nil
}

// Versions are those of the driver and of the NVML library as they were when
// it was opened last, "" when unknown.
func (d *Driver) Versions() (driver, library string) {
	d.open.RLock()
	defer d.open.RUnlock()
	return d.kernel, d.library
}

// Busy is for how long the longest call in progress has been running.
func (d *Driver) Busy(now time.Time) time.Duration {
	longest := time.Duration(0)
	for _, since := range []int64{d.readBusy.Load(), d.slowBusy.Load()} {
		if since != 0 {
			longest = max(longest, time.Duration(clock(now)-since))
		}
	}
	return longest
}

func (d *Driver) busy() { d.readBusy.Store(clock(time.Now())) }

// ready sees to it that the driver is open and its GPUs are those that exist.
func (d *Driver) ready(now time.Time) error {
	if d.opened {
		d.check()
		if d.trouble == "" {
			d.logged, d.pause = "", reopenAfter
			return nil
		}
	}
	wait := reopenAfter
	if d.opened {
		wait = d.pause
	}
	if !d.tried.IsZero() && now.Sub(d.tried) < wait {
		if d.opened {
			return nil // what can be read, is; reopened when it is time
		}
		return errors.New(d.trouble)
	}
	d.open.Lock()
	defer d.open.Unlock()
	d.tried = now
	level := slog.LevelInfo
	if d.opened {
		level = d.say("reopening NVML", d.trouble)
		d.pause = min(2*d.pause, mostPause)
	}
	d.shutdown()
	if err := d.init(now); err != nil {
		d.trouble = err.Error()
		d.say("NVML cannot be opened", d.trouble)
		return err
	}
	d.trouble = ""
	d.log.Log(context.Background(), level, "NVML opened", "gpus", len(d.gpus), "driver", d.kernel)
	select {
	case d.reopened <- struct{}{}:
	default:
	}
	return nil
}

// say logs a trouble once, at the level it returns, however often it is met: a
// GPU that stays lost has NVML reopened every few seconds.
func (d *Driver) say(what, trouble string) slog.Level {
	level := slog.LevelWarn
	if trouble == d.logged {
		level = slog.LevelDebug
	}
	d.logged = trouble
	d.log.Log(context.Background(), level, what, "reason", trouble)
	return level
}

// check looks for a change of the GPUs that needs a reopening.
func (d *Driver) check() {
	n, ret := d.lib.DeviceGetCount()
	switch {
	case ret != nvml.SUCCESS:
		d.trouble = "nvmlDeviceGetCount: " + name(ret)
		// The driver is gone, and with it every handle: do not wait.
		d.tried = time.Time{}
	case n != d.count:
		d.trouble = fmt.Sprintf("%d GPUs became %d", d.count, n)
		d.tried = time.Time{}
	case !slices.Equal(d.topology, listGPUs()):
		d.trouble = "the kernel's list of GPUs changed"
		d.tried = time.Time{}
	}
}

func listGPUs() []string {
	entries, err := os.ReadDir(kernelGPUs)
	if err != nil {
		return nil
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func (d *Driver) shutdown() {
	if !d.opened {
		return
	}
	d.deaf()
	for _, g := range d.gpus {
		g.free()
	}
	d.gpus = nil
	d.opened = false
	if ret := d.lib.Shutdown(); ret != nvml.SUCCESS {
		d.log.Debug("nvmlShutdown", "error", name(ret))
	}
}

func (d *Driver) init(now time.Time) error {
	ret := d.lib.Init()
	if ret == nvml.ERROR_LIB_RM_VERSION_MISMATCH {
		if d.mismatched.IsZero() {
			d.mismatched = now
		}
		if now.Sub(d.mismatched) >= mismatchPatience {
			return ErrOutdated
		}
	} else {
		d.mismatched = time.Time{}
	}
	if ret != nvml.SUCCESS {
		err := fmt.Errorf("nvmlInit: %s", name(ret))
		if reason := ""; ret == nvml.ERROR_LIBRARY_NOT_FOUND {
			if reason = whyNotLoaded(d.path); reason != "" {
				err = fmt.Errorf("%w: %s", err, reason)
			}
		}
		return d.container.opened(ret, err, now)
	}
	d.opened = true
	d.busy()
	kernel, _ := d.lib.SystemGetDriverVersion()
	library, _ := d.lib.SystemGetNVMLVersion()
	d.kernel, d.library = snapshot.Text(kernel), snapshot.Text(library)
	d.slowSymbol = d.has("nvmlDeviceGetPcieThroughput")
	d.topology = listGPUs()
	n, ret := d.lib.DeviceGetCount()
	if ret != nvml.SUCCESS {
		d.shutdown()
		return fmt.Errorf("nvmlDeviceGetCount: %s", name(ret))
	}
	d.count = n
	var refused []int
	for i := range n {
		d.busy() // waking a GPU can take seconds
		if g := d.enumerate(i); g != nil {
			d.gpus = append(d.gpus, g)
		} else {
			refused = append(refused, i)
		}
	}
	if n > 0 && len(refused) == n {
		d.shutdown()
		return d.container.opened(nvml.ERROR_NO_PERMISSION, fmt.Errorf("nvmlDeviceGetHandleByIndex: NO_PERMISSION for each of %d GPUs", n), now)
	}
	_ = d.container.opened(nvml.SUCCESS, nil, now)
	if len(refused) > 0 {
		d.log.Info("some GPUs are not for this process", "nvmlDeviceGetHandleByIndex", "NO_PERMISSION", "indices", fmt.Sprint(refused))
	}
	d.refused = len(refused)
	d.identify()
	d.listen()
	return nil
}

// has says whether the installed driver has a function. Calling one that it
// lacks would end the process.
func (d *Driver) has(symbol string) bool {
	found, asked := d.symbols[symbol]
	if !asked {
		found = d.lib.Extensions().LookupSymbol(symbol) == nil
		d.symbols[symbol] = found
		if !found {
			d.log.Info("the installed driver lacks a function", "function", symbol)
		}
	}
	return found
}

// name is a return code as nvml.h spells it, without its prefix.
func name(ret nvml.Return) string {
	if s, ok := names[ret]; ok {
		return s
	}
	return fmt.Sprintf("ERROR_%d", int32(ret))
}

var names = map[nvml.Return]string{
	nvml.ERROR_UNINITIALIZED:             "UNINITIALIZED",
	nvml.ERROR_INVALID_ARGUMENT:          "INVALID_ARGUMENT",
	nvml.ERROR_NOT_SUPPORTED:             "NOT_SUPPORTED",
	nvml.ERROR_NO_PERMISSION:             "NO_PERMISSION",
	nvml.ERROR_NOT_FOUND:                 "NOT_FOUND",
	nvml.ERROR_DRIVER_NOT_LOADED:         "DRIVER_NOT_LOADED",
	nvml.ERROR_TIMEOUT:                   "TIMEOUT",
	nvml.ERROR_IRQ_ISSUE:                 "IRQ_ISSUE",
	nvml.ERROR_LIBRARY_NOT_FOUND:         "LIBRARY_NOT_FOUND",
	nvml.ERROR_FUNCTION_NOT_FOUND:        "FUNCTION_NOT_FOUND",
	nvml.ERROR_CORRUPTED_INFOROM:         "CORRUPTED_INFOROM",
	nvml.ERROR_GPU_IS_LOST:               "GPU_IS_LOST",
	nvml.ERROR_RESET_REQUIRED:            "RESET_REQUIRED",
	nvml.ERROR_OPERATING_SYSTEM:          "OPERATING_SYSTEM",
	nvml.ERROR_LIB_RM_VERSION_MISMATCH:   "LIB_RM_VERSION_MISMATCH",
	nvml.ERROR_IN_USE:                    "IN_USE",
	nvml.ERROR_MEMORY:                    "MEMORY",
	nvml.ERROR_NO_DATA:                   "NO_DATA",
	nvml.ERROR_INSUFFICIENT_POWER:        "INSUFFICIENT_POWER",
	nvml.ERROR_INSUFFICIENT_RESOURCES:    "INSUFFICIENT_RESOURCES",
	nvml.ERROR_ARGUMENT_VERSION_MISMATCH: "ARGUMENT_VERSION_MISMATCH",
	nvml.ERROR_DEPRECATED:                "DEPRECATED",
	nvml.ERROR_NOT_READY:                 "NOT_READY",
	nvml.ERROR_GPU_NOT_FOUND:             "GPU_NOT_FOUND",
	nvml.ERROR_INVALID_STATE:             "INVALID_STATE",
	nvml.ERROR_UNKNOWN:                   "UNKNOWN",
}
