package nvml

import (
	"fmt"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
)

// A container gets the driver's library, the device files and the right to open them when
// it is created, and only then (NVIDIA's container toolkit). Some failures therefore last
// as long as the container:
//   - nvmlInit finds no library or no driver, because the container is older than they are.
//   - nvmlInit may not open the device files (NO_PERMISSION, UNKNOWN): "systemctl
//     daemon-reload" takes the device rights away from running containers
//     (https://github.com/NVIDIA/nvidia-container-toolkit/issues/48).
//   - A MIG layout that is younger than the container has device files that it lacks.
//
// Where Options.ContainerTimeout says so, Read then ends with an *ErrContainer, and the
// kubelet creates a new container.

// settled is how long a MIG layout has to stay as it is: instances are made one by one.
const settled = 5 * time.Second

// ErrContainer says that only a new container can read the driver or a part of it.
type ErrContainer struct{ Reason string }

func (e *ErrContainer) Error() string {
	return e.Reason + ": a container gets the driver's library and device files when it is created, so a new one is needed"
}

// container keeps watch over what lasts as long as the container.
type container struct {
	// timeout is how long a failure may last; 0: for ever.
	timeout time.Duration
	closed  time.Time // since when nvmlInit has failed in such a way
	changed time.Time // when a MIG layout changed last
	// vacant are the GPUs in MIG mode that show no instance, by id.
	vacant map[string]vacancy
	// seen are the GPUs whose layout has been read before.
	seen map[string]bool
}

// vacancy is that a GPU in MIG mode shows no instance.
type vacancy struct {
	since time.Time
	// first says that it was so when the GPU was first read. A container has the device files of
	// its creation, so that there was no instance then.
	first bool
}

// vacantFirst is how many timeouts a GPU may show no instance that never showed any: the next
// container would find the same, and the node's other GPUs are not read while it starts.
const vacantFirst = 15

// lasting says whether nvmlInit can fail so for as long as the container lasts.
func lasting(ret nvml.Return) bool {
	switch ret {
	case nvml.ERROR_LIBRARY_NOT_FOUND, nvml.ERROR_DRIVER_NOT_LOADED, nvml.ERROR_NO_PERMISSION, nvml.ERROR_UNKNOWN:
		return true
	default:
		return false
	}
}

// opened takes note of how nvmlInit ended; err is its error. It returns err, or the reason for
// which it is to be given up.
func (c *container) opened(ret nvml.Return, err error, now time.Time) error {
	if !lasting(ret) {
		c.closed = time.Time{}
		return err
	}
	if c.closed.IsZero() {
		c.closed = now
	}
	if failing := now.Sub(c.closed); c.timeout > 0 && failing >= c.timeout {
		return &ErrContainer{fmt.Sprintf("%v, for %v", err, failing.Round(time.Second))}
	}
	return err
}

// layout takes note of how many MIG instances a GPU in MIG mode shows; -1: it is in no MIG mode.
func (c *container) layout(id string, instances int, now time.Time) {
	if instances != 0 {
		delete(c.vacant, id)
	} else if _, known := c.vacant[id]; !known {
		c.vacant[id] = vacancy{now, !c.seen[id]}
	}
	c.seen[id] = true
}

// outdated says why the container no longer fits the MIG layout, or nil.
func (c *container) outdated(gpus []*gpu, now time.Time) error {
	if c.timeout <= 0 {
		return nil
	}
	if !c.changed.IsZero() && now.Sub(c.changed) >= settled {
		return &ErrContainer{"the MIG layout has changed"}
	}
	for _, g := range gpus {
		v, is := c.vacant[g.identity.uuid]
		allowed := c.timeout
		if v.first {
			allowed *= vacantFirst
		}
		if lasted := now.Sub(v.since); is && lasted >= allowed {
			return &ErrContainer{fmt.Sprintf("GPU %d is in MIG mode and has shown no instance for %v", g.index, lasted.Round(time.Second))}
		}
	}
	return nil
}
