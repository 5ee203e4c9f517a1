package namespaces

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// nested has a program that this test binary runs in namespaces of its own.
const nested = "GPUSCALER_E2E_NESTED"

// nestedProgram starts what nobody ends, in a session of its own and in the
// cgroup, and waits for the kill.
func nestedProgram() int {
	c := exec.Command("sleep", os.Getenv(nested))
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := c.Start(); err != nil {
		return 1
	}
	fmt.Println("ready")
	select {}
}

// TestKilled: whichever of the three processes is killed, nothing that was
// started inside is left, and the next run removes the cgroup.
func TestKilled(t *testing.T) {
	for i, who := range []string{"the one outside", "the first one inside", "the program"} {
		t.Run(who, func(t *testing.T) {
			length := fmt.Sprintf("98765.%d%d", os.Getpid(), i) // a name for the orphan
			c := exec.Command("/proc/self/exe")
			c.Env = append(os.Environ(), nested+"="+length)
			out, err := c.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, c.Start())
			t.Cleanup(func() { _ = c.Process.Kill() })
			line, err := bufio.NewReader(out).ReadString('\n')
			require.NoError(t, err)
			require.Equal(t, "ready\n", line)
			require.Len(t, withArgument(t, length), 1)
			victim := c.Process.Pid
			for range i {
				victim = child(t, victim)
			}
			mine := filepath.Join(mustHierarchy(t), cgroupOf(c.Process.Pid))
			require.DirExists(t, mine)

			require.NoError(t, syscall.Kill(victim, syscall.SIGKILL))
			require.Error(t, c.Wait())
			require.Eventually(t, func() bool { return len(withArgument(t, length)) == 0 }, 5*time.Second, 10*time.Millisecond)
			require.NoError(t, sweepCgroups())
			require.NoDirExists(t, mine)
		})
	}
}

// withArgument are the processes that have an argument.
func withArgument(t *testing.T, argument string) (pids []string) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	require.NoError(t, err)
	for _, path := range all {
		text, err := os.ReadFile(path)
		if err == nil && strings.HasSuffix(string(text), "\x00"+argument+"\x00") {
			pids = append(pids, filepath.Base(filepath.Dir(path)))
		}
	}
	return pids
}

// child is a process's only child.
func child(t *testing.T, pid int) int {
	t.Helper()
	all, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	require.NoError(t, err)
	var children []string
	for _, path := range all {
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		children = append(children, strings.Fields(string(text))...)
	}
	require.Len(t, children, 1)
	found, err := strconv.Atoi(children[0])
	require.NoError(t, err)
	return found
}

func mustHierarchy(t *testing.T) string {
	t.Helper()
	all, err := cgroupHierarchies()
	require.NoError(t, err)
	return all[0]
}
