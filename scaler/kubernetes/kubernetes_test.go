package kubernetes

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const kubeconfig = `apiVersion: v1
kind: Config
current-context: here
contexts: [{name: here, context: {cluster: here, user: here}}]
clusters: [{name: here, cluster: {server: "https://127.0.0.1:1"}}]
users: [{name: here, user: {token: secret}}]
`

func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func TestKubeconfig(t *testing.T) {
	c, err := Config(file(t, kubeconfig), "gpuscaler/1")
	require.NoError(t, err)
	assert.Equal(t, "https://127.0.0.1:1", c.Host)
	assert.Equal(t, "secret", c.BearerToken)
	assert.Equal(t, "gpuscaler/1", c.UserAgent)
	assert.Zero(t, c.Timeout, "it would end watches")
	for range requestBurst {
		assert.True(t, c.RateLimiter.TryAccept())
	}
	assert.False(t, c.RateLimiter.TryAccept(), "one limit for all clients")
}

func TestBadKubeconfig(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing")
	for path, want := range map[string]string{
		missing:                             "kubeconfig " + missing + ": ",
		t.TempDir():                         "is a directory",
		file(t, "{{{"):                      "kubeconfig ",
		file(t, ""):                         "no configuration has been provided",
		file(t, kubeconfig[:60]+"\n"):       "kubeconfig ",
		file(t, "current-context: nowhere"): "context was not found",
		file(t, "apiVersion: v9\nx: y"):     "kubeconfig ",
	} {
		_, err := Config(path, "")
		require.ErrorContains(t, err, want)
		assert.ErrorContains(t, err, path, "it names the file")
		assert.NotErrorIs(t, err, ErrNone, "what was asked for and cannot be had is an error")
	}
}

// A laptop has no API server for us, whatever kubectl there would use.
func TestNone(t *testing.T) {
	t.Setenv("KUBECONFIG", file(t, kubeconfig))
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	_, err := Config("", "")
	require.ErrorIs(t, err, ErrNone)
	assert.ErrorContains(t, err, "unable to load in-cluster configuration")
	// A pod without a token, as deploy/base's sidecar.
	t.Setenv("KUBERNETES_SERVICE_HOST", "10.96.0.1")
	t.Setenv("KUBERNETES_SERVICE_PORT", "443")
	_, err = Config("", "")
	require.ErrorIs(t, err, ErrNone)
	assert.ErrorContains(t, err, "serviceaccount/token: no such file")
}
