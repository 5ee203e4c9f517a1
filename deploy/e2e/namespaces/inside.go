package namespaces

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ownFolders are empty in there and gone afterwards: programs of a node have
// paths in them that cannot be changed.
var ownFolders = []string{"/run", "/var/lib", "/var/log"}

// tunables are the kernel's, as a kubelet wants them. It reads and writes files
// of ours in their place, because they are of the whole machine.
var tunables = map[string]string{
	"vm/overcommit_memory":      "1",
	"vm/panic_on_oom":           "0",
	"kernel/panic":              "10",
	"kernel/panic_on_oops":      "1",
	"kernel/keys/root_maxkeys":  "1000000",
	"kernel/keys/root_maxbytes": "25000000",
}

const hostname = "gpuscaler-e2e"

// prepared is the first process of the namespaces: it prepares them, starts
// the program proper and reaps whatever ends, until that one does.
func prepared() (int, error) {
	if os.Getpid() != 1 {
		return 1, fmt.Errorf("%s is set from outside; unset it", role)
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	if err := prepare(); err != nil {
		return 1, err
	}
	program, err := syscall.ForkExec("/proc/self/exe", os.Args, &syscall.ProcAttr{
		Env:   append(os.Environ(), role+"="+inside+":"+cgroup),
		Files: []uintptr{0, 1, 2},
	})
	if err != nil {
		return 1, fmt.Errorf("starting the program in its namespaces: %w", err)
	}
	go func() {
		for s := range signals {
			_ = syscall.Kill(program, s.(syscall.Signal)) // fails when it has just ended
		}
	}()
	for {
		var status syscall.WaitStatus
		switch ended, err := syscall.Wait4(-1, &status, 0, nil); {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return 1, fmt.Errorf("waiting for processes: %w", err)
		case ended == program:
			return exitCode(status), nil
		}
	}
}

// prepare makes the namespaces a machine.
func prepare() error {
	// Nothing that is mounted in here gets out.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making the mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mounting /proc: %w", err)
	}
	for _, folder := range ownFolders {
		if err := unix.Mount("tmpfs", folder, "tmpfs", 0, "mode=755"); err != nil {
			return fmt.Errorf("mounting an own %s: %w", folder, err)
		}
	}
	if err := replaceFiles(); err != nil {
		return err
	}
	// Mounts of the kubelet have to reach containers that are there already.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("sharing the mounts: %w", err)
	}
	if err := unix.Sethostname([]byte(hostname)); err != nil {
		return err
	}
	return makeNetwork()
}

// replaceFiles mounts files of ours over some of the machine's. /etc/hosts may
// be written, to name what has no DNS in here.
func replaceFiles() error {
	const own = "/run/gpuscaler-e2e"
	if err := os.Mkdir(own, 0o755); err != nil {
		return err
	}
	files := map[string]string{"/etc/hosts": "127.0.0.1 localhost\n::1 localhost\n" + NodeIP + " " + hostname + "\n"}
	for name, value := range tunables {
		files[filepath.Join("/proc/sys", name)] = value + "\n"
	}
	// Without a name server in it the resolver asks this machine, and is refused at once.
	if _, err := os.Stat("/etc/resolv.conf"); err == nil {
		files["/etc/resolv.conf"] = ""
	}
	for path, text := range files {
		from := filepath.Join(own, strings.ReplaceAll(path, "/", "-"))
		if err := os.WriteFile(from, []byte(text), 0o644); err != nil {
			return err
		}
		if err := unix.Mount(from, path, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("replacing %s: %w", path, err)
		}
	}
	return nil
}
