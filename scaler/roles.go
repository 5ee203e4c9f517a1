package main

import (
	"fmt"
	"time"

	"gpuscaler/scaler/ingest"
	"gpuscaler/shared/snapshot"
)

// uids are the users whose readers are accepted; none are all.
func (c *serveCommand) uids() (uids []int) {
	if c.NVMLUID < 0 {
		return nil
	}
	if uids = []int{c.NVMLUID}; c.PodResourcesUID >= 0 {
		uids = append(uids, c.PodResourcesUID)
	}
	return uids
}

// role is what a user's readers may say: those of --nvml-uid what devices there
// are, those of --podresources-uid which pods hold them.
func (c *serveCommand) role(uid int, to ingest.Sink) ingest.Sink {
	if c.NVMLUID < 0 || c.NVMLUID == c.PodResourcesUID {
		return to
	}
	return &limited{to, uid == c.NVMLUID, uid == c.PodResourcesUID}
}

// limited refuses what its writer has no business to say.
type limited struct {
	ingest.Sink
	devices, allocation bool
}

// Apply hands a sample on.
func (l *limited) Apply(s *snapshot.Sample, now time.Time) error {
	if len(s.Devices) > 0 && !l.devices {
		return fmt.Errorf("this user's readers may not report devices: it is not --nvml-uid")
	}
	if s.Allocation != nil && !l.allocation {
		return fmt.Errorf("this user's readers may not say which pods hold devices: it is not --podresources-uid")
	}
	return l.Sink.Apply(s, now)
}
