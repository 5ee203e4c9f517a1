package profiles

import (
	"context"
	"os"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Run keeps the set up to date with the folder until ctx ends, and then returns
// nil. Changes show some 100 ms after they are made; where the kernel does not
// report them (network file systems, a folder that is itself replaced, no
// watches left on this machine), within 10 s. It must be called once at most.
func (s *Store) Run(ctx context.Context) error {
	if s.dir == "" {
		<-ctx.Done()
		return nil
	}
	var w watch
	if watcher, err := fsnotify.NewWatcher(); err != nil {
		// The kernel's limit on watchers is often reached on busy nodes; that
		// must not keep a scaler from scaling.
		s.log.Warn("cannot watch the folder of profiles, looking at it now and then", "dir", s.dir, "every", s.resync, "reason", err)
	} else {
		defer watcher.Close()
		w = newWatch(watcher, s.dir)
	}
	s.look(&w)

	resync := time.NewTicker(s.resync)
	defer resync.Stop()
	var due <-chan time.Time // nil while nothing has happened
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-w.events:
		case <-w.errors: // mostly: more events than the kernel keeps
		case <-resync.C:
			s.look(&w)
			continue
		case <-due:
			due = nil
			s.look(&w)
			continue
		}
		// One look for a whole burst of events. The delay runs from the first
		// of them, so that no stream of events puts it off for ever.
		if due == nil {
			due = time.After(s.debounce)
		}
	}
}

// look watches before it reads, so that no change falls between the two. A
// folder that cannot be read leaves everything as it was.
func (s *Store) look(w *watch) {
	w.renew()
	if err := s.reload(); err != nil {
		s.complain(err.Error() + "; the profiles stay as they are")
	}
}

// watch is the watch on the folder that the path leads to now. The zero watch
// reports nothing.
type watch struct {
	watcher *fsnotify.Watcher
	dir     string
	on      os.FileInfo // the folder being watched
	events  <-chan fsnotify.Event
	errors  <-chan error
}

func newWatch(watcher *fsnotify.Watcher, dir string) watch {
	return watch{watcher: watcher, dir: dir, events: watcher.Events, errors: watcher.Errors}
}

// renew follows the path when another folder has taken its place. Errors are
// left to the reading of the folder, which fails as well.
func (w *watch) renew() {
	if w.watcher == nil {
		return
	}
	now, err := os.Stat(w.dir)
	if err != nil {
		return
	}
	if len(w.watcher.WatchList()) > 0 {
		if os.SameFile(w.on, now) {
			return
		}
		_ = w.watcher.Remove(w.dir)
	}
	if w.watcher.Add(w.dir) == nil {
		w.on = now
	}
}
