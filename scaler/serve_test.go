package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/shared/snapshot"
)

type sink struct{ samples int }

func (s *sink) Apply(*snapshot.Sample, time.Time) error { s.samples++; return nil }
func (s *sink) Close(time.Time)                         {}

// Each user's readers say what they are for, where the users are told apart.
func TestRoles(t *testing.T) {
	devices := &snapshot.Sample{Devices: []snapshot.Device{{ID: "GPU-0", Vendor: "nvidia"}}}
	allocation := &snapshot.Allocation{}
	for _, c := range []struct {
		nvml, podresources, uid int
		devices, allocation     string
	}{
		{-1, -1, 1000, "", ""},
		{-1, 0, 1000, "", ""},
		{65533, 65533, 65533, "", ""},
		{65533, 0, 65533, "", "this user's readers may not say which pods hold devices: it is not --podresources-uid"},
		{65533, 0, 0, "this user's readers may not report devices: it is not --nvml-uid", ""},
		{65533, -1, 65533, "", "this user's readers may not say which pods hold devices: it is not --podresources-uid"},
	} {
		to := &sink{}
		s := (&serveCommand{NVMLUID: c.nvml, PodResourcesUID: c.podresources}).role(c.uid, to)
		said := 0
		for want, sample := range map[*string]*snapshot.Sample{&c.devices: devices, &c.allocation: {Allocation: allocation}} {
			err := s.Apply(sample, time.Now())
			if *want == "" {
				require.NoError(t, err, "%+v", c)
				said++
				continue
			}
			require.EqualError(t, err, *want, "%+v", c)
		}
		assert.Equal(t, said, to.samples)
		require.NoError(t, s.Apply(&snapshot.Sample{Error: "down"}, time.Now()), "that it can read nothing everybody may say")
	}
}

// A limit on one kind of reader alone would be none.
func TestPodResourcesUIDNeedsTheOther(t *testing.T) {
	c := serveCommand{StaleAfter: 10 * time.Second, AttributionStaleAfter: time.Minute, NVMLUID: -1, PodResourcesUID: 0}
	require.EqualError(t, c.Run(t.Context()), "--podresources-uid: 0 without --nvml-uid lets everybody in; give both, or neither")
}
