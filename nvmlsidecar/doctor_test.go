package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/nvmlsidecar/doctor"
	"gpuscaler/shared/fixture"
)

// TestDoctor: a person sees what works, and a script gets nothing but JSON.
func TestDoctor(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	// What nvidia-smi would say of the recording's first GPU, but for its temperature.
	played := load(t, "h100x8-uneven.csv").Samples[0].Devices[0]
	smi := filepath.Join(dir, "nvidia-smi")
	require.NoError(t, os.WriteFile(smi, []byte("#!/bin/sh\necho '"+played.ID+", 99, [N/A], 20, [N/A]'\n"), 0o700))
	recording := filepath.Join(dir, "recorded.csv")
	run := start(t, setup{
		fixture: "h100x8-uneven.csv", no: true, faults: []string{"time 0", "lost 7", "gpmoff 6"}, env: []string{"PATH=" + dir + ":" + os.Getenv("PATH")},
		args: []string{"doctor", "-o", "json", "--record", recording},
	})
	require.Equal(t, 0, run.end(60*time.Second), run.log.String())
	var report doctor.Report
	require.NoError(t, json.Unmarshal([]byte(run.output.String()), &report), run.output.String())
	assert.True(t, report.Works)
	assert.Equal(t, "v-test", report.Version)
	find := func(status doctor.Status, check string) string {
		t.Helper()
		for _, l := range report.Lines {
			if l.Status == status && l.Check == check {
				return l.Detail
			}
		}
		require.Fail(t, "no such line", "%s %s in %+v", status, check, report.Lines)
		return ""
	}
	assert.Contains(t, find(doctor.OK, "driver"), "580.95.05-fake")
	assert.Contains(t, find(doctor.OK, "GPU 0"), played.ID)
	assert.Equal(t, "GPU_IS_LOST", find(doctor.Warn, "GPU 7"))
	find(doctor.Warn, "GPU 6 GPM")
	assert.Contains(t, find(doctor.OK, "metrics of GPU 0"), "sm_activity")
	assert.Contains(t, find(doctor.Warn, "nvidia-smi"), "GPU 0: temperature is")
	f, err := os.Open(recording)
	require.NoError(t, err)
	defer f.Close()
	recorded, err := fixture.Read(f)
	require.NoError(t, err)
	assert.Len(t, recorded.Samples, 10)
}

// TestDoctorWithoutADriver: the status says that nothing would work, and the line what to do.
func TestDoctorWithoutADriver(t *testing.T) {
	t.Parallel()
	run := start(t, setup{fixture: "one-75.csv", no: true, faults: []string{"init DRIVER_NOT_LOADED"}, args: []string{"doctor"}})
	require.Equal(t, 1, run.end(20*time.Second))
	assert.Contains(t, run.output.String(), "FAIL")
	assert.Contains(t, run.output.String(), "DRIVER_NOT_LOADED")
	assert.Contains(t, run.output.String(), "-> load the kernel module")
	assert.Equal(t, "nvmlsidecar: scaling would not work here\n", run.log.String())
}

// TestDoctorOfADriverThatHangs: it says so, and Ctrl-C ends it before.
func TestDoctorOfADriverThatHangs(t *testing.T) {
	t.Parallel()
	s := setup{fixture: "one-75.csv", no: true, faults: []string{"hang nvmlInit_v2 100"}, args: []string{"doctor", "--hang-timeout", "2s"}}
	run := start(t, s)
	require.Equal(t, 1, run.end(20*time.Second))
	assert.Contains(t, run.log.String(), "a call into the driver has not returned for 4s")
	s.args = []string{"doctor"}
	run = start(t, s)
	time.Sleep(time.Second)
	require.NoError(t, run.cmd.Process.Signal(os.Interrupt))
	require.Equal(t, 1, run.end(5*time.Second))
}
