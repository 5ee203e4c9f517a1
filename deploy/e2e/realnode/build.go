package realnode

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// The images under the names that the manifests have.
const (
	scalerImage  = "gpuscaler/scaler:dev"
	sidecarImage = "gpuscaler/nvmlsidecar:dev"
)

// PauseImage is what sandboxes are, and what a workload can be: it waits.
const PauseImage = "localhost/gpuscaler/pause:e2e"

// BuildOptions say what to build where.
type BuildOptions struct {
	// Repo is the repository's root, Source the folder deploy/e2e.
	Repo, Source string
	// To is the folder for the images and the programs of the node.
	To string
	// Progress is told what is going on.
	Progress func(string)
}

// Build makes what a node is started with: our two images by the scripts of
// the repository, from bin/ as "make build" makes it, and the small programs of
// this package. It goes before the namespaces, which have no way to the Go
// modules' servers, and needs root as they do.
func Build(ctx context.Context, o BuildOptions) error {
	if err := checkPrograms("buildah"); err != nil {
		return err
	}
	if err := os.MkdirAll(o.To, 0o755); err != nil {
		return err
	}
	b := builder{o: o, storage: filepath.Join(o.To, "storage")}
	defer func() { _ = os.RemoveAll(b.storage) }()
	if err := b.configure(); err != nil {
		return err
	}
	o.Progress("building the images")
	for _, step := range []func(context.Context) error{b.programs, b.product, b.pause, b.export} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// builder keeps the images of one build in a folder of their own, so that
// nothing is left on the machine, not even on its disk.
type builder struct {
	o       BuildOptions
	storage string
}

func (b *builder) configure() error {
	if err := os.MkdirAll(b.storage, 0o755); err != nil {
		return err
	}
	// vfs only copies: the other drivers leave mounts.
	return os.WriteFile(b.config(), fmt.Appendf(nil, "[storage]\ndriver = \"vfs\"\ngraphroot = %q\nrunroot = %q\n",
		filepath.Join(b.storage, "images"), filepath.Join(b.storage, "run")), 0o644)
}

func (b *builder) config() string { return filepath.Join(b.storage, "storage.conf") }

// programs are those of the node that we write ourselves.
func (b *builder) programs(ctx context.Context) error {
	return b.run(ctx, b.o.Source, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", b.o.To+"/",
		"./realnode/nvidiaruntime", "./realnode/deviceplugin", "./realnode/pause")
}

// product are our images, on bases that need no registry: nothing for the
// scaler, this machine's C library for the sidecar.
func (b *builder) product(ctx context.Context) error {
	if err := b.run(ctx, b.o.Repo, "make", "build"); err != nil {
		return err
	}
	if err := b.hidden(ctx, b.o.Repo, "deploy/images/glibc-base"); err != nil {
		return err
	}
	return b.hidden(ctx, b.o.Repo, "deploy/images/build")
}

func (b *builder) pause(ctx context.Context) error {
	return b.hidden(ctx, b.o.To, "buildah", "bud", "--isolation", "chroot", "--layers=false",
		"-f", filepath.Join(b.o.Source, "realnode", "pause", "Dockerfile"), "-t", PauseImage, b.o.To)
}

// export writes the images as archives that carry their names.
func (b *builder) export(ctx context.Context) error {
	for file, image := range map[string]string{"scaler": scalerImage, "nvmlsidecar": sidecarImage, "pause": PauseImage} {
		archive := filepath.Join(b.o.To, file+".tar")
		if err := os.Remove(archive); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err // else it is appended to
		}
		if err := b.hidden(ctx, b.o.To, "buildah", "push", image, "docker-archive:"+archive+":"+image); err != nil {
			return err
		}
	}
	return nil
}

// hidden runs a command that calls buildah. Wherever its storage is, it also
// writes to /run and /var/lib, which are others for this command alone.
func (b *builder) hidden(ctx context.Context, dir, name string, args ...string) error {
	const script = `mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/lib && exec "$0" "$@"`
	c := b.command(ctx, dir, "sh", append([]string{"-c", script, name}, args...)...)
	c.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	return output(c)
}

// run runs a command.
func (b *builder) run(ctx context.Context, dir, name string, args ...string) error {
	return output(b.command(ctx, dir, name, args...))
}

// command has this build's images and bases.
func (b *builder) command(ctx context.Context, dir, name string, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, name, args...)
	c.Dir = dir
	c.Env = append(os.Environ(), "CONTAINERS_STORAGE_CONF="+b.config(), "CGO_ENABLED=0", "GOWORK=off", "MAKEFLAGS=",
		"BASE_SCALER=scratch", "BASE_SIDECAR=localhost/gpuscaler/glibc:local", "TAG=dev")
	return c
}
