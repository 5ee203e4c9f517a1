package binaries

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// patch is one line of a module's source that is built otherwise, because the
// program has no flag for it. It must be there exactly once.
type patch struct{ module, file, line, instead string }

// apply makes a patched copy of a module in a folder, and a go.mod that uses it.
// The go command's overlays do not reach into its module cache.
func (p patch) apply(ctx context.Context, source, to string) (modfile string, err error) {
	from, err := download(ctx, source, p.module)
	if err != nil {
		return "", err
	}
	copied := filepath.Join(to, "module")
	if err := os.CopyFS(copied, os.DirFS(from)); err != nil {
		return "", err
	}
	file := filepath.Join(copied, p.file)
	text, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	if n := strings.Count(string(text), p.line); n != 1 {
		return "", fmt.Errorf("%s has %q %d times, not once; look at the patch", p.file, p.line, n)
	}
	if err := os.WriteFile(file, []byte(strings.Replace(string(text), p.line, p.instead, 1)), 0o644); err != nil {
		return "", err
	}
	for _, name := range []string{"go.mod", "go.sum"} {
		text, err := os.ReadFile(filepath.Join(source, name))
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(to, name), text, 0o644); err != nil {
			return "", err
		}
	}
	modfile = filepath.Join(to, "go.mod")
	_, err = run(ctx, source, "mod", "edit", "-replace="+p.module+"="+copied, modfile)
	return modfile, err
}
