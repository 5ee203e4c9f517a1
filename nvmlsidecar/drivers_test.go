package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpuscaler/shared/snapshotpb"

	"google.golang.org/protobuf/encoding/protojson"
)

var rewrite = flag.Bool("rewrite", false, "write DRIVERS.md anew")

// branches are drivers, the oldest first: one of each branch that a cluster may have, and one
// of those with the long records of processes.
var branches = []string{"450.248.02", "470.256.02", "510.108.03", "535.54.03", "550.163.01", "570.211.01", "580.95.05"}

// played are GPUs as a recording has them, with the first branch that knows them.
var played = []struct {
	title, fixture string
	since          int
	// device is the one whose row is in the table.
	device int
}{
	{"T4", "t4.csv", 450, 0},
	{"A100", "a100", 450, 0},
	{"MIG instance of an A100", "a100", 450, 2},
	{"H100", "h100x8-uneven.csv", 535, 0},
	{"H200", "h200-llm.csv", 550, 0},
	{"MIG instance of an H200", "h200-mig.csv", 550, 1},
}

// a100 has what nvml.h says: no GPM, which is for Hopper and later, and so no utilization of a
// MIG instance. It has no encoder (NVIDIA's Video Encode and Decode Support Matrix).
const a100 = `# gpuscaler fixture v1
# provenance: synthetic; of what nvml.h says a GPU of this kind has
t,index,id,parent,instance,profile,model,memory_total_mib,memory_reserved_mib,gpu_utilization,memory_utilization,memory_used_mib,temperature,power_draw,energy_joules,pcie_tx_kbps,pcie_rx_kbps,nvlink_tx_bytes,nvlink_rx_bytes,decoder_utilization,ecc_corrected_errors,ecc_uncorrected_errors,rows_pending,rows_failed,clock_events,xid
0,0,GPU-a,,,,NVIDIA A100-SXM4-80GB,81920,600,70,40,60000,50,300,1000,1000,1000,0,0,0,0,0,0,0,0,0
0,1,GPU-b,,,,NVIDIA A100-SXM4-80GB,81920,600,,,60000,50,300,1000,1000,1000,,,,0,0,0,0,0,0
0,1,MIG-b1,GPU-b,1,3g.40gb,,40192,0,,,20000,,,,,,,,,,,,,,
1,0,GPU-a,,,,NVIDIA A100-SXM4-80GB,81920,600,70,40,60000,50,300,1300,1000,1000,1000,1000,0,0,0,0,0,0,0
1,1,GPU-b,,,,NVIDIA A100-SXM4-80GB,81920,600,,,60000,50,300,1300,1000,1000,,,,0,0,0,0,0,0
1,1,MIG-b1,GPU-b,1,3g.40gb,,40192,0,,,20000,,,,,,,,,,,,,,
`

const driversHead = `# What each driver gives

The sidecar ran on a stand-in for each of these drivers, with each of these GPUs: the stand-in lacks the functions that the
driver's own nvml.h does not declare ([versions.c](fakenvml/src/versions.c) has the sources), and the GPUs have what nvml.h says of
their kind. So this is what the sidecar makes of a driver, and no measurement. **It was not compared with real ones yet**: run
` + "`nvmlsidecar doctor`" + ` there.

` + "`go test ./nvmlsidecar -run TestDrivers -rewrite`" + ` writes this file; without the flag the test compares.
`

// TestDrivers runs the program on every driver, and holds DRIVERS.md to what it reads.
func TestDrivers(t *testing.T) {
	t.Parallel()
	own := filepath.Join(t.TempDir(), "a100.csv")
	require.NoError(t, os.WriteFile(own, []byte(a100), 0o600))
	tables := make([]map[string]map[string]bool, len(played)) // of each GPU: by metric, by branch
	var mu sync.Mutex
	t.Run("all", func(t *testing.T) {
		for i, gpu := range played {
			tables[i] = map[string]map[string]bool{}
			for _, driver := range branches {
				if branch(driver) < gpu.since {
					continue
				}
				t.Run(gpu.title+" "+driver, func(t *testing.T) {
					t.Parallel()
					fixture := gpu.fixture
					if fixture == "a100" {
						fixture = own
					}
					run := start(t, setup{fixture: fixture, no: true, env: []string{"FAKENVML_DRIVER=" + driver}, args: []string{"--once", "--interval", "500ms"}})
					require.Equal(t, 0, run.end(30*time.Second), run.log.String())
					var s snapshotpb.Sample
					require.NoError(t, protojson.Unmarshal([]byte(run.output.String()), &s))
					require.True(t, json.Valid([]byte(run.output.String())))
					d := s.GetDevices()[gpu.device]
					require.Empty(t, d.GetFailed())
					mu.Lock()
					defer mu.Unlock()
					names := slices.Concat(slices.Collect(maps.Keys(d.GetValues())), slices.Collect(maps.Keys(d.GetCounters())), statesOf(d.GetStates()))
					if d.GetMemoryReservedMib() > 0 {
						names = append(names, reserved)
					}
					for _, name := range names {
						if tables[i][name] == nil {
							tables[i][name] = map[string]bool{}
						}
						tables[i][name][driver] = true
					}
				})
			}
		}
	})
	var b strings.Builder
	b.WriteString(driversHead)
	for i, gpu := range played {
		fmt.Fprintf(&b, "\n## %s\n\n| |", gpu.title)
		var shown []string
		for _, driver := range branches {
			if branch(driver) >= gpu.since {
				shown = append(shown, driver)
				b.WriteString(" " + strings.Split(driver, ".")[0] + " |")
			}
		}
		b.WriteString("\n| --- |" + strings.Repeat(" --- |", len(shown)) + "\n")
		for _, name := range slices.Sorted(maps.Keys(tables[i])) {
			if name == reserved {
				b.WriteString("| " + name + " |")
			} else {
				fmt.Fprintf(&b, "| `%s` |", name)
			}
			for _, driver := range shown {
				b.WriteString(map[bool]string{true: " yes |", false: " - |"}[tables[i][name][driver]])
			}
			b.WriteString("\n")
		}
	}
	if *rewrite {
		require.NoError(t, os.WriteFile("DRIVERS.md", []byte(b.String()), 0o644))
	}
	have, err := os.ReadFile("DRIVERS.md")
	require.NoError(t, err)
	require.Equal(t, string(have), b.String(), "go test ./nvmlsidecar -run TestDrivers -rewrite")
}

func branch(driver string) (n int) {
	_, _ = fmt.Sscanf(driver, "%d.", &n)
	return n
}

// reserved is that used memory is without what firmware and ECC reserve: memory info v2.
const reserved = "memory without reserved"

// statesOf are the groups of states that a device has.
func statesOf(all map[string]bool) (names []string) {
	for name := range all {
		group, _, _ := strings.Cut(name, "_")
		if group = map[string]string{"throttled": "throttled_*", "row": "row_remap_*"}[group]; !slices.Contains(names, group) {
			names = append(names, group)
		}
	}
	return names
}
