package fakenvml

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/NVIDIA/go-nvml/pkg/nvml"
	"github.com/stretchr/testify/require"

	"gpuscaler/shared/fixture"
	"gpuscaler/shared/snapshot"
)

// TestAgreesWithGo compares readings of several passes with what the Go package
// makes of the same file: of this folder's, and of all that are shipped.
func TestAgreesWithGo(t *testing.T) {
	if os.Getenv(childVar) == "" {
		t.Parallel()
		text, err := os.ReadFile("testdata/small.csv")
		require.NoError(t, err)
		dir := t.TempDir()
		other := filepath.Join(dir, "other.csv")
		require.NoError(t, os.WriteFile(other, []byte(disguise(string(text))), 0o600))
		shipped, err := filepath.Glob("../../testdata/*.csv")
		require.NoError(t, err)
		for _, path := range append(shipped, "testdata/small.csv", other) {
			t.Log(path, runChild(t, dir, "FAKENVML_FIXTURE="+path))
		}
		return
	}
	l := start(t)
	l.init()
	f, err := fixture.Load(os.Getenv("FAKENVML_FIXTURE"))
	require.NoError(t, err)
	step := 1 + len(f.Samples)/16 // all of a short one, some of a long one
	for n := 0; n <= 3*len(f.Samples); n += step {
		want := f.At(n)
		l.set(fmt.Sprintf("time %f", want.Elapsed.Seconds()))
		for i := range want.Devices {
			l.compare(&want.Devices[i])
		}
	}
}

// disguise makes a fixture that says the same: columns in another order, one
// more of them, Windows line ends.
func disguise(text string) string {
	var out []string
	for i, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		cells := strings.Split(line, ",")
		switch {
		case line[0] == '#':
			out = append(out, line)
			continue
		case strings.HasPrefix(line, "t,"):
			cells = append(cells, "x_more")
		default:
			cells = append(cells, fmt.Sprint(i))
		}
		for a, b := 0, len(cells)-1; a < b; a, b = a+1, b-1 {
			cells[a], cells[b] = cells[b], cells[a]
		}
		out = append(out, strings.Join(cells, ","))
	}
	return strings.Join(out, "\r\n") + "\r\n"
}

// compare checks the figures that come through NVML without much rounding.
func (l *lab) compare(want *snapshot.Device) {
	l.t.Helper()
	d, ret := l.DeviceGetHandleByUUID(want.ID)
	if want.Error != "" {
		require.Equal(l.t, nvml.ERROR_GPU_IS_LOST, ret)
		return
	}
	require.Equal(l.t, nvml.SUCCESS, ret, want.ID)
	check := func(kind map[string]float64, name string, within, v float64, ret nvml.Return) {
		l.t.Helper()
		expected, ok := kind[name]
		switch {
		case want.Failed[name] != "":
			require.Equal(l.t, "ERROR_"+want.Failed[name], nvmlName(ret))
		case !ok:
			require.Equal(l.t, nvml.ERROR_NOT_SUPPORTED, ret)
		default:
			require.Equal(l.t, nvml.SUCCESS, ret)
			require.InDelta(l.t, expected, v, within, "%s of %s", name, want.ID)
		}
	}
	power, ret := d.GetPowerUsage()
	check(want.Values, "power_draw", 1e-3, float64(power)/1000, ret)
	memory, ret := d.GetMemoryInfo_v2()
	check(want.Values, "memory_used_mib", 1e-3, float64(memory.Used)/mib, ret)
	energy, ret := d.GetTotalEnergyConsumption()
	check(want.Counters, "energy_joules", 1e-3, float64(energy)/1000, ret)
	fields := []nvml.FieldValue{
		{FieldId: nvml.FI_DEV_NVLINK_THROUGHPUT_DATA_RX, ScopeId: math.MaxUint32},
		{FieldId: nvml.FI_DEV_ECC_DBE_AGG_TOTAL}, {FieldId: nvml.FI_DEV_REMAPPED_PENDING},
	}
	require.Equal(l.t, nvml.SUCCESS, d.GetFieldValues(fields))
	check(want.Counters, "nvlink_rx_bytes", 1024, float64(leUint64(fields[0].Value)*1024), nvml.Return(fields[0].NvmlReturn))
	check(want.Counters, snapshot.ECCUncorrected, 1, float64(leUint64(fields[1].Value)), nvml.Return(fields[1].NvmlReturn))
	states := map[string]float64{} // as NVML has them
	for name, on := range want.States {
		states[name] = map[bool]float64{true: 1}[on]
	}
	check(states, snapshot.RowRemapPending, 0, float64(leUint64(fields[2].Value)), nvml.Return(fields[2].NvmlReturn))
	events, ret := d.GetCurrentClocksEventReasons()
	for _, r := range snapshot.Throttles {
		check(states, r.State(), 0, map[bool]float64{true: 1}[events&r.Bit != 0], ret)
	}
	processes, ret := d.GetComputeRunningProcesses()
	require.Equal(l.t, nvml.SUCCESS, ret)
	if mode, _, _ := d.GetMigMode(); mode == 0 { // else its instances' too
		require.Len(l.t, processes, len(want.Processes))
	}
}

// nvmlName is for the errors that cells of fixtures have.
func nvmlName(ret nvml.Return) string {
	return map[nvml.Return]string{nvml.ERROR_UNKNOWN: "ERROR_UNKNOWN", nvml.ERROR_TIMEOUT: "ERROR_TIMEOUT"}[ret]
}
