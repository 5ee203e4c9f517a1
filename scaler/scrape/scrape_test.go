package scrape

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestLarge: while others read large pages no more are begun; small ones are read all the
// same.
func TestLarge(t *testing.T) {
	size := 60 << 10
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte(strings.Repeat("a", size)))
	}))
	t.Cleanup(s.Close)
	large := NewLarge()
	c := NewClient(4*time.Second, large) // of slow machines
	defer c.Close()
	get := func(bytes int) error {
		size = bytes
		page, err := c.Get(t.Context(), s.URL)
		if err == nil {
			require.Len(t, page.Body, bytes)
		}
		return err
	}
	require.NoError(t, get(MaxBytes))
	for range largeAtOnce {
		large <- struct{}{}
	}
	require.NoError(t, get(small))
	assert.ErrorContains(t, get(small+1), "more than 256 KiB, and 2 such are read already")
	<-large
	require.NoError(t, get(small+1))
	assert.Len(t, large, largeAtOnce-1, "the place is free again")
	assert.ErrorContains(t, get(MaxBytes+1), "more than 4 MiB")
	assert.Len(t, large, largeAtOnce-1)
}

// TestCheckIP: no address leads to all hosts, to a group of them, or to a cloud's metadata.
func TestCheckIP(t *testing.T) {
	for _, ip := range []string{"10.0.3.7", "fd00::7", "127.0.0.1"} {
		assert.NoError(t, CheckIP(ip), ip)
	}
	for _, ip := range []string{"", "0.0.0.0", "::", "224.0.0.1", "169.254.169.254", "fe80::1", "gateway", "10.0.3.7:80"} {
		assert.ErrorContains(t, CheckIP(ip), "is none that is read", ip)
	}
}
