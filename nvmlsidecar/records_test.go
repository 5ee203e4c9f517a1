package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestLongRecords: drivers 535.43 to 535.86 write past the end of a list of processes, so
// it is not asked for.
func TestLongRecords(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "processes.csv")
	var processes []string
	for i := range 200 {
		processes = append(processes, fmt.Sprintf("%d:10", 1000+i))
	}
	require.NoError(t, os.WriteFile(path, []byte("# gpuscaler fixture v1\nt,index,id,model,gpu_utilization,processes\n0,0,GPU-a,A,75,"+strings.Join(processes, ";")+"\n"), 0o600))
	run := start(t, setup{fixture: path, env: []string{"FAKENVML_DRIVER=535.54.03"}, args: []string{"--interval", "100ms"}})
	for range 30 {
		got := run.wait(5*time.Second, "a GPU", healthy(1))
		require.Zero(t, len(got.Devices[0].Processes))
	}
	run.terminate()
}
