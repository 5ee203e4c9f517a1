package realnode

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

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"gpuscaler/deploy/e2e/namespaces"
	"gpuscaler/deploy/e2e/process"
)

// folders are what the node fills, all of the namespaces' own.
var folders = []string{kubeletRoot, "/var/lib/cni", "/var/lib/containerd", containerdState, "/run/netns", "/run/nvidia"}

// Stop ends the node and everything on it, at once: its pods are not asked to
// end. Another may be started afterwards. The cluster keeps the Node object.
func (n *Node) Stop() error {
	var errs []error
	// First who would start containers again.
	for _, p := range []*process.Process{n.Kubelet, n.Plugin, n.Proxy} {
		if p != nil {
			errs = append(errs, p.Stop())
		}
	}
	errs = append(errs, namespaces.KillCgroup())
	if n.Containerd != nil {
		errs = append(errs, n.Containerd.Stop())
	}
	errs = append(errs, killShims(), unmount(), removeBridge())
	for _, folder := range folders {
		errs = append(errs, os.RemoveAll(folder))
	}
	return errors.Join(errs...)
}

// killShims ends containerd's helpers, one a pod, which outlive it by design. The
// processes seen here are those of our namespaces only.
func killShims() error {
	const gone = 2 * time.Second
	for last := time.Now().Add(gone); ; time.Sleep(10 * time.Millisecond) {
		names, err := filepath.Glob("/proc/[0-9]*/comm")
		if err != nil {
			return err
		}
		left := 0
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err != nil || !strings.HasPrefix(string(text), "containerd-shim") {
				continue
			}
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			if err != nil {
				return err
			}
			if err := syscall.Kill(pid, syscall.SIGKILL); err == nil {
				left++
			}
		}
		if left == 0 {
			return nil
		}
		if time.Now().After(last) {
			return fmt.Errorf("%d of containerd's shims did not end within %s of SIGKILL", left, gone)
		}
	}
}

// unmount removes all mounts of the node's folders, the last one first.
func unmount() error {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	var mounts []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		point := strings.Fields(lines.Text())[4]
		for _, folder := range folders {
			if point == folder || strings.HasPrefix(point, folder+"/") {
				mounts = append(mounts, point)
			}
		}
	}
	var errs []error
	for _, point := range slices.Backward(mounts) {
		if err := unix.Unmount(point, unix.MNT_DETACH); err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.EINVAL) {
			errs = append(errs, fmt.Errorf("unmounting %s: %w", point, err)) // EINVAL: gone with another
		}
	}
	return errors.Join(errs...)
}

// removeBridge takes the pods' network away; their ends of it went with them.
func removeBridge() error {
	link, err := netlink.LinkByName(bridge)
	var none netlink.LinkNotFoundError
	if errors.As(err, &none) {
		return nil // there was no pod
	}
	if err != nil {
		return err
	}
	return netlink.LinkDel(link)
}
