package realnode

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Container is a running container as the kernel has it, whatever the
// manifest said.
type Container struct {
	Name string
	// PID is of its first process.
	PID      int
	UID, GID int
	Groups   []int // supplementary ones
	// CapEff, CapPrm and CapBnd are sets of capabilities, a bit each.
	CapEff, CapPrm, CapBnd uint64
	// Seccomp is 0 for none and 2 for a filter.
	Seccomp      int
	NoNewPrivs   bool
	RootReadOnly bool
}

// Containers reads the running containers of a pod back from /proc.
func (n *Node) Containers(ctx context.Context, namespace, pod string) ([]Container, error) {
	p := &corev1.Pod{}
	if err := n.o.Cluster.Client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: pod}, p); err != nil {
		return nil, err
	}
	var found []Container
	for _, status := range p.Status.ContainerStatuses {
		if status.State.Running == nil {
			continue
		}
		_, id, _ := strings.Cut(status.ContainerID, "://")
		text, err := os.ReadFile(filepath.Join(tasks, id, "init.pid"))
		if err != nil {
			return nil, fmt.Errorf("container %s of pod %s: %w", status.Name, pod, err)
		}
		pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
		if err != nil {
			return nil, err
		}
		c, err := readContainer(filepath.Join("/proc", strconv.Itoa(pid)))
		if err != nil {
			return nil, fmt.Errorf("container %s of pod %s: %w", status.Name, pod, err)
		}
		c.Name, c.PID = status.Name, pid
		found = append(found, c)
	}
	return found, nil
}

// readContainer reads a process's folder in /proc.
func readContainer(proc string) (c Container, err error) {
	f, err := os.Open(filepath.Join(proc, "status"))
	if err != nil {
		return c, err
	}
	defer func() { _ = f.Close() }()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		name, text, _ := strings.Cut(lines.Text(), ":")
		if err := c.set(name, strings.Fields(text)); err != nil {
			return c, fmt.Errorf("%s: %w", lines.Text(), err)
		}
	}
	c.RootReadOnly, err = rootReadOnly(filepath.Join(proc, "mountinfo"))
	return c, err
}

// set takes over one line of a status file; most are none of ours.
func (c *Container) set(name string, values []string) (err error) {
	switch name {
	case "Uid":
		c.UID, err = strconv.Atoi(values[1]) // real, effective, ...
	case "Gid":
		c.GID, err = strconv.Atoi(values[1])
	case "Groups":
		for _, v := range values {
			group, err := strconv.Atoi(v)
			if err != nil {
				return err
			}
			c.Groups = append(c.Groups, group)
		}
	case "CapEff":
		c.CapEff, err = strconv.ParseUint(values[0], 16, 64)
	case "CapPrm":
		c.CapPrm, err = strconv.ParseUint(values[0], 16, 64)
	case "CapBnd":
		c.CapBnd, err = strconv.ParseUint(values[0], 16, 64)
	case "Seccomp":
		c.Seccomp, err = strconv.Atoi(values[0])
	case "NoNewPrivs":
		c.NoNewPrivs = values[0] == "1"
	}
	return err
}

// rootReadOnly says whether the root is mounted without writing.
func rootReadOnly(mountinfo string) (bool, error) {
	f, err := os.Open(mountinfo)
	if err != nil {
		return false, err
	}
	defer func() { _ = f.Close() }()
	readOnly, found := false, false
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); fields[4] == "/" { // the last one is on top
			readOnly, found = strings.HasPrefix(fields[5]+",", "ro,"), true
		}
	}
	if !found {
		return false, fmt.Errorf("%s has no root", mountinfo)
	}
	return readOnly, nil
}
