// Command nvidiaruntime stands in for NVIDIA's container runtime: it is called
// like runc and does what runc does, but first gives containers that ask for
// GPUs the driver of the node. It must not know who asks, and decides as the
// original does, by the container's environment alone.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"gpuscaler/deploy/e2e/realnode/driver"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "nvidiaruntime:", err)
		os.Exit(1)
	}
}

// run becomes runc, which is why there is nothing to return.
func run(args []string) error {
	if bundle, ok := created(args); ok {
		if err := edit(filepath.Join(bundle, "config.json")); err != nil {
			return err
		}
	}
	runc, err := exec.LookPath("runc")
	if err != nil {
		return err
	}
	return syscall.Exec(runc, append([]string{"runc"}, args...), os.Environ())
}

// created is the bundle of the container that these arguments create, if they do.
func created(args []string) (bundle string, ok bool) {
	bundle = "."
	for i, arg := range args {
		name, value, joined := strings.Cut(arg, "=")
		switch {
		case arg == "create" || arg == "run":
			ok = true
		case name != "--bundle" && name != "-b":
		case joined:
			bundle = value
		case i+1 < len(args):
			bundle = args[i+1]
		}
	}
	return bundle, ok
}

// edit adds the driver to a container's configuration, if it asks for one.
func edit(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	spec := &specs.Spec{}
	if err := json.Unmarshal(text, spec); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	if spec.Process == nil || !wanted(spec.Process.Env) {
		return nil
	}
	spec.Mounts = append(spec.Mounts,
		readOnly(driver.Folder, driver.Folder),
		readOnly(driver.Library, driver.InContainer()))
	spec.Process.Env = append(spec.Process.Env, driver.Env()...)
	if text, err = json.Marshal(spec); err != nil {
		return err
	}
	return os.WriteFile(path, text, 0o600)
}

func readOnly(from, to string) specs.Mount {
	return specs.Mount{Type: "bind", Source: from, Destination: to, Options: []string{"rbind", "ro", "nosuid", "nodev"}}
}

// wanted says whether a container asks for GPUs, and for the part of the
// driver that has NVML.
func wanted(env []string) bool {
	values := make(map[string]string)
	for _, e := range env {
		name, value, _ := strings.Cut(e, "=")
		values[name] = value
	}
	switch values["NVIDIA_VISIBLE_DEVICES"] {
	case "", "void", "none":
		return false
	}
	parts, said := values["NVIDIA_DRIVER_CAPABILITIES"]
	if !said {
		return true // the original's default has it
	}
	for part := range strings.SplitSeq(parts, ",") {
		if part == "utility" || part == "all" {
			return true
		}
	}
	return false
}
