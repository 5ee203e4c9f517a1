// Package fakenvml builds a stand-in for NVIDIA's libnvidia-ml.so.1 that
// answers from a fixture (see shared/fixture) instead of from a driver, so
// that a program which loads NVML can be run unchanged without a GPU. The
// library itself is the C code in src.
//
// The library is steered by environment variables, read when it is loaded:
//
//	FAKENVML_FIXTURE  the recording to play, in a loop; required
//	FAKENVML_CONTROL  a file of faults, which may change at any time (see Control)
//	FAKENVML_ABSENT   symbols to hide, comma-separated, as if the driver were older
//	FAKENVML_SPEED    how fast time passes, 10 for tenfold
//	FAKENVML_DRIVER   the driver version to report, and to be like: functions that are younger
//	                  are absent, and 535.43 to 535.86 write longer records of processes
package fakenvml

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// Name is the file name under which programs look for NVML.
const Name = "libnvidia-ml.so.1"

// The C code is in a folder of its own, and embedded: Go would want to compile
// it with cgo beside Go files, and Build has to find it from anywhere.
//
//go:embed src
var sources embed.FS

// Build compiles the library into dir, which is made if need be, and returns
// its path. It needs a C compiler ($CC, or gcc) and, for NVML's header, the
// go command and the go-nvml module. Errors include the compiler's output.
func Build(dir string) (path string, err error) {
	header, err := headerDir()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return "", err
	}
	work, err := os.MkdirTemp(dir, ".build-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(work)
	if err := os.CopyFS(work, sources); err != nil {
		return "", err
	}
	files, err := fs.Glob(sources, "src/*.c")
	if err != nil {
		return "", err
	}
	compiler := strings.Fields(os.Getenv("CC"))
	if len(compiler) == 0 {
		compiler = []string{"gcc"}
	}
	args := slices.Concat(compiler[1:], []string{
		"-std=gnu11", "-D_GNU_SOURCE", "-shared", "-fPIC", "-O2", "-pthread",
		"-Wall", "-Wextra", "-Werror", "-fvisibility=hidden",
		// Without it the header renames the first versions of functions to the
		// latest, and both could not be defined.
		"-DNVML_NO_UNVERSIONED_FUNC_DEFS=1", "-isystem", header,
		"-Wl,-soname," + Name,
		// The number of symbols, which hiding some needs, is only in this table.
		"-Wl,--hash-style=sysv",
		// A client that unloads NVML between two initialisations must find the
		// clock where it was.
		"-Wl,-z,nodelete",
		"-o", Name,
	}, files, []string{"-lm"})
	cmd := exec.Command(compiler[0], args...)
	cmd.Dir = work
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building %s with %s: %w\n%s", Name, compiler[0], err, out)
	}
	// Moved into place whole, because a program may be loading the old one.
	path = filepath.Join(dir, Name)
	return path, os.Rename(filepath.Join(work, Name), path)
}

// headerDir is where go-nvml keeps nvml.h: the header must be the one that the
// programs under test are compiled with.
func headerDir() (string, error) {
	const module = "github.com/NVIDIA/go-nvml"
	cmd := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", module)
	// The module is known where this source is, whatever the working folder.
	if _, here, _, ok := runtime.Caller(0); ok {
		if dir := filepath.Dir(here); isDir(dir) {
			cmd.Dir = dir
		}
	}
	out, err := cmd.Output()
	dir := strings.TrimSpace(string(out))
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return "", fmt.Errorf("finding %s, for nvml.h: %w\n%s", module, err, exit.Stderr)
	case err != nil:
		return "", fmt.Errorf("finding %s, for nvml.h: %w", module, err)
	case dir == "":
		return "", fmt.Errorf("finding %s, for nvml.h: its sources are not there; try go mod download", module)
	}
	return filepath.Join(dir, "pkg", "nvml"), nil
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}
