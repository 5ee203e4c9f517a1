package scenarios

import (
	"bufio"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	gopsnet "github.com/shirou/gopsutil/v4/net"
	gops "github.com/shirou/gopsutil/v4/process"
	"github.com/stretchr/testify/require"

	"gpuscaler/deploy/e2e/cluster"
)

// shown is "make cluster" as a person has it, in a process of its own.
type shown struct {
	*testing.T
	ctx    context.Context
	cmd    *exec.Cmd
	folder string
	// children are all programs of the cluster.
	children []*gops.Process
}

func showCluster(t *testing.T) *shown {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	s := &shown{T: t, ctx: ctx, cmd: exec.CommandContext(ctx, filepath.Join(work, "cluster"), "--repo", repo)}
	s.cmd.Stderr = os.Stderr
	stdout, err := s.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, s.cmd.Start())
	t.Cleanup(func() { _ = s.cmd.Process.Kill() })
	lines := bufio.NewScanner(stdout)
	for s.folder == "" {
		require.True(t, lines.Scan(), "it ended before it printed the KUBECONFIG line")
		if _, file, found := strings.Cut(lines.Text(), "export KUBECONFIG="); found {
			s.folder = filepath.Dir(file)
		}
	}
	go func() {
		for lines.Scan() { // so that it never waits for a reader
		}
	}()
	parent, err := gops.NewProcessWithContext(ctx, int32(s.cmd.Process.Pid))
	require.NoError(t, err)
	s.children, err = parent.ChildrenWithContext(ctx)
	require.NoError(t, err)
	// etcd, three of Kubernetes, KWOK, two of KEDA, a front, three times scaler, sidecar and podresources
	require.GreaterOrEqual(t, len(s.children), 17)
	return s
}

// nothingIsLeft waits until all programs are gone.
func (s *shown) nothingIsLeft() {
	s.Helper()
	require.NoError(s, cluster.Until(s.ctx, func(ctx context.Context) error {
		for _, c := range s.children {
			if running, _ := c.IsRunningWithContext(ctx); running {
				name, _ := c.NameWithContext(ctx)
				return fmt.Errorf("%s (%d) still runs", name, c.Pid)
			}
		}
		return nil
	}))
}

// TestMakeCluster shows one after the other, because each is a whole cluster.
func TestMakeCluster(t *testing.T) {
	turns.turn(t, ofCluster, storyTime)
	t.Run("is on loopback only and Ctrl-C removes it", func(t *testing.T) {
		s := showCluster(t)
		s.loopbackOnly()
		require.NoError(t, s.cmd.Process.Signal(os.Interrupt))
		require.NoError(t, s.cmd.Wait(), "exit status")
		s.nothingIsLeft()
		require.NoDirExists(t, s.folder)
	})
	t.Run("a crash leaves no process", func(t *testing.T) { // though nobody can tidy up
		s := showCluster(t)
		t.Cleanup(func() { _ = os.RemoveAll(s.folder) })
		require.NoError(t, s.cmd.Process.Kill())
		var exit *exec.ExitError
		require.ErrorAs(t, s.cmd.Wait(), &exit)
		require.Equal(t, syscall.SIGKILL, exit.Sys().(syscall.WaitStatus).Signal())
		s.nothingIsLeft()
	})
}

// loopbackOnly: no program of the cluster, ours or theirs, can be reached from
// another machine.
func (s *shown) loopbackOnly() {
	s.Helper()
	listening := 0
	for _, c := range s.children {
		name, err := c.NameWithContext(s.ctx)
		require.NoError(s, err)
		sockets, err := gopsnet.ConnectionsPidWithContext(s.ctx, "inet", c.Pid)
		require.NoError(s, err)
		for _, socket := range sockets {
			if socket.Type == syscall.SOCK_STREAM && socket.Status != "LISTEN" {
				continue
			}
			listening++
			at, err := netip.ParseAddr(socket.Laddr.IP)
			require.NoError(s, err, name)
			require.True(s, at.IsLoopback(), "%s listens on %s:%d", name, socket.Laddr.IP, socket.Laddr.Port)
		}
	}
	require.GreaterOrEqual(s, listening, 13)
}
