package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/shared/snapshot"
)

// hangs are the places in which a driver can hang, each with what leads there.
var hangs = []struct {
	name    string
	faults  []string
	goingOn bool // samples go on: the call is made beside them
	atOnce  bool // from the first call on
}{
	{name: "getter", faults: []string{"hang nvmlDeviceGetPowerUsage 100"}},
	{name: "count", faults: []string{"hang nvmlDeviceGetCount_v2 100"}},
	{name: "activity", faults: []string{"hang nvmlGpmMetricsGet 100"}},
	{name: "slow getter", faults: []string{"hang nvmlDeviceGetPcieThroughput 100"}, goingOn: true},
	{name: "initialisation", faults: []string{"hang nvmlInit_v2 100"}, atOnce: true},
	{name: "first count", faults: []string{"hang nvmlDeviceGetCount_v2 100"}, atOnce: true},
	{name: "versions", faults: []string{"hang nvmlSystemGetDriverVersion 100"}, atOnce: true},
	{name: "initialisation after a reload", faults: []string{"reload", "hang nvmlInit_v2 100"}},
	{name: "shutdown after a reload", faults: []string{"reload", "hang nvmlShutdown 100"}},
	// The reopening has to wait for the slow call to give the handles back.
	{name: "slow getter before a reload", faults: []string{"hang nvmlDeviceGetPcieThroughput 100"}, goingOn: true},
}

// TestHang: while a call hangs nothing is reported as if it were new, and the
// process ends when it takes too long. Asked to end, it does so at once.
func TestHang(t *testing.T) {
	t.Parallel()
	for _, c := range hangs {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			hang := func(t *testing.T, args ...string) *sidecar {
				s := setup{fixture: "h200-llm.csv", args: append(args, "--interval", "100ms")}
				if c.atOnce {
					s.faults = c.faults
					return start(t, s)
				}
				run := start(t, s)
				run.settle(5*time.Second, "all readings", healthy(1))
				run.faults(c.faults...)
				if c.goingOn {
					run.wait(10*time.Second, "a failing metric", func(s *snapshot.Sample) bool {
						return s.Devices[0].Failed["pcie_tx_kbps"] != "" || s.Devices[0].Failed["pcie_rx_kbps"] != ""
					})
				}
				if c.name == "slow getter before a reload" {
					run.faults(append(c.faults, "reload")...)
				} else if c.goingOn {
					return run
				}
				run.silent(500*time.Millisecond, 500*time.Millisecond)
				return run
			}
			t.Run("watchdog", func(t *testing.T) {
				t.Parallel()
				timeout := "2s"
				if c.goingOn {
					timeout = "7s" // longer than a reading counts as fresh
				}
				run := hang(t, "--hang-timeout", timeout)
				require.Equal(t, 1, run.end(12*time.Second))
				assert.Contains(t, run.log.String(), "a call into the driver has not returned for")
				assert.Contains(t, run.log.String(), "more than --hang-timeout "+timeout)
			})
			t.Run("SIGTERM", func(t *testing.T) {
				t.Parallel()
				run := hang(t)
				if c.atOnce {
					run.started() // before that a signal ends it as it ends any program
					run.silent(0, time.Second)
				}
				asked := time.Now()
				run.terminate()
				assert.Less(t, time.Since(asked), time.Second)
			})
		})
	}
}

// TestHangEnds: a sample that took too long is not worth reporting, the next
// one is.
func TestHangEnds(t *testing.T) {
	t.Parallel()
	run := start(t, setup{fixture: "h200-llm.csv", args: []string{"--interval", "100ms"}})
	run.wait(5*time.Second, "all readings", healthy(1))
	run.faults("hang nvmlDeviceGetPowerUsage 6")
	run.silent(500*time.Millisecond, 500*time.Millisecond)
	run.faults()
	run.wait(promised, "the reason", failing("that is too old to be reported"))
	run.wait(time.Second, "all readings", healthy(1))
	run.terminate()
}

// TestSlowOpening: a node whose GPUs have to be woken first is no hang, however
// long they take together, and its readings are not old.
func TestSlowOpening(t *testing.T) {
	t.Parallel()
	run := start(t, setup{fixture: "h100x8-uneven.csv", faults: []string{"delay nvmlDeviceGetHandleByIndex_v2 700"}, no: true,
		args: []string{"--once", "--hang-timeout", "3s"}})
	require.Equal(t, 0, run.end(15*time.Second))
}

// TestElapsed: rates are differences of counters over it.
func TestElapsed(t *testing.T) {
	t.Parallel()
	run := start(t, setup{fixture: "h100x8-uneven.csv", args: []string{"--interval", "250ms"}})
	run.wait(10*time.Second, "all readings", healthy(8))
	run.faults("delay nvmlInit_v2 2000", "reload")
	run.wait(promised, "all readings again", healthy(8))
	run.wait(promised, "any", healthy(8))
	all := run.all()
	longest := time.Duration(0)
	for i := 1; i < len(all); i++ {
		told := all[i].Elapsed - all[i-1].Elapsed
		assert.Positive(t, told)
		longest = max(longest, told)
	}
	assert.Greater(t, longest, 2*time.Second, "the time of the opening belongs before the sample")
	run.terminate()
}

// TestSlowGetters: reading the PCIe throughput of 8 GPUs takes 320 ms, more
// than the interval.
func TestSlowGetters(t *testing.T) {
	t.Parallel()
	run := start(t, setup{fixture: "h100x8-uneven.csv", args: []string{"--interval", "200ms"}})
	run.wait(10*time.Second, "all readings", healthy(8))
	from := len(run.all())
	begun := time.Now()
	run.wait(10*time.Second, "20 samples", func(*snapshot.Sample) bool { return len(run.all()) >= from+20 })
	took := time.Since(begun)
	assert.Less(t, took, 5*time.Second, "20 samples at 200ms")
	assert.Greater(t, took, 3*time.Second, "20 samples at 200ms")
	for _, s := range run.all()[from:] {
		require.True(t, complete(s.Sample), "%+v", s)
		for _, d := range s.Devices {
			require.Contains(t, d.Values, "pcie_rx_kbps")
		}
	}
	run.terminate()
}

// TestLeastInterval: GPM needs more than 100 ms between two samples, and
// readings come that fast. It must not look as if the GPU had none.
func TestLeastInterval(t *testing.T) {
	t.Parallel()
	run := start(t, setup{fixture: "h200-llm.csv", args: []string{"--interval", "100ms"}})
	run.wait(5*time.Second, "all readings", healthy(1))
	from := len(run.all())
	run.wait(10*time.Second, "30 samples", func(*snapshot.Sample) bool { return len(run.all()) >= from+30 })
	for _, s := range run.all()[from:] {
		require.Contains(t, s.Devices[0].Values, "sm_activity", "%+v", s)
	}
	run.terminate()
}

// TestLongInterval: the slow readings must not be too old at each sample.
func TestLongInterval(t *testing.T) {
	t.Parallel()
	run := start(t, setup{fixture: "h200-llm.csv", args: []string{"--interval", "6s"}})
	require.Eventually(t, func() bool { return len(run.all()) == 2 }, 15*time.Second, 50*time.Millisecond)
	got := run.all()[1]
	assert.Empty(t, got.Devices[0].Failed)
	assert.Contains(t, got.Devices[0].Values, "pcie_rx_kbps")
	run.terminate()
}

// TestReloadStorm looks for races and for the use of what was freed: the
// driver is reloaded twenty times a second while it is read at full speed.
func TestReloadStorm(t *testing.T) {
	t.Parallel()
	run := start(t, setup{fixture: "h200-mig.csv", args: []string{"--interval", "100ms"}})
	run.wait(5*time.Second, "all readings", healthy(5))
	end := time.After(storm)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for i, token := 0, "ab"; ; i++ {
		select {
		case <-tick.C:
			run.faults("reload "+token[i%2:i%2+1], "time 0")
			continue
		case <-end:
		}
		break
	}
	run.alive()
	run.faults("time 0")
	run.wait(promised, "all readings", healthy(5))
	run.terminate()
}

const storm = 10 * time.Second
