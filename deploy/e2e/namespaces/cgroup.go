package namespaces

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// cgroupPrefix marks our cgroups. The process that they are for follows: its
// process namespace, its id, and when it started, because ids come again.
const cgroupPrefix = "gpuscaler-e2e-"

// removeWithin is how long cgroups may stay busy after their last process died.
const removeWithin = 3 * time.Second

// makeCgroups makes this process's cgroup in each hierarchy and returns its
// name. Version 2 alone is written by the book but untested: what it was tried
// on has version 1 for everything.
func makeCgroups() (string, error) {
	name := cgroupOf(os.Getpid())
	hierarchies, err := cgroupHierarchies()
	if err != nil {
		return name, err
	}
	for _, root := range hierarchies {
		if err := passControllers(root); err != nil {
			return name, err
		}
		folder := filepath.Join(root, name)
		if err := os.Mkdir(folder, 0o755); err != nil {
			return name, fmt.Errorf("making a cgroup: %w", err)
		}
		// Version 1 has these empty in a new cgroup, and then no process can enter it.
		for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
			if _, err := os.Stat(filepath.Join(folder, "cpuset.memory_migrate")); err != nil {
				break // not version 1, or another hierarchy
			}
			text, err := os.ReadFile(filepath.Join(root, file))
			if err != nil {
				return name, err
			}
			if err := os.WriteFile(filepath.Join(folder, file), text, 0o644); err != nil {
				return name, err
			}
		}
	}
	return name, nil
}

// passControllers lets the cgroups in a root of version 2 have all controllers
// that it has: a kubelet insists on them. Version 1 has no such thing.
func passControllers(root string) error {
	text, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, controller := range strings.Fields(string(text)) {
		if err := os.WriteFile(filepath.Join(root, "cgroup.subtree_control"), []byte("+"+controller), 0o644); err != nil {
			return fmt.Errorf("passing on the cgroup controller %s: %w", controller, err)
		}
	}
	return nil
}

// sweepCgroups removes what processes that were killed have left.
func sweepCgroups() error {
	hierarchies, err := cgroupHierarchies()
	if err != nil {
		return err
	}
	var errs []error
	for _, root := range hierarchies {
		left, err := filepath.Glob(filepath.Join(root, cgroupPrefix+"*"))
		if err != nil {
			return err
		}
		for _, folder := range left {
			var namespace, pid int
			name := filepath.Base(folder)
			if _, err := fmt.Sscanf(name, cgroupPrefix+"%d-%d-", &namespace, &pid); err != nil ||
				namespace != processNamespace() || cgroupOf(pid) == name {
				continue // another's, or in use
			}
			errs = append(errs, removeCgroup(folder))
		}
	}
	return errors.Join(errs...)
}

// removeCgroups removes a cgroup from all hierarchies, with all below it.
func removeCgroups(name string) error {
	hierarchies, err := cgroupHierarchies()
	if err != nil {
		return err
	}
	var errs []error
	for _, root := range hierarchies {
		errs = append(errs, removeCgroup(filepath.Join(root, name)))
	}
	return errors.Join(errs...)
}

// removeCgroup removes a cgroup from the bottom up. One that is not there is none.
func removeCgroup(folder string) error {
	for last := time.Now().Add(removeWithin); ; time.Sleep(20 * time.Millisecond) {
		var err error
		for _, f := range slices.Backward(below(folder)) {
			if failed := syscall.Rmdir(f); failed != nil && !errors.Is(failed, fs.ErrNotExist) {
				err = fmt.Errorf("removing the cgroup %s: %w", f, failed)
			}
		}
		if err == nil || time.Now().After(last) {
			return err
		}
	}
}

// below are the folders of a cgroup, each before those in it.
func below(folder string) []string {
	var found []string
	_ = filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			found = append(found, path)
		}
		return nil // what vanishes meanwhile is none of ours to remove
	})
	return found
}

// cgroupOf is the name for a process of our process namespace; of one that is
// not there it is no name that anything has.
func cgroupOf(pid int) string {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return ""
	}
	// The second field is the program's name and may have anything in it.
	fields := strings.Fields(string(text[strings.LastIndexByte(string(text), ')')+1:]))
	const started = 22 - 3 // as proc(5) counts them, from the third on
	return fmt.Sprintf("%s%d-%d-%s", cgroupPrefix, processNamespace(), pid, fields[started])
}

// processNamespace is the kernel's number for the namespace that our process
// ids are of.
func processNamespace() (number int) {
	link, err := os.Readlink("/proc/self/ns/pid")
	if err != nil {
		return 0
	}
	_, _ = fmt.Sscanf(link, "pid:[%d]", &number) // 0 if it looks otherwise
	return number
}

// cgroupHierarchies are the folders where cgroups are mounted.
func cgroupHierarchies() ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	var found []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		mount, kind, _ := strings.Cut(lines.Text(), " - ")
		if !strings.HasPrefix(kind, "cgroup") { // cgroup or cgroup2
			continue
		}
		found = append(found, strings.Fields(mount)[4])
	}
	if len(found) == 0 {
		return nil, errors.New("no cgroups are mounted in /sys/fs/cgroup")
	}
	return found, nil
}

// KillCgroup kills every process in Cgroup and below, so that nothing is left
// that its owner could restart or wait for.
func KillCgroup() error {
	hierarchies, err := cgroupHierarchies()
	if err != nil {
		return err
	}
	var errs []error
	for _, root := range hierarchies {
		for _, folder := range below(filepath.Join(root, Cgroup())) {
			text, err := os.ReadFile(filepath.Join(folder, "cgroup.procs"))
			if err != nil {
				continue // removed meanwhile
			}
			for _, field := range strings.Fields(string(text)) {
				pid, err := strconv.Atoi(field)
				if err != nil || pid == 0 { // 0: not in our process namespace
					continue
				}
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
					errs = append(errs, err)
				}
			}
		}
	}
	return errors.Join(errs...)
}
