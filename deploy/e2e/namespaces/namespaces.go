// Package namespaces gives a program that starts containers a machine of its
// own: mounts, network, processes and host name that nobody else sees and that
// end with it. It must not know what is run in there.
//
// Three processes of the same binary share the work. The first stays outside,
// waits, and removes the cgroups, which are not private. The second is the
// first of the new process namespace: it does nothing but prepare, reap
// orphans and forward signals, so that the third, the program proper, can use
// os/exec as everywhere. When any of them is killed, all in there are.
package namespaces

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
)

// ErrNotRoot is what Run returns without root's rights: a reason to skip, not a failure.
var ErrNotRoot = errors.New("a real node needs root: mounts, network interfaces and cgroups")

// NodeIP is the address that the machine has in there; nobody outside reaches
// it. It is of a network that is reserved for documentation.
const NodeIP = "192.0.2.10"

// role tells the processes apart: it has what this one is, and the cgroup's name.
const role = "GPUSCALER_E2E_NAMESPACES"

const (
	preparing = "preparing"
	inside    = "inside"
)

// here is what this process is, read once: its children must not take
// themselves for it.
var here, cgroup = func() (string, string) {
	value := os.Getenv(role)
	_ = os.Unsetenv(role) // cannot fail for a name like this
	is, name, _ := strings.Cut(value, ":")
	return is, name
}()

// Inside says whether this process is the one that Run runs its function in.
func Inside() bool { return here == inside }

// Cgroup is the name of a cgroup in the root of every hierarchy, made for what
// is run inside and removed afterwards with all below it. Empty outside.
func Cgroup() string { return cgroup }

// Run runs this program again, with the same arguments and environment, in
// namespaces of its own, where main comes to Run again, and there f is called.
// The result is f's, or 128 and the signal that ended it. It has to be called
// before anything is started that should be inside. SIGINT, SIGTERM and SIGHUP
// are passed on.
func Run(f func() int) (code int, err error) {
	switch here {
	case preparing:
		return prepared()
	case inside:
		return f(), nil
	}
	if os.Geteuid() != 0 {
		return 1, ErrNotRoot
	}
	if err := checkHidden(); err != nil {
		return 1, err
	}
	if err := sweepCgroups(); err != nil {
		return 1, err
	}
	name, err := makeCgroups()
	if err != nil {
		return 1, errors.Join(err, removeCgroups(name))
	}
	code, err = again(name)
	return code, errors.Join(err, removeCgroups(name))
}

// again starts this program as the first of new namespaces, and waits for it.
func again(cgroup string) (int, error) {
	// The kernel ties the parent-death signal to the thread that forked.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	c := exec.Command("/proc/self/exe")
	c.Args = os.Args
	c.Env = append(os.Environ(), role+"="+preparing+":"+cgroup)
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
		Pdeathsig:  syscall.SIGKILL,
		Setpgid:    true, // Ctrl-C comes once, through us
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	if err := c.Start(); err != nil {
		return 1, fmt.Errorf("making namespaces: %w", err)
	}
	done := make(chan struct{})
	defer close(done)
	go func() {
		for {
			select {
			case s := <-signals:
				_ = c.Process.Signal(s) // fails when it has just ended
			case <-done:
				return
			}
		}
	}()
	err := c.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 1, err
	}
	return exitCode(c.ProcessState.Sys().(syscall.WaitStatus)), nil
}

// exitCode is a shell's: 128 and the signal for a program that a signal ended.
func exitCode(s syscall.WaitStatus) int {
	if s.Signaled() {
		return 128 + int(s.Signal())
	}
	return s.ExitStatus()
}

// checkHidden is an error when something that a program needs is where the
// namespaces have folders of their own.
func checkHidden() error {
	executable, err := os.Executable()
	if err != nil {
		return err
	}
	work, err := os.Getwd()
	if err != nil {
		return err
	}
	for what, path := range map[string]string{
		"this program": executable, "the working folder": work,
		"TMPDIR": os.TempDir(), "HOME": os.Getenv("HOME"), "XDG_CACHE_HOME": os.Getenv("XDG_CACHE_HOME"),
		"GPUSCALER_E2E_CACHE": os.Getenv("GPUSCALER_E2E_CACHE"), "GOCACHE": os.Getenv("GOCACHE"), "GOMODCACHE": os.Getenv("GOMODCACHE"),
	} {
		for _, hidden := range ownFolders {
			if rel, err := filepath.Rel(hidden, path); err == nil && filepath.IsLocal(rel) {
				return fmt.Errorf("%s, %s, cannot be below %s: a real node has its own there", what, path, hidden)
			}
		}
	}
	return nil
}
