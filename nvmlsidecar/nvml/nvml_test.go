package nvml

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/nvmlsidecar/fakenvml"
	"gpuscaler/shared/snapshot"
)

// Most of this package is tested through the program, where each test has a
// driver of its own. Here all share one, loaded with one environment.
var fake struct {
	library string
	control *fakenvml.Control
}

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "nvml")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	if fake.library, err = fakenvml.Build(dir); err != nil {
		panic(err)
	}
	fake.control = fakenvml.NewControl(filepath.Join(dir, "control"))
	for name, value := range map[string]string{
		"FAKENVML_FIXTURE": "../../testdata/h200-mig.csv", "FAKENVML_CONTROL": fake.control.Path(), "FAKENVML_ABSENT": "",
	} {
		if err := os.Setenv(name, value); err != nil {
			panic(err)
		}
	}
	return m.Run()
}

func set(t *testing.T, lines ...string) {
	t.Helper()
	require.NoError(t, fake.control.Set(append([]string{"time 0"}, lines...)...))
}

// TestReadWhileEverythingChanges looks for races, deadlocks and handles used
// after they died.
func TestReadWhileEverythingChanges(t *testing.T) {
	set(t)
	d := New(Options{Library: fake.library, Log: slog.New(slog.DiscardHandler)})
	_, err := d.Read(time.Now()) // a reload while it opens would cost more than the test takes
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	var beside sync.WaitGroup
	beside.Go(func() { d.ReadSlow(ctx, time.Millisecond) })
	beside.Go(func() {
		for ctx.Err() == nil {
			assert.Less(t, d.Busy(time.Now()), 2*time.Second)
			d.Versions()
			time.Sleep(time.Millisecond)
		}
	})
	beside.Go(func() {
		states := [][]string{{"reload 1"}, {"reload 2", "time 80"}, {"count 1"}, {"migoff 0"}, {"lost 1"}, {"error nvmlGpmMigSampleGet * UNKNOWN"}, nil}
		for i := 0; ctx.Err() == nil; i++ {
			assert.NoError(t, fake.control.Set(append([]string{"time 0"}, states[i%len(states)]...)...))
			time.Sleep(7 * time.Millisecond)
		}
	})
	devices := map[int]bool{}
	for ctx.Err() == nil {
		s, err := d.Read(time.Now())
		require.NoError(t, err)
		require.NoError(t, s.Validate())
		devices[len(s.Devices)] = true
	}
	beside.Wait()
	assert.Greater(t, len(devices), 2, "nothing changed: %v", devices)
	assert.Zero(t, d.Busy(time.Now()), "nothing is in progress")

	set(t)
	require.Eventually(t, func() bool {
		s, err := d.Read(time.Now())
		// A GPU that was lost keeps its place until NVML is opened anew.
		broken := func(d snapshot.Device) bool { return d.Error != "" }
		return err == nil && len(s.Devices) == 5 && !slices.ContainsFunc(s.Devices, broken)
	}, 20*time.Second, 120*time.Millisecond)
	kernel, library := d.Versions()
	assert.Equal(t, "580.95.05-fake", kernel)
	assert.Contains(t, library, kernel)
	assert.Len(t, d.kept, 5, "nothing is kept of instances that are gone")
}

// TestLogsOnce: what lasts is said once, and again when it comes back.
func TestLogsOnce(t *testing.T) {
	var log bytes.Buffer
	d := New(Options{Library: fake.library, Log: slog.New(slog.NewTextHandler(&log, nil))})
	now := time.Now()
	read := func(times int) {
		for range times {
			now = now.Add(reopenAfter)
			_, err := d.Read(now)
			require.NoError(t, err)
		}
	}
	set(t)
	read(2)
	assert.Equal(t, 1, strings.Count(log.String(), "NVML opened"), log.String())
	set(t, "lost 1")
	read(5)
	assert.Equal(t, 1, strings.Count(log.String(), `msg="reopening NVML" reason="GPU 1: GPU_IS_LOST"`), log.String())
	set(t)
	read(3)
	set(t, "lost 1")
	read(5)
	assert.Equal(t, 2, strings.Count(log.String(), `msg="reopening NVML" reason="GPU 1: GPU_IS_LOST"`), log.String())
}

// TestNothingReadable: a GPU all of whose getters fail, in whatever way, is
// one whose driver needs reopening.
func TestNothingReadable(t *testing.T) {
	var log bytes.Buffer
	d := New(Options{Library: fake.library, Log: slog.New(slog.NewTextHandler(&log, nil))})
	faults := []string{"error nvmlDeviceGetTemperature 1 UNKNOWN", "error nvmlDeviceGetMemoryInfo_v2 1 UNKNOWN", "error nvmlGpmSampleGet 1 UNKNOWN"}
	for _, g := range getters {
		faults = append(faults, fmt.Sprintf("error %s 1 UNKNOWN", g.symbol))
	}
	set(t, faults...)
	now := time.Now()
	for range 3 {
		now = now.Add(reopenAfter)
		s, err := d.Read(now)
		require.NoError(t, err)
		require.Empty(t, s.Devices[4].Error)
		require.Equal(t, "UNKNOWN", s.Devices[4].Failed["gpu_utilization"])
	}
	assert.Contains(t, log.String(), "GPU 1: nothing of it can be read")
}

func TestFailureKinds(t *testing.T) {
	for ret, want := range map[nvml.Return]struct{ failed, gone string }{
		nvml.ERROR_NOT_SUPPORTED:             {},
		nvml.ERROR_FUNCTION_NOT_FOUND:        {},
		nvml.ERROR_ARGUMENT_VERSION_MISMATCH: {},
		nvml.ERROR_DEPRECATED:                {},
		nvml.ERROR_GPU_IS_LOST:               {gone: "GPU_IS_LOST"},
		nvml.ERROR_RESET_REQUIRED:            {gone: "RESET_REQUIRED"},
		nvml.ERROR_UNINITIALIZED:             {gone: "UNINITIALIZED"},
		nvml.ERROR_DRIVER_NOT_LOADED:         {gone: "DRIVER_NOT_LOADED"},
		nvml.ERROR_TIMEOUT:                   {failed: "TIMEOUT"},
		nvml.ERROR_UNKNOWN:                   {failed: "UNKNOWN"},
		nvml.ERROR_NO_DATA:                   {failed: "NO_DATA"},
		nvml.Return(4711):                    {failed: "ERROR_4711"},
	} {
		r := newReading(snapshot.Device{ID: "GPU-a"})
		r.value("temperature", 50, ret)
		assert.Empty(t, r.device.Values)
		assert.Equal(t, want.gone, r.gone, name(ret))
		assert.Equal(t, want.failed, r.device.Failed["temperature"], name(ret))
	}
}

// TestKept: readings that take long are reported while they are fresh.
func TestKept(t *testing.T) {
	k := &kept{read: map[string]keptValue{}}
	now := time.Now()
	report := func(after time.Duration) *reading {
		r := newReading(snapshot.Device{ID: "GPU-a"})
		k.report(r, now.Add(after))
		return r
	}
	assert.Empty(t, report(0).device.Failed, "nothing is expected")
	k.expect("sm_activity", "pcie_tx_kbps")
	assert.Equal(t, map[string]string{"sm_activity": "not read yet", "pcie_tx_kbps": "not read yet"}, report(0).device.Failed)
	k.set("sm_activity", keptValue{value: 7, at: now})
	k.set("pcie_tx_kbps", keptValue{ret: nvml.ERROR_NOT_SUPPORTED, at: now})
	r := report(fresh)
	assert.Equal(t, map[string]float64{"sm_activity": 7}, r.device.Values)
	assert.Empty(t, r.device.Failed)
	assert.Equal(t, map[string]string{"sm_activity": "no reading for 6s"}, report(6*time.Second).device.Failed)

	k.expect("sm_activity", "pcie_tx_kbps")
	assert.Equal(t, r.device, report(0).device, "what is known stays")
	k.set("sm_activity", keptValue{ret: nvml.ERROR_GPU_IS_LOST, at: now})
	assert.Equal(t, "GPU_IS_LOST", report(0).gone)
	k.expect("sm_activity")
	assert.Empty(t, report(0).gone, "it is tried anew")
	k.forget(gpmDevice)
	assert.Empty(t, report(0).device.Failed)
}

// TestPauses: a GPU that stays lost has NVML initialized less and less often, for that wakes all
// others, and at once again after it was there.
func TestPauses(t *testing.T) {
	var log bytes.Buffer
	d := New(Options{Library: fake.library, Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	now := time.Now()
	reopened := func(during time.Duration) (at []int) {
		for began := now; now.Sub(began) < during; now = now.Add(time.Second) {
			before := strings.Count(log.String(), `msg="reopening NVML"`)
			_, err := d.Read(now)
			require.NoError(t, err)
			if strings.Count(log.String(), `msg="reopening NVML"`) > before {
				at = append(at, int(now.Sub(began).Seconds()))
			}
		}
		return at
	}
	set(t)
	require.Empty(t, reopened(time.Minute))
	for range 2 {
		set(t, "lost 1")
		assert.Equal(t, []int{1, 9, 25, 57, 121, 249, 505, 805, 1105}, reopened(20*time.Minute))
		set(t)
		assert.Len(t, reopened(10*time.Minute), 1)
	}
}
