package binaries

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// One builds, the other waits and says so, and goes on as soon as it can or is
// told to stop.
func TestLock(t *testing.T) {
	root := t.TempDir()
	said := make(chan string, 10)
	progress := func(line string) { said <- line }
	unlock, err := lock(t.Context(), root, progress)
	require.NoError(t, err)
	require.Empty(t, said)

	short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err = lock(short, root, progress)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.Contains(t, <-said, "another process builds into "+root)

	got := make(chan error)
	go func() {
		again, err := lock(t.Context(), root, progress)
		if err == nil {
			again()
		}
		got <- err
	}()
	<-said
	unlock()
	require.NoError(t, <-got)
}
