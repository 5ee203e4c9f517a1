package profiles

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// MaxFiles is how many profiles a folder may hold. Files beyond it, in
// alphabetical order, are ignored and the log says so.
const MaxFiles = 1000

// Store holds the Set in use, built-in profiles and those of a folder, and
// replaces it when the folder changes. Load and Changed may be called from any
// goroutine and take no lock.
type Store struct {
	dir     string
	log     *slog.Logger
	current atomic.Pointer[generation]

	// The rest belongs to NewStore and then to Run alone.
	files    map[string]*file // by file name
	trouble  string           // what was last said about the folder as a whole
	debounce time.Duration
	resync   time.Duration
}

type generation struct {
	set     *Set
	changed chan struct{} // closed when the next generation is there
}

// file is what is known of one file of the folder.
type file struct {
	seen string   // fingerprint of the content, or of the failure to read it
	good *Profile // the last version that was good, or nil
}

// NewStore reads the profiles of dir beside the built-in ones; with dir "" there
// are only those. A profile of a built-in one's name replaces it. A file that
// is bad is skipped, and the log names it and the reason; a folder that cannot
// be read is an error.
func NewStore(dir string, log *slog.Logger) (*Store, error) {
	s := &Store{
		dir: dir, log: log, files: map[string]*file{},
		debounce: 100 * time.Millisecond, resync: 10 * time.Second,
	}
	s.current.Store(&generation{set: Builtin(), changed: make(chan struct{})})
	if dir == "" {
		return s, nil
	}
	if err := s.reload(); err != nil {
		return nil, fmt.Errorf("folder of profiles: %w", err)
	}
	return s, nil
}

// Load is the set in use now.
func (s *Store) Load() *Set { return s.current.Load().set }

// Changed is a channel that is closed when the set is replaced. Ask for it
// before Load, not after, and no change goes unseen.
func (s *Store) Changed() <-chan struct{} { return s.current.Load().changed }

// reload brings the set up to the folder's present state. On an error nothing
// has changed.
func (s *Store) reload() error {
	names, err := s.list()
	if err != nil {
		return err
	}
	present := make(map[string]bool, len(names))
	owners := make(map[string]string, len(names)) // file by profile name
	for _, name := range names {
		data, seen, err := s.read(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since it was listed
		}
		present[name] = true
		stem := nameOf(name)
		owner, taken := owners[stem]
		if taken {
			err = fmt.Errorf("%s: name: %q is that of %s too; one file for each name is allowed", name, stem, owner)
			seen = err.Error()
			if f := s.files[name]; f != nil {
				f.good = nil // no last good version beside the other file's
			}
		} else {
			owners[stem] = name
		}
		s.take(name, data, seen, err)
	}
	for name, f := range s.files {
		if present[name] {
			continue
		}
		delete(s.files, name)
		if f.good != nil {
			_, builtin := Builtin().Get(f.good.Name)
			s.log.Info("custom profile removed", "profile", f.good.Name, "file", name, "built_in_used_again", builtin)
		}
	}
	s.publish()
	return nil
}

// list names the files that hold profiles, in alphabetical order.
func (s *Store) list() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		// Hidden entries are a ConfigMap's versions and editors' drafts.
		if name := e.Name(); !strings.HasPrefix(name, ".") && nameOf(name) != name {
			names = append(names, name)
		}
	}
	if len(names) > MaxFiles {
		s.complain(fmt.Sprintf("%d files, at most %d are read; ignored are %q and those after it", len(names), MaxFiles, names[MaxFiles]))
		return names[:MaxFiles], nil
	}
	s.complain("")
	return names, nil
}

// complain says what is wrong with the folder, once for as long as it lasts.
func (s *Store) complain(trouble string) {
	if trouble != "" && trouble != s.trouble {
		s.log.Error("folder of profiles", "dir", s.dir, "reason", trouble)
	}
	s.trouble = trouble
}

// read returns the content of a file, at most one byte more than is allowed,
// and a fingerprint that changes when the content or the failure does.
func (s *Store) read(name string) (data []byte, seen string, err error) {
	// Opening a pipe would wait for its writer, but for O_NONBLOCK.
	f, err := os.OpenFile(filepath.Join(s.dir, name), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err == nil {
		defer f.Close()
		var info fs.FileInfo
		if info, err = f.Stat(); err == nil && !info.Mode().IsRegular() {
			err = fmt.Errorf("%s: no regular file", name)
		}
	}
	if err == nil {
		data, err = io.ReadAll(io.LimitReader(f, MaxFileBytes+1))
	}
	if err != nil {
		return nil, err.Error(), err
	}
	sum := sha256.Sum256(data)
	return data, string(sum[:]), nil
}

// take makes a file's content the profile in use, or keeps the last good one.
// It does and says nothing when the file is as it was.
func (s *Store) take(name string, data []byte, seen string, err error) {
	f := s.files[name]
	if f == nil {
		f = &file{}
		s.files[name] = f
	}
	if f.seen == seen {
		return
	}
	f.seen = seen
	var p Profile
	if err == nil {
		p, err = parse(name, data)
	}
	switch _, builtin := Builtin().Get(p.Name); {
	case err != nil && f.good != nil:
		s.log.Error("bad profile: its last good version stays in use", "file", name, "reason", err)
	case err != nil:
		s.log.Error("bad profile: it is skipped", "file", name, "reason", err)
	case f.good != nil:
		s.log.Info("custom profile changed", "profile", p.Name, "file", name)
	case builtin:
		s.log.Info("custom profile replaces the built-in one", "profile", p.Name, "file", name)
	default:
		s.log.Info("custom profile loaded", "profile", p.Name, "file", name)
	}
	if err == nil {
		f.good = &p
	}
}

// publish puts a new set in use unless it would be the same.
func (s *Store) publish() {
	byName := maps.Clone(Builtin().byName)
	for _, f := range s.files {
		if f.good != nil {
			byName[f.good.Name] = *f.good
		}
	}
	old := s.current.Load()
	if maps.Equal(byName, old.set.byName) {
		return
	}
	s.current.Store(&generation{set: newSet(byName), changed: make(chan struct{})})
	close(old.changed)
}

// nameOf is a file's name without .yaml or .yml, or unchanged without either.
func nameOf(file string) string {
	for _, ext := range []string{".yaml", ".yml"} {
		if stem, ok := strings.CutSuffix(file, ext); ok {
			return stem
		}
	}
	return file
}
