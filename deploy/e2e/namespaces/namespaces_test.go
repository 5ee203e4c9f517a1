package namespaces

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The tests run inside; without root's rights there is nothing to test.
func TestMain(m *testing.M) {
	run := m.Run
	if os.Getenv(nested) != "" {
		run = nestedProgram
	}
	code, err := Run(run)
	if errors.Is(err, ErrNotRoot) {
		fmt.Println("skipped:", err)
		os.Exit(0)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

func TestInside(t *testing.T) {
	require.True(t, Inside())
	require.Equal(t, 1, os.Getppid())
	name, err := os.Hostname()
	require.NoError(t, err)
	require.Equal(t, hostname, name)
	for _, folder := range ownFolders {
		require.NoError(t, os.WriteFile(filepath.Join(folder, "mine"), nil, 0o600))
	}
	for name, want := range tunables {
		got, err := os.ReadFile(filepath.Join("/proc/sys", name))
		require.NoError(t, err)
		require.Equal(t, want+"\n", string(got))
	}
	hierarchies, err := cgroupHierarchies()
	require.NoError(t, err)
	for _, root := range hierarchies {
		require.DirExists(t, filepath.Join(root, Cgroup()))
	}
}

func TestNetwork(t *testing.T) {
	l, err := net.Listen("tcp", NodeIP+":0")
	require.NoError(t, err)
	defer func() { _ = l.Close() }()
	c, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	require.NoError(t, c.Close())
	interfaces, err := net.Interfaces()
	require.NoError(t, err)
	for _, i := range interfaces {
		require.NotEqual(t, "eth0", i.Name, "the machine's own network")
	}
	hosts, err := net.LookupHost("unknown.invalid")
	require.Error(t, err, "found %s", hosts)
}

// Orphans are reaped, and os/exec has its own children to itself.
func TestOrphans(t *testing.T) {
	for range 20 {
		out, err := exec.Command("sh", "-c", "(sleep 0.05 & echo $!)").Output()
		require.NoError(t, err)
		require.Eventually(t, func() bool {
			_, err := os.Stat(filepath.Join("/proc", string(out[:len(out)-1])))
			return err != nil
		}, 5*time.Second, 10*time.Millisecond, "a zombie is left")
	}
}

// Cgroups go with all below them, and what runs in them is killed first.
func TestCgroups(t *testing.T) {
	hierarchies, err := cgroupHierarchies()
	require.NoError(t, err)
	for _, root := range hierarchies {
		if strings.HasSuffix(root, "cpuset") {
			continue // nothing can enter a part of it as it is made
		}
		own := filepath.Join(root, Cgroup(), "a")
		require.NoError(t, os.MkdirAll(filepath.Join(own, "b"), 0o755))
		c := exec.Command("sleep", "60")
		require.NoError(t, c.Start())
		require.NoError(t, os.WriteFile(filepath.Join(own, "b", "cgroup.procs"), fmt.Append(nil, c.Process.Pid), 0o644))
		require.NoError(t, KillCgroup())
		require.Error(t, c.Wait())
		require.NoError(t, removeCgroup(own))
		require.NoDirExists(t, own)
	}
}

// The name is of one process only, even when its id comes again.
func TestCgroupOf(t *testing.T) {
	mine := cgroupOf(os.Getpid())
	require.Contains(t, mine, fmt.Sprintf("%s%d-%d-", cgroupPrefix, processNamespace(), os.Getpid()))
	require.NotZero(t, processNamespace())
	require.NotEqual(t, mine, cgroupOf(1))
	require.Empty(t, cgroupOf(1<<30))
}

// What a program needs must not be where the namespaces have empty folders.
func TestHidden(t *testing.T) {
	require.NoError(t, checkHidden())
	t.Setenv("HOME", "/var/lib/builder")
	require.ErrorContains(t, checkHidden(), "HOME, /var/lib/builder, cannot be below /var/lib")
	t.Setenv("HOME", "/var/libs")
	require.NoError(t, checkHidden())
}
