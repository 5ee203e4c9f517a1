package main

import (
	"debug/elf"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestCommandLine(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args   []string
		env    string
		status int
		out    string
		err    string
	}{
		{args: []string{"--version"}, out: "v-test\n"},
		{args: []string{"--help"}, out: "--hang-timeout"},
		{args: []string{"--no-such-flag"}, status: 2, err: "unknown flag --no-such-flag"},
		{args: []string{"surplus"}, status: 2, err: "unexpected argument surplus"},
		{args: []string{"--interval", "soon"}, status: 2, err: "--interval"},
		{args: []string{"--interval", "99ms"}, status: 2, err: "--interval: 99ms is outside 100ms to 1m"},
		{args: []string{"--interval", "61s"}, status: 2, err: "--interval: 1m1s is outside 100ms to 1m"},
		{args: []string{"--interval=-1s"}, status: 2, err: "--interval: -1s is outside 100ms to 1m"},
		{args: []string{}, env: "GPUSCALER_INTERVAL=1h", status: 2, err: "--interval: 1h0m0s is outside"},
		{args: []string{"--hang-timeout", "0s"}, status: 2, err: "--hang-timeout: 0s is less than 1s"},
		{args: []string{"--container-timeout", "10ms"}, status: 2, err: "--container-timeout: 10ms is less than 1s, and not 0s"},
		{args: []string{"--log-level", "loud"}, status: 2, err: "--log-level must be one of"},
		{args: []string{"--socket", ""}, status: 2, err: "there is nothing to do"},
	} {
		t.Run(strings.Join(append(c.args, c.env), " "), func(t *testing.T) {
			t.Parallel()
			run := start(t, setup{fixture: "one-75.csv", no: true, args: c.args, env: []string{c.env}})
			assert.Equal(t, c.status, run.end(5*time.Second))
			assert.Contains(t, run.output.String(), c.out)
			assert.Contains(t, run.log.String(), c.err)
			if c.err != "" {
				assert.Equal(t, 1, strings.Count(run.log.String(), "\n"), "one line: %s", run.log)
			}
		})
	}
}

// TestEnvironment: every flag can also be set there, and the default library is
// what the dynamic linker finds.
func TestEnvironment(t *testing.T) {
	t.Parallel()
	l := listen(t, filepath.Join(t.TempDir(), "s"))
	run := start(t, setup{fixture: "one-75.csv", library: "libnvidia-ml.so.1", no: true, env: []string{
		"GPUSCALER_SOCKET=" + l.path, "GPUSCALER_INTERVAL=200ms", "GPUSCALER_LOG_FORMAT=json",
		"LD_LIBRARY_PATH=" + filepath.Dir(built.library),
	}})
	l.wait(5*time.Second, "a GPU", healthy(1))
	require.NoError(t, run.cmd.Process.Signal(syscall.SIGINT))
	assert.Equal(t, 0, run.end(2*time.Second))
	assert.Contains(t, run.log.String(), `{"time":`)
}

// TestNoListener: nobody can connect to the process that runs C code.
func TestNoListener(t *testing.T) {
	t.Parallel()
	run := start(t, setup{fixture: "h200-llm.csv", args: []string{"--interval", "100ms"}})
	run.wait(5*time.Second, "all readings", healthy(1))
	own := map[string]bool{}
	fds := fmt.Sprintf("/proc/%d/fd", run.cmd.Process.Pid)
	entries, err := os.ReadDir(fds)
	require.NoError(t, err)
	for _, e := range entries {
		target, err := os.Readlink(filepath.Join(fds, e.Name()))
		if inode, ok := strings.CutPrefix(target, "socket:["); ok && err == nil {
			own[strings.TrimSuffix(inode, "]")] = true
		}
	}
	assert.Len(t, own, 1, "the connection to the scaler")
	connected := 0
	for table, inode := range map[string]int{"unix": 6, "tcp": 9, "tcp6": 9, "udp": 9, "udp6": 9, "raw": 9, "raw6": 9, "netlink": 9, "packet": 8} {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", run.cmd.Process.Pid, table))
		if os.IsNotExist(err) {
			continue // not in this kernel
		}
		require.NoError(t, err)
		for line := range strings.Lines(string(text)) {
			fields := strings.Fields(line)
			if len(fields) <= inode || !own[fields[inode]] {
				continue
			}
			assert.Equal(t, "unix", table, line)
			flags, err := strconv.ParseUint(fields[3], 16, 32)
			require.NoError(t, err)
			const acceptsConnections = 1 << 16 // __SO_ACCEPTCON
			assert.Zero(t, flags&acceptsConnections, line)
			connected++
		}
	}
	assert.Equal(t, 1, connected)
	run.terminate()
}

// TestBinary: the image has the C library of Debian 12 and nothing else.
func TestBinary(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "nvmlsidecar")
	require.NoError(t, build(path, false))
	f, err := elf.Open(path)
	require.NoError(t, err)
	defer f.Close()
	libraries, err := f.ImportedLibraries()
	require.NoError(t, err)
	for _, l := range libraries {
		assert.Regexp(t, `^(libc|libdl|libpthread|ld-linux-.*)\.so\.\d$`, l)
	}
	symbols, err := f.ImportedSymbols()
	require.NoError(t, err)
	version := regexp.MustCompile(`^GLIBC_2\.(\d+)`)
	for _, s := range symbols {
		if s.Version == "" {
			assert.True(t, strings.HasPrefix(s.Name, "nvml"), "%s comes from nowhere", s.Name)
			continue
		}
		m := version.FindStringSubmatch(s.Version)
		require.NotNil(t, m, "%s %s", s.Name, s.Version)
		minor, err := strconv.Atoi(m[1])
		require.NoError(t, err)
		assert.LessOrEqual(t, minor, 34, "%s needs %s", s.Name, s.Version)
	}
	info, err := os.Stat(path)
	require.NoError(t, err)
	assert.Less(t, info.Size(), int64(20<<20))
	t.Logf("%s/%s: %d KiB, needs %v", runtime.GOOS, runtime.GOARCH, info.Size()>>10, libraries)
}
