package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protojson"

	"gpuscaler/shared/fixture"
	"gpuscaler/shared/snapshot"
	"gpuscaler/shared/snapshotpb"
)

// recorded waits for a recording to have n samples, whatever was being written
// at that moment.
func recorded(t *testing.T, path string, n int) *fixture.Fixture {
	t.Helper()
	var f *fixture.Fixture
	require.Eventually(t, func() bool {
		var err error
		f, err = fixture.Load(path)
		return err == nil && len(f.Samples) >= n
	}, 10*time.Second, 20*time.Millisecond)
	return f
}

// TestRecord: what is recorded is what was played, and can be played again.
func TestRecord(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"h200-llm.csv", "t4.csv", "h200-mig.csv"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			played := load(t, name)
			file := filepath.Join(t.TempDir(), "recorded.csv")
			run := start(t, setup{fixture: name, faults: []string{"time 7"}, no: true, env: []string{"FAKENVML_DRIVER=999.1"},
				args: []string{"--socket", "", "--record", file, "--interval", "250ms"}})
			first := recorded(t, file, 2)
			same(t, played.Samples[7].Devices, first.Samples[0].Devices)
			run.faults("time 8")
			n := len(recorded(t, file, 3).Samples)
			recorded(t, file, n+6) // some passes of the slow readings
			run.terminate()        // a recording that is interrupted is a shorter one
			f := load(t, file)
			last := f.Samples[len(f.Samples)-1]
			same(t, played.Samples[8].Devices, last.Devices)
			assert.Zero(t, f.Samples[0].Elapsed)
			assert.InDelta(t, 0.25, f.Step().Seconds(), 0.15)
			assert.Contains(t, f.Header, "provenance: recorded")
			assert.Contains(t, f.Header, "recorded by: nvmlsidecar v-test")
			assert.Contains(t, f.Header, "driver: 999.1, NVML 13.999.1")
			assert.Contains(t, f.Header, "interval: 250ms")

			again := start(t, setup{fixture: file, faults: []string{"time 0"}, args: []string{"--interval", "200ms"}})
			same(t, played.Samples[7].Devices, again.wait(5*time.Second, "the recording", complete).Devices)
			again.terminate()
		})
	}
}

// TestRecordFailures: a lost GPU and failing getters are part of a recording;
// times without a driver are not.
func TestRecordFailures(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "recorded.csv")
	run := start(t, setup{fixture: "gpu-lost.csv", faults: []string{"init DRIVER_NOT_LOADED"},
		args: []string{"--record", file, "--interval", "100ms"}})
	run.wait(5*time.Second, "the reason", failing("DRIVER_NOT_LOADED"))
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Empty(t, string(text))
	run.faults("time 31")
	run.settle(promised, "a driver", func(s *snapshot.Sample) bool {
		return len(s.Devices) == 4 && s.Devices[1].Failed["power_draw"] != ""
	})
	run.faults("time 60")
	run.settle(promised, "a lost GPU", func(s *snapshot.Sample) bool { return len(s.Devices) == 4 && s.Devices[2].Error != "" })
	run.terminate()
	f := load(t, file)
	assert.True(t, slices.ContainsFunc(f.Header, func(line string) bool { return strings.HasPrefix(line, "driver: 5") }), f.Header)
	played := load(t, "gpu-lost.csv")
	assert.Equal(t, played.Samples[31].Devices[1].Failed["power_draw"], f.Samples[2].Devices[1].Failed["power_draw"])
	same(t, played.Samples[60].Devices, f.Samples[len(f.Samples)-1].Devices)
}

func TestRecordNowhere(t *testing.T) {
	t.Parallel()
	run := start(t, setup{fixture: "one-75.csv", no: true, args: []string{"--record", "/nonexistent/file.csv"}})
	require.Equal(t, 1, run.end(5*time.Second))
	assert.Contains(t, run.log.String(), "nvmlsidecar: --record: open /nonexistent/file.csv")
}

// TestOnce: one whole reading, the slow ones included.
func TestOnce(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"h100x8-uneven.csv", "h200-mig.csv", "t4.csv"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			run := start(t, setup{fixture: name, faults: []string{"time 0"}, no: true, args: []string{"--once"}})
			require.Equal(t, 0, run.end(10*time.Second))
			var m snapshotpb.Sample
			require.NoError(t, protojson.Unmarshal([]byte(run.output.String()), &m))
			got := snapshotpb.FromProto(&m)
			require.NoError(t, got.Validate())
			assert.Equal(t, "v-test", got.Version)
			same(t, load(t, name).Samples[0].Devices, got.Devices)
		})
	}
}

func TestOnceWithoutADriver(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		setup setup
		want  string
	}{
		{setup{library: "/nonexistent/" + "libnvidia-ml.so.1"}, "nvmlInit: LIBRARY_NOT_FOUND: /nonexistent/libnvidia-ml.so.1: cannot open shared object file: No such file or directory"},
		{setup{faults: []string{"init DRIVER_NOT_LOADED"}}, "nvmlInit: DRIVER_NOT_LOADED"},
		{setup{faults: []string{"hang nvmlInit_v2 100"}}, "a call into the driver has not returned"},
	} {
		t.Run(c.want, func(t *testing.T) {
			t.Parallel()
			c.setup.fixture, c.setup.no, c.setup.args = "one-75.csv", true, []string{"--once", "--hang-timeout", "1s"}
			run := start(t, c.setup)
			require.Equal(t, 1, run.end(5*time.Second))
			assert.Contains(t, run.log.String(), "nvmlsidecar: "+c.want)
			assert.Empty(t, run.output.String())
		})
	}
}
