package fleet

import (
	"fmt"
	"slices"
	"time"

	"gpuscaler/shared/snapshot"
)

// Bounds on what writers can make the node remember. A weight is about one
// series: 300 buckets of 24 bytes, some 12 KiB as slices grow. 8 GPUs of 7 MIG
// instances weigh about 1,200.
const (
	maxDevices      = 1024
	maxWeight       = 8192
	maxWriterWeight = 6144
	maxRecalled     = 4096 // devices of young pods
	// forgetAfter is how long a device without a writer is remembered, so
	// that what it blocks has a name and an age. A reader that is broken for a
	// night is still missed in the morning.
	forgetAfter = 24 * time.Hour
)

// weight is what a reported device costs to remember. What it has failed to
// report for a while, and is remembered for, comes on top (see merge).
func weight(in *snapshot.Device) int {
	return 1 + len(in.Values) + len(in.Counters) + len(in.Failed) + len(in.States)
}

// admit checks what must hold before anything of the sample is taken over, and
// makes room for it.
func (s *Source) admit(sample *snapshot.Sample, now time.Time) error {
	if sample.Elapsed < s.elapsed {
		return fmt.Errorf("elapsed went back from %v to %v", s.elapsed, sample.Elapsed)
	}
	l := s.local
	own, more, devices := 0, 0, 0
	reported := make(map[string]bool, len(sample.Devices))
	for i := range sample.Devices {
		in := &sample.Devices[i]
		reported[in.ID] = true
		own += weight(in)
		more += weight(in)
		d := l.devices[in.ID]
		if d == nil {
			devices++
			continue
		}
		more -= d.weight
		if d.owner != nil && d.owner != s && now.Sub(d.owner.writer.Heard) <= l.staleAfter {
			return fmt.Errorf("device %q is reported by another connection (%s)", in.ID, d.owner.writer.Name)
		}
	}
	if own > maxWriterWeight {
		return fmt.Errorf("%d devices and values; at most %d are allowed for one writer", own, maxWriterWeight)
	}
	for l.weight+more > maxWeight || len(l.devices)+devices > maxDevices {
		id, ok := l.oldestLeft(reported)
		if !ok {
			return fmt.Errorf("the writers of this node report too much: at most %d devices, and %d devices and values, are allowed",
				maxDevices, maxWeight)
		}
		l.drop(id)
	}
	return nil
}

// oldestLeft is the device without a writer that was heard of least lately.
func (l *Local) oldestLeft(except map[string]bool) (oldest string, ok bool) {
	for id, d := range l.devices {
		if d.owner == nil && !except[id] && (!ok || d.public.Heard.Before(l.devices[oldest].public.Heard)) {
			oldest, ok = id, true
		}
	}
	return oldest, ok
}

// forget drops the devices without a writer that nobody misses: those that
// went stale while another writer reports their vendor's, and very old ones.
// The devices of a vendor that nobody speaks for any more stay: they say what
// is missing.
func (l *Local) forget(now time.Time) {
	var spokenFor []string
	for _, d := range l.devices {
		if d.owner != nil && !slices.Contains(spokenFor, d.public.Vendor) {
			spokenFor = append(spokenFor, d.public.Vendor)
		}
	}
	for id, d := range l.devices {
		age := now.Sub(d.public.Heard)
		if d.owner == nil && (age > forgetAfter || age > l.staleAfter && slices.Contains(spokenFor, d.public.Vendor)) {
			l.drop(id)
		}
	}
}

// some are the first of a list, for a log line that a writer cannot blow up.
func some(ids []string) []string {
	const most = 16
	slices.Sort(ids)
	if len(ids) > most {
		return append(ids[:most:most], fmt.Sprintf("and %d more", len(ids)-most))
	}
	return ids
}
