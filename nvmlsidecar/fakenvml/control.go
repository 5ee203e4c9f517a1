package fakenvml

import (
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Control is the file of faults that FAKENVML_CONTROL names. The library looks
// at it on every call, so that a change is in force from the next call on. No
// file is no faults. One fault a line; "#" starts a comment:
//
//	init ERROR                   initialising NVML fails
//	error FUNCTION DEVICE ERROR  that function fails on that device
//	lost DEVICE                  all calls return GPU_IS_LOST, with a GPU its instances' too
//	hang FUNCTION SECONDS        each call of it takes that much longer,
//	delay FUNCTION MILLISECONDS  while other calls go on
//	count N                      only the first N GPUs are there
//	reload [TOKEN]               the driver was reloaded: all calls return UNINITIALIZED until
//	                             Shutdown and Init; another token is another reload
//	set DEVICE COLUMN VALUE      a numeric column of the fixture has that value; "-" for one that
//	                             the device does not have, "!ERROR" for one that cannot be read
//	time SECONDS                 stops the clock there, counted from the first sample; beyond the
//	                             fixture's end it is the time in a later pass
//	xid GPU NUMBER               one XID: each line is one event, told once
//	gpmoff GPU                   GPM streaming is off: its figures are 0
//	migchange GPU                one event of another MIG layout: each line is one, reported once
//	migoff GPU                   MIG mode is off, instances are gone
//
// FUNCTION is the exact C name (nvmlDeviceGetMemoryInfo_v2). DEVICE is a GPU's
// index (0), a MIG instance's GPU and GPU instance id (0/3), a uuid, or "*" for
// all, which also covers functions that are about no device. ERROR is a name
// from nvml.h without NVML_ERROR_, or its number. Lines that make no sense (an
// unknown function, a device that the fixture does not have) are reported on
// stderr and ignored. Where two lines disagree, the later one counts.
type Control struct{ path string }

// NewControl is for the file at path, which need not exist.
func NewControl(path string) *Control {
	return &Control{path: path}
}

// Path is the value for FAKENVML_CONTROL.
func (c *Control) Path() string { return c.path }

// Set replaces all lines of the file; without lines there are no faults. The
// library never sees a part of them.
func (c *Control) Set(lines ...string) error {
	f, err := os.CreateTemp(filepath.Dir(c.path), ".control-")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	_, err = f.WriteString(strings.Join(lines, "\n") + "\n")
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return err
	}
	// The file system's own time is too coarse to tell two quick changes apart,
	// should they also have the same size and inode.
	now := time.Now()
	if err := os.Chtimes(f.Name(), now, now); err != nil {
		return err
	}
	return os.Rename(f.Name(), c.path)
}
