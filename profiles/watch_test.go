package profiles

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// logbook is a log that tests can read while it is written.
type logbook struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logbook) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logbook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *logbook) count(part string) int { return strings.Count(l.String(), part) }

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, data, 0o644))
}

func withTarget(name, target string) []byte {
	return text(name, map[string]string{"targetValue": target})
}

// start runs a store on dir until the test ends.
func start(t *testing.T, dir string, change ...func(*Store)) (*Store, *logbook) {
	t.Helper()
	log := &logbook{}
	s, err := NewStore(dir, slog.New(slog.NewTextHandler(log, nil)))
	require.NoError(t, err)
	s.debounce, s.resync = 5*time.Millisecond, time.Hour
	for _, f := range change {
		f(s)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		assert.NoError(t, <-done)
	})
	return s, log
}

// target is the target of a profile in use, or 0 when there is none.
func target(s *Store, name string) float64 {
	p, _ := s.Load().Get(name)
	return p.Target
}

// eventually waits for the store to say so, woken by its own changes.
func eventually(t *testing.T, s *Store, what string, holds func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		changed := s.Changed()
		if holds() {
			return
		}
		select {
		case <-changed:
		case <-time.After(2 * time.Millisecond):
		case <-deadline:
			require.Fail(t, "not in time", what)
		}
	}
}

func becomes(t *testing.T, s *Store, name string, want float64) {
	t.Helper()
	eventually(t, s, fmt.Sprintf("%s becomes %v", name, want), func() bool { return target(s, name) == want })
}

func TestNewStore(t *testing.T) {
	s, err := NewStore("", slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	assert.Same(t, Builtin(), s.Load())
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	assert.NoError(t, s.Run(ctx))

	_, err = NewStore(filepath.Join(t.TempDir(), "none"), slog.New(slog.DiscardHandler))
	assert.ErrorContains(t, err, "folder of profiles: open ")
	file := filepath.Join(t.TempDir(), "file")
	write(t, file, nil)
	_, err = NewStore(file, slog.New(slog.DiscardHandler))
	assert.ErrorContains(t, err, "not a directory")
}

func TestStartWithAMixedFolder(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "ours.yml"), withTarget("ours", "51"))
	write(t, filepath.Join(dir, "batch.yaml"), withTarget("batch", "33"))
	write(t, filepath.Join(dir, "bad.yaml"), withTarget("bad", "80%"))
	write(t, filepath.Join(dir, "big.yaml"), bytes.Repeat([]byte("#"), MaxFileBytes+1))
	write(t, filepath.Join(dir, ".hidden.yaml"), withTarget(".hidden", "10"))
	write(t, filepath.Join(dir, "README.md"), []byte("not ours"))
	write(t, filepath.Join(dir, "twice.yaml"), withTarget("twice", "10"))
	write(t, filepath.Join(dir, "twice.yml"), withTarget("twice", "2"))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "folder.yaml"), 0o755))
	require.NoError(t, syscall.Mkfifo(filepath.Join(dir, "pipe.yaml"), 0o644))
	require.NoError(t, os.Symlink("nowhere", filepath.Join(dir, "dangling.yaml")))

	s, log := start(t, dir)
	assert.ElementsMatch(t, append(Builtin().Names(), "ours", "twice"), s.Load().Names())
	assert.Equal(t, 51.0, target(s, "ours"))
	assert.Equal(t, 33.0, target(s, "batch"))
	assert.Equal(t, 10.0, target(s, "twice"))
	for _, line := range []string{
		`level=ERROR msg="bad profile: it is skipped" file=bad.yaml reason="bad.yaml: targetValue: \"80%\" is not a number; allowed is a finite number above 0"`,
		`file=big.yaml reason="big.yaml: more than 65536 bytes; at most 65536 are allowed"`,
		`file=folder.yaml reason="folder.yaml: no regular file"`,
		`file=pipe.yaml reason="pipe.yaml: no regular file"`,
		`file=twice.yml reason="twice.yml: name: \"twice\" is that of twice.yaml too; one file for each name is allowed"`,
		`msg="custom profile replaces the built-in one" profile=batch file=batch.yaml`,
		`msg="custom profile loaded" profile=ours file=ours.yml`,
	} {
		assert.Equal(t, 1, log.count(line), "%s in\n%s", line, log)
	}
	assert.Zero(t, log.count("hidden"))
	assert.Zero(t, log.count("README"))
	assert.Zero(t, log.count("dangling"))

	require.NoError(t, os.Remove(filepath.Join(dir, "twice.yaml")))
	becomes(t, s, "twice", 2)
	write(t, filepath.Join(dir, "twice.yaml"), withTarget("twice", "3"))
	becomes(t, s, "twice", 3)
}

func TestLiveReload(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "ours.yaml")
	s, log := start(t, dir)
	before, changed := s.Load(), s.Changed()

	write(t, path, withTarget("ours", "50"))
	becomes(t, s, "ours", 50)
	select {
	case <-changed:
	default:
		assert.Fail(t, "the change was not announced")
	}
	assert.NotContains(t, before.Names(), "ours", "a set must not change")

	// As editors do it: write another file, rename it over the old one.
	write(t, path+"~", withTarget("ours", "60"))
	require.NoError(t, os.Rename(path+"~", path))
	becomes(t, s, "ours", 60)

	// A bad file keeps the last good version, and says so once.
	changed = s.Changed()
	write(t, path+"~", withTarget("ours", "-3"))
	require.NoError(t, os.Rename(path+"~", path))
	const complaint = `msg="bad profile: its last good version stays in use" file=ours.yaml reason="ours.yaml: targetValue: \"-3\" is not above 0`
	eventually(t, s, "complaint", func() bool { return log.count(complaint) == 1 })
	assert.Equal(t, 60.0, target(s, "ours"))
	write(t, filepath.Join(dir, "other.yaml"), withTarget("other", "7"))
	becomes(t, s, "other", 7)
	assert.Equal(t, 1, log.count(complaint), "said once for each change, not for each look")
	<-changed

	// A good one takes over again.
	write(t, path+"~", withTarget("ours", "65"))
	require.NoError(t, os.Rename(path+"~", path))
	becomes(t, s, "ours", 65)

	// A custom profile hides a built-in one until it is removed.
	write(t, filepath.Join(dir, "batch.yaml"), withTarget("batch", "20"))
	becomes(t, s, "batch", 20)
	require.NoError(t, os.Remove(filepath.Join(dir, "batch.yaml")))
	becomes(t, s, "batch", 70)
	require.NoError(t, os.Remove(path))
	becomes(t, s, "ours", 0)
	eventually(t, s, "log", func() bool {
		return log.count(`msg="custom profile removed" profile=ours file=ours.yaml built_in_used_again=false`) == 1 &&
			log.count(`msg="custom profile removed" profile=batch file=batch.yaml built_in_used_again=true`) == 1
	})
}

// configMap does what the kubelet does: a new folder, one symlink swapped.
type configMap struct {
	t   *testing.T
	dir string
	n   int
}

func (c *configMap) mount(files map[string][]byte) {
	c.t.Helper()
	c.n++
	version := fmt.Sprintf("..2026_%d", c.n)
	require.NoError(c.t, os.Mkdir(filepath.Join(c.dir, version), 0o755))
	for name, data := range files {
		write(c.t, filepath.Join(c.dir, version, name), data)
	}
	old, _ := os.Readlink(filepath.Join(c.dir, "..data"))
	require.NoError(c.t, os.Symlink(version, filepath.Join(c.dir, "..data_tmp")))
	require.NoError(c.t, os.Rename(filepath.Join(c.dir, "..data_tmp"), filepath.Join(c.dir, "..data")))
	for name := range files {
		_ = os.Symlink(filepath.Join("..data", name), filepath.Join(c.dir, name))
	}
	entries, err := os.ReadDir(c.dir)
	require.NoError(c.t, err)
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "..") && files[e.Name()] == nil {
			require.NoError(c.t, os.Remove(filepath.Join(c.dir, e.Name())))
		}
	}
	if old != "" {
		require.NoError(c.t, os.RemoveAll(filepath.Join(c.dir, old)))
	}
}

func TestConfigMap(t *testing.T) {
	c := configMap{t: t, dir: t.TempDir()}
	c.mount(map[string][]byte{"a.yaml": withTarget("a", "10")})
	s, log := start(t, c.dir)
	assert.Equal(t, 10.0, target(s, "a"))

	c.mount(map[string][]byte{"a.yaml": withTarget("a", "2"), "b.yaml": withTarget("b", "3")})
	becomes(t, s, "a", 2)
	becomes(t, s, "b", 3)

	c.mount(map[string][]byte{"a.yaml": []byte("nonsense"), "b.yaml": withTarget("b", "4")})
	becomes(t, s, "b", 4)
	assert.Equal(t, 2.0, target(s, "a"))
	assert.Equal(t, 1, log.count("last good version stays in use"))

	c.mount(map[string][]byte{"a.yaml": withTarget("a", "5")})
	becomes(t, s, "a", 5)
	becomes(t, s, "b", 0)
}

func TestFolderReplaced(t *testing.T) {
	parent := t.TempDir()
	dir := filepath.Join(parent, "profiles")
	require.NoError(t, os.Mkdir(dir, 0o755))
	write(t, filepath.Join(dir, "ours.yaml"), withTarget("ours", "10"))
	s, log := start(t, dir, func(s *Store) { s.resync = 5 * time.Millisecond })

	require.NoError(t, os.Rename(dir, dir+".old"))
	eventually(t, s, "complaint", func() bool { return log.count("no such file or directory; the profiles stay as they are") == 1 })
	assert.Equal(t, 10.0, target(s, "ours"))

	require.NoError(t, os.Mkdir(dir, 0o755))
	write(t, filepath.Join(dir, "ours.yaml"), withTarget("ours", "2"))
	becomes(t, s, "ours", 2)
	assert.Equal(t, 1, log.count("the profiles stay as they are"))
}

// After a replaced folder was found again, its events are, too.
func TestFolderWatchedAgain(t *testing.T) {
	parent := t.TempDir()
	link := filepath.Join(parent, "profiles")
	for _, d := range []string{"one", "two"} {
		require.NoError(t, os.Mkdir(filepath.Join(parent, d), 0o755))
	}
	write(t, filepath.Join(parent, "two", "ours.yaml"), withTarget("ours", "2"))
	require.NoError(t, os.Symlink("one", link))
	s, _ := start(t, link)
	write(t, filepath.Join(link, "ours.yaml"), withTarget("ours", "10"))
	becomes(t, s, "ours", 10)

	require.NoError(t, os.Symlink("two", link+"~"))
	require.NoError(t, os.Rename(link+"~", link))
	write(t, filepath.Join(parent, "one", "nudge.yaml"), withTarget("nudge", "9")) // the slow look is an hour away
	becomes(t, s, "ours", 2)
	write(t, filepath.Join(link, "ours.yaml"), withTarget("ours", "3"))
	becomes(t, s, "ours", 3)
}

func TestTooManyFiles(t *testing.T) {
	dir := t.TempDir()
	for i := range MaxFiles + 2 {
		name := fmt.Sprintf("p%04d", i)
		write(t, filepath.Join(dir, name+".yaml"), withTarget(name, "10"))
	}
	log := &logbook{}
	s, err := NewStore(dir, slog.New(slog.NewTextHandler(log, nil)))
	require.NoError(t, err)
	assert.Len(t, s.Load().Names(), MaxFiles+len(Builtin().Names()))
	require.NoError(t, s.reload())
	assert.Equal(t, 1, log.count(`1002 files, at most 1000 are read; ignored are \"p1000.yaml\" and those after it`))
}

// No change announces itself when nothing has changed.
func TestNoChange(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "ours.yaml")
	write(t, path, withTarget("ours", "10"))
	s, err := NewStore(dir, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	set := s.Load()
	write(t, path, append(withTarget("ours", "10"), "# a comment\n"...))
	require.NoError(t, s.reload())
	assert.Same(t, set, s.Load())
}
