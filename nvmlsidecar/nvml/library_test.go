package nvml

import (
	"bytes"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A library that cannot be opened is named, with the dynamic linker's reason.
func TestLibraryThatCannotBeOpened(t *testing.T) {
	dir := t.TempDir()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		return path
	}
	missing := filepath.Join(dir, "none", "libnvidia-ml.so.1")
	text := write("text.so", string(bytes.Repeat([]byte("no library\n"), 100)))
	short := write("short.so", "")
	for name, c := range map[string]struct{ library, want string }{
		"a path that does not exist": {missing, missing + ": cannot open shared object file: No such file or directory"},
		"a name that the linker does not find": {
			"libgpuscaler-none.so.1", "libgpuscaler-none.so.1: cannot open shared object file: No such file or directory",
		},
		"a file that is no library": {text, text + ": invalid ELF header"},
		"an empty file":             {short, short + ": file too short"},
		"a library that lacks another": {
			needing(t, dir), filepath.Join(dir, "needing.so") + ": libgpuscaler-needed.so: cannot open shared object file: No such file or directory",
		},
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			d := New(Options{Library: c.library, Log: slog.New(slog.NewTextHandler(&log, nil))})
			now := time.Now()
			for range 3 {
				s, err := d.Read(now)
				require.NoError(t, err)
				assert.Equal(t, "nvmlInit: LIBRARY_NOT_FOUND: "+c.want, s.Error)
				require.NoError(t, s.Validate())
				now = now.Add(reopenAfter)
			}
			assert.Equal(t, 1, bytes.Count(log.Bytes(), []byte(c.want)), "logged once: %s", log.String())
		})
	}
}

// needing builds a library that needs one that is not there.
func needing(t *testing.T, dir string) string {
	t.Helper()
	source, needed, library := filepath.Join(dir, "empty.c"), filepath.Join(dir, "libgpuscaler-needed.so"), filepath.Join(dir, "needing.so")
	require.NoError(t, os.WriteFile(source, []byte("int nothing(void) { return 0; }\n"), 0o600))
	for _, args := range [][]string{
		{"-shared", "-fPIC", "-Wl,-soname,libgpuscaler-needed.so", "-o", needed, source},
		{"-shared", "-fPIC", "-o", library, source, "-Wl,--no-as-needed", needed},
	} {
		out, err := exec.Command("gcc", args...).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	require.NoError(t, os.Remove(needed))
	return library
}

// Where the library loads and NVML itself misses another, the file is not blamed.
func TestLibraryThatMissesAnother(t *testing.T) {
	set(t, "init LIBRARY_NOT_FOUND")
	defer set(t)
	d := New(Options{Library: fake.library, Log: slog.New(slog.DiscardHandler)})
	defer d.shutdown() // other tests share the library
	s, err := d.Read(time.Now())
	require.NoError(t, err)
	assert.Equal(t, "nvmlInit: LIBRARY_NOT_FOUND", s.Error)
	set(t)
	s, err = d.Read(time.Now().Add(reopenAfter))
	require.NoError(t, err)
	assert.Empty(t, s.Error, "it is still loaded")
	assert.NotEmpty(t, s.Devices)
}
