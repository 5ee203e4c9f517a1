package main

import (
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"gpuscaler/nvmlsidecar/fakenvml"
	"gpuscaler/shared/snapshot"
)

const inContainer = "--container-timeout=2s"

// TestContainerTimeout: what only a new container can end, ends the program, which says why.
// Without the flag it goes on, as TestLibraryMissing and TestDriverNotLoaded show.
func TestContainerTimeout(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		library string
		fault   string
		reason  string
	}{
		"no library":        {library: filepath.Join(t.TempDir(), fakenvml.Name), reason: "nvmlInit: LIBRARY_NOT_FOUND"},
		"no driver":         {fault: "init DRIVER_NOT_LOADED", reason: "nvmlInit: DRIVER_NOT_LOADED"},
		"no right":          {fault: "init NO_PERMISSION", reason: "nvmlInit: NO_PERMISSION"},
		"right taken away":  {fault: "init UNKNOWN", reason: "nvmlInit: UNKNOWN"},
		"no right to a GPU": {fault: "error nvmlDeviceGetHandleByIndex_v2 * NO_PERMISSION", reason: "nvmlDeviceGetHandleByIndex: NO_PERMISSION for each of 1 GPUs"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			run := start(t, setup{fixture: "one-75.csv", library: c.library, faults: []string{c.fault}, args: []string{"--interval", "200ms", inContainer}})
			got := run.wait(5*time.Second, "the reason", failing(c.reason))
			assert.Empty(t, got.Devices)
			assert.Equal(t, 1, run.end(20*time.Second))
			assert.GreaterOrEqual(t, time.Since(began), 2*time.Second)
			lines := strings.Split(strings.TrimSpace(run.log.String()), "\n")
			assert.Contains(t, lines[len(lines)-1], "nvmlsidecar: "+c.reason)
			assert.Contains(t, lines[len(lines)-1], "a new one is needed")
		})
	}
}

// TestContainerTimeoutInARow: failures that end in between, or are of another kind, are none.
func TestContainerTimeoutInARow(t *testing.T) {
	t.Parallel()
	run := start(t, setup{fixture: "one-75.csv", faults: []string{"init DRIVER_NOT_LOADED"}, args: []string{"--interval", "200ms", "--container-timeout=9s"}})
	run.wait(5*time.Second, "the reason", failing("DRIVER_NOT_LOADED"))
	run.faults() // the driver comes
	run.wait(promised, "a GPU", healthy(1))
	run.faults("init TIMEOUT", "reload 1")
	run.wait(promised, "the reason", failing("TIMEOUT"))
	time.Sleep(10 * time.Second)
	run.alive()
	run.faults("init DRIVER_NOT_LOADED")
	run.wait(promised, "the reason", failing("DRIVER_NOT_LOADED"))
	run.faults()
	run.wait(promised, "a GPU", healthy(1))
	run.terminate()
}

// TestLayoutOfAnotherContainer: a container lacks the device files of a MIG layout that is
// younger than it. Outside of one, the new layout is read (TestMIGLayoutChanges).
func TestLayoutOfAnotherContainer(t *testing.T) {
	t.Parallel()
	const hidden = "error nvmlDeviceGetMigDeviceHandleByIndex 0 NO_PERMISSION"
	t.Run("it changes", func(t *testing.T) {
		t.Parallel()
		run := start(t, setup{fixture: "h200-mig.csv", faults: []string{"time 0"}, args: []string{"--interval", "200ms", inContainer}})
		run.wait(5*time.Second, "all readings", healthy(5))
		began := time.Now()
		for i := range 3 { // one instance after the other
			run.faults(strings.Repeat("migchange 0\n", i+1) + "time 0")
			time.Sleep(time.Second)
		}
		assert.Equal(t, 1, run.end(20*time.Second))
		assert.GreaterOrEqual(t, time.Since(began), 7*time.Second, "not before the last one is 5 s old")
		assert.Contains(t, run.log.String(), "nvmlsidecar: the MIG layout has changed: ")
	})
	t.Run("none is seen", func(t *testing.T) {
		t.Parallel()
		run := start(t, setup{fixture: "h200-mig.csv", faults: []string{"time 0"}, args: []string{"--interval", "200ms", inContainer}})
		run.wait(5*time.Second, "all readings", healthy(5))
		run.faults("time 0", hidden)
		run.wait(5*time.Second, "two GPUs", func(s *snapshot.Sample) bool { return len(s.Devices) == 2 && s.Devices[0].Error == "" })
		assert.Equal(t, 1, run.end(20*time.Second))
		assert.Contains(t, run.log.String(), "nvmlsidecar: GPU 0 is in MIG mode and has shown no instance for ")
	})
	t.Run("there is none from the start", func(t *testing.T) {
		t.Parallel()
		run := start(t, setup{fixture: "h200-mig.csv", faults: []string{"time 0", hidden}, args: []string{"--interval", "200ms", inContainer}})
		run.wait(5*time.Second, "two GPUs", func(s *snapshot.Sample) bool { return len(s.Devices) == 2 && s.Devices[0].Error == "" })
		time.Sleep(6 * time.Second) // three times the timeout: the next container would see the same
		run.alive()
		run.faults("migchange 0", "time 0", hidden)
		assert.Equal(t, 1, run.end(20*time.Second))
	})
	t.Run("outside", func(t *testing.T) {
		t.Parallel()
		run := start(t, setup{fixture: "h200-mig.csv", faults: []string{"time 0"}, args: []string{"--interval", "200ms"}})
		run.wait(5*time.Second, "all readings", healthy(5))
		run.faults("migchange 0", "time 0")
		time.Sleep(7 * time.Second)
		run.wait(promised, "all readings", healthy(5))
		run.alive()
	})
}

// TestNotForThisProcess: the driver counts GPUs that this process may not open. They are no lost
// ones, for which it would be reopened, and neither are MIG instances of the kind.
func TestNotForThisProcess(t *testing.T) {
	t.Parallel()
	run := start(t, setup{fixture: "h100x8-uneven.csv", faults: []string{"time 0", "error nvmlDeviceGetHandleByIndex_v2 2 NO_PERMISSION"}, args: []string{"--interval", "200ms", inContainer}})
	got := run.wait(10*time.Second, "seven GPUs", healthy(7))
	assert.Equal(t, 3, got.Devices[2].Index)
	assert.Equal(t, 1, got.Refused)
	time.Sleep(6 * time.Second)
	run.wait(promised, "seven GPUs", healthy(7))
	assert.NotContains(t, run.log.String(), "reopening NVML")
	assert.Contains(t, run.log.String(), "indices=[2]")
	run.terminate()

	run = start(t, setup{fixture: "h200-mig.csv", faults: []string{"time 0"}, args: []string{"--interval", "200ms"}})
	all := run.wait(5*time.Second, "all readings", healthy(5))
	run.faults("time 0", "error nvmlDeviceGetMigDeviceHandleByIndex "+all.Devices[2].ID+" NO_PERMISSION")
	got = run.wait(promised, "one instance less", healthy(4))
	assert.Equal(t, all.Devices[3].ID, got.Devices[2].ID)
	run.terminate()
}

// TestLostForLong: the driver is reopened less and less often for a GPU that stays lost, and at
// the old pace after it has come back.
func TestLostForLong(t *testing.T) {
	t.Parallel()
	run := start(t, setup{fixture: "h100x8-uneven.csv", faults: []string{"time 0"}, args: []string{"--interval", "200ms"}})
	run.wait(10*time.Second, "eight GPUs", healthy(8))
	run.faults("time 0", "lost 3")
	reopened := func() int { return strings.Count(run.log.String(), `msg="reopening NVML"`) }
	time.Sleep(26 * time.Second) // at 0 s, 8 s and 24 s; every 8 s they would be 4
	assert.LessOrEqual(t, reopened(), 3)
	assert.GreaterOrEqual(t, reopened(), 2)
	run.faults("time 0")
	run.wait(time.Minute, "eight GPUs", healthy(8))
	run.terminate()
}
