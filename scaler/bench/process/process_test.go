package process

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestOf(t *testing.T) {
	before, err := Of(os.Getpid())
	require.NoError(t, err)
	held := make([]byte, 64<<20)
	for i := 0; i < len(held); i += 4096 {
		held[i] = 1
	}
	for began := time.Now(); time.Since(began) < 100*time.Millisecond; {
		held[0]++
	}
	after, err := Of(os.Getpid())
	require.NoError(t, err)
	assert.Greater(t, after.CPU, before.CPU)
	assert.Greater(t, after.ResidentMiB, before.ResidentMiB+50)
	assert.GreaterOrEqual(t, after.PeakMiB, after.ResidentMiB)
	_, err = Of(1 << 30)
	assert.Error(t, err)
}
