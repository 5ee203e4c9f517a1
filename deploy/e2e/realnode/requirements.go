package realnode

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// packages are Debian's for the programs that are not built here.
var packages = map[string]string{
	"containerd":              "containerd",
	"containerd-shim-runc-v2": "containerd",
	"ctr":                     "containerd",
	"runc":                    "runc",
	"iptables":                "iptables",
	"buildah":                 "buildah",
	"make":                    "make",
}

// cniFolder is where Debian has the CNI plugins, of the package cniPackage.
const (
	cniFolder  = "/usr/lib/cni"
	cniPackage = "containernetworking-plugins"
)

// Check is an error that names what is missing on this machine.
func Check() error {
	var errs []error
	for program := range packages {
		errs = append(errs, checkPrograms(program))
	}
	for _, plugin := range []string{"bridge", "host-local", "loopback"} {
		if _, err := os.Stat(filepath.Join(cniFolder, plugin)); err != nil {
			errs = append(errs, fmt.Errorf("%w: apt-get install %s", err, cniPackage))
		}
	}
	return errors.Join(errs...)
}

func checkPrograms(names ...string) error {
	var errs []error
	for _, name := range names {
		if _, err := exec.LookPath(name); err != nil {
			errs = append(errs, fmt.Errorf("%w: apt-get install %s", err, packages[name]))
		}
	}
	return errors.Join(errs...)
}
