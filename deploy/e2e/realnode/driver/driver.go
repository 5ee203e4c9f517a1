// Package driver says where the node has its driver, which is the fake one, and
// where containers get it: what the node and its container runtime agree on. It
// must not know either.
package driver

import (
	"path/filepath"
	"runtime"

	"gpuscaler/nvmlsidecar/fakenvml"
)

// Folder is the driver's on the node, as where NVIDIA's operator installs it.
// Containers see it at the same place.
const Folder = "/run/nvidia/driver"

// The files in it.
const (
	Library = Folder + "/" + fakenvml.Name
	Fixture = Folder + "/fixture.csv"
	Control = Folder + "/control"
)

// InContainer is where NVIDIA's runtime puts the library; it is where the
// loaders of Debian's and its like look without being told.
func InContainer() string {
	triplet := map[string]string{"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}[runtime.GOARCH]
	return filepath.Join("/usr/lib", triplet, fakenvml.Name)
}

// Env is what the fake driver needs that a real one does not.
func Env() []string {
	return []string{"FAKENVML_FIXTURE=" + Fixture, "FAKENVML_CONTROL=" + Control}
}
