// Package process says what a process that is measured has used.
package process

import (
	"time"

	"github.com/prometheus/procfs"
)

// Usage is what the kernel counts of a process.
type Usage struct {
	// CPU is the time it has run since its start.
	CPU time.Duration
	// ResidentMiB is its memory now, PeakMiB the most it ever had.
	ResidentMiB, PeakMiB float64
}

// Of is what the process has used until now.
func Of(pid int) (Usage, error) {
	p, err := procfs.NewProc(pid)
	if err != nil {
		return Usage{}, err
	}
	stat, err := p.Stat()
	if err != nil {
		return Usage{}, err
	}
	status, err := p.NewStatus()
	if err != nil {
		return Usage{}, err
	}
	const mib = 1 << 20
	return Usage{
		CPU:         time.Duration(stat.CPUTime() * float64(time.Second)),
		ResidentMiB: float64(status.VmRSS) / mib, PeakMiB: float64(status.VmHWM) / mib,
	}, nil
}
