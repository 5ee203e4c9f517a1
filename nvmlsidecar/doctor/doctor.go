// Package doctor says of a driver what of it works for gpuscaler, line by line, and what to do
// about the rest. It is pure: what was found out comes as an nvml.Examination and an Around. It
// must not call NVML.
package doctor

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"gpuscaler/nvmlsidecar/nvml"
	"gpuscaler/shared/snapshot"
)

// Status is how a check ended.
type Status string

// The statuses. Only Fail means that scaling would not work.
const (
	OK   Status = "ok"
	Note Status = "note" // something that is absent, or that costs
	Warn Status = "warn" // a part does not work
	Fail Status = "fail"
)

// Line is one check.
type Line struct {
	Status Status `json:"status"`
	// Check names it: "library", "GPU 0 gpu_utilization".
	Check  string `json:"check"`
	Detail string `json:"detail"`
	// Remedy is what to do, or "".
	Remedy string `json:"remedy,omitempty"`
}

// Report is all checks of a node.
type Report struct {
	Version string `json:"version"`
	// Works says whether scaling would work.
	Works bool   `json:"works"`
	Lines []Line `json:"lines"`
}

// Around is what was found out beside NVML.
type Around struct {
	Version string
	UID     int
	// Files are the driver's device files, with why they cannot be opened for reading and
	// writing, or "".
	Files map[string]string
	// SMI is what nvidia-smi says of each GPU, by UUID; nil where it is not installed.
	SMI map[string]SMI
	// SMIError is why it says nothing, or "".
	SMIError string
}

// SMI are the figures of nvidia-smi for one GPU: NaN where it has none.
type SMI struct{ Utilization, MemoryUsedMiB, Temperature, Power float64 }

// What to do about the ways in which a driver cannot be opened.
var remedies = map[string]string{
	"LIBRARY_NOT_FOUND":       "on a host, install the driver or give --nvml-library; in a container, the NVIDIA container runtime has to mount it when the container is created: check the RuntimeClass and NVIDIA_VISIBLE_DEVICES",
	"DRIVER_NOT_LOADED":       "load the kernel module (modprobe nvidia), and create the container anew after that",
	"NO_PERMISSION":           "the process may not open /dev/nvidiactl: check the device files' mode and the container's device cgroup",
	"UNKNOWN":                 "in a container, mostly the device cgroup (systemctl daemon-reload takes the rights away): create the container anew",
	"LIB_RM_VERSION_MISMATCH": "the driver was upgraded and its old module is still loaded, or the library is older: reboot or reload the module, and restart the process",
}

// Examine judges.
func Examine(x *nvml.Examination, a *Around) *Report {
	r := &Report{Version: a.Version, Works: true}
	r.line(OK, "user", fmt.Sprintf("uid %d", a.UID), "")
	r.files(a.Files)
	if x.LoadError != "" {
		r.line(Fail, "library", x.LoadError, remedies[x.Init])
		return r
	}
	r.line(OK, "library", x.Library, "")
	if x.Init != success {
		r.line(Fail, "nvmlInit", x.Init, remedies[x.Init])
		return r
	}
	r.line(OK, "driver", fmt.Sprintf("%s, NVML %s", x.Driver, x.NVML), "")
	readable := 0
	for i := range x.GPUs {
		if r.gpu(&x.GPUs[i]) {
			readable++
		}
	}
	switch {
	case len(x.GPUs) == 0:
		r.line(Fail, "GPUs", "the driver counts none", "check lspci and the kernel's log (dmesg) for the driver's messages")
	case readable == 0:
		r.line(Fail, "GPUs", fmt.Sprintf("none of %d can be read", len(x.GPUs)), "see the lines above")
	}
	r.sample(x)
	r.compare(x, a)
	return r
}

const success = "SUCCESS"

func (r *Report) line(s Status, check, detail, remedy string) {
	r.Works = r.Works && s != Fail
	r.Lines = append(r.Lines, Line{s, check, detail, remedy})
}

func (r *Report) files(files map[string]string) {
	if len(files) == 0 {
		r.line(Note, "device files", "no /dev/nvidia*", "")
		return
	}
	var closed []string
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if why := files[name]; why != "" {
			closed = append(closed, why)
		}
	}
	if len(closed) > 0 {
		r.line(Warn, "device files", strings.Join(closed, "; "), "give the process the group of the files (supplementalGroups), or let the container runtime add them")
		return
	}
	r.line(OK, "device files", strings.Join(slices.Sorted(maps.Keys(files)), " "), "")
}

// gpu is the lines of one GPU; it reports whether anything of it can be read.
func (r *Report) gpu(g *nvml.ExaminedGPU) (readable bool) {
	name := fmt.Sprintf("GPU %d", g.Index)
	switch {
	case g.Handle == "NO_PERMISSION":
		r.line(Note, name, "not for this process (NO_PERMISSION)", "")
		return false
	case g.Handle != success:
		r.line(Warn, name, g.Handle, "see the kernel's log for its XIDs; nvidia-smi -r resets it once no process has it open")
		return false
	}
	r.line(OK, name, fmt.Sprintf("%s, %s", g.Model, g.ID), "")
	var good, lacking, failing []string
	for _, c := range g.Calls {
		switch c.Code {
		case success:
			good = append(good, c.Function)
		case nvml.Absent, "NOT_SUPPORTED", "FUNCTION_NOT_FOUND", "DEPRECATED", "ARGUMENT_VERSION_MISMATCH":
			lacking = append(lacking, c.String())
		default:
			failing = append(failing, c.String())
		}
	}
	r.line(OK, name+" calls", fmt.Sprintf("%d of %d succeed", len(good), len(g.Calls)), "")
	if len(lacking) > 0 {
		r.line(Note, name+" absent", strings.Join(lacking, ", "), "")
	}
	if len(failing) > 0 {
		r.line(Warn, name+" failing", strings.Join(failing, ", "), "a metric that fails is missing, and no 0; NO_PERMISSION means that only root may read it")
	}
	r.modes(name, g)
	return len(good) > 0
}

func (r *Report) modes(name string, g *nvml.ExaminedGPU) {
	if g.Persistence == "off" {
		r.line(Note, name+" persistence", "off", "while the sidecar runs the GPU stays initialized, which takes power; nvidia-persistenced has it so always, and starts workloads faster")
	}
	switch g.Streaming {
	case "":
		r.line(Note, name+" GPM", "none: sm_activity, sm_occupancy, tensor_activity and dram_activity need Hopper or later", "")
	case "off":
		r.line(Warn, name+" GPM", "its streaming is off, so a figure of 0 is no reading", "switch it on by nvmlGpmSetStreamingEnabled, as root")
	default:
		r.line(OK, name+" GPM", "streaming: "+g.Streaming, "")
	}
	if g.MIG == "on" {
		r.line(OK, name+" MIG", "on", "")
	}
	if !strings.Contains(g.Events, "xid") {
		r.line(Note, name+" events", g.Events+": XIDs are not counted", "")
	}
}

// allowed is how long a sample may take: it is taken each second.
const allowed = 500 * time.Millisecond

func (r *Report) sample(x *nvml.Examination) {
	if x.SampleError != "" {
		r.line(Fail, "sample", x.SampleError, "see the lines above")
		return
	}
	cost := fmt.Sprintf("%d devices in %v; the first one took %v", len(x.Sample.Devices), round(x.Second), round(x.First))
	if x.Second > allowed {
		r.line(Warn, "sample", cost, "readings come late: raise --interval")
	} else {
		r.line(OK, "sample", cost, "")
	}
	for i := range x.Sample.Devices {
		r.device(&x.Sample.Devices[i])
	}
}

func (r *Report) device(d *snapshot.Device) {
	name, values := fmt.Sprintf("metrics of GPU %d", d.Index), []string(nil)
	if d.Parent != "" {
		name, values = fmt.Sprintf("metrics of GPU %d MIG %s", d.Index, d.Profile), []string{d.ID}
	}
	if d.Error != "" {
		r.line(Warn, name, "cannot be read: "+d.Error, "")
		return
	}
	for _, metric := range slices.Sorted(maps.Keys(d.Values)) {
		values = append(values, metric+" "+figure(d.Values[metric]))
	}
	r.line(OK, name, strings.Join(values, ", "), "")
	for _, metric := range slices.Sorted(maps.Keys(d.Failed)) {
		r.line(Warn, name, metric+" failed: "+d.Failed[metric], "")
	}
}

// figure has one decimal at most.
func figure(v float64) string { return strconv.FormatFloat(math.Round(v*10)/10, 'f', -1, 64) }

func round(d time.Duration) time.Duration { return d.Round(100 * time.Microsecond) }
