package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/stretchr/testify/require"

	"gpuscaler/deploy/e2e/realnode/driver"
)

func TestCreated(t *testing.T) {
	for _, c := range []struct {
		args   []string
		bundle string
		ok     bool
	}{
		{[]string{"--root", "/r", "--log-format", "json", "create", "--bundle", "/b", "--pid-file", "/p", "id"}, "/b", true},
		{[]string{"run", "-b=/b", "id"}, "/b", true},
		{[]string{"create", "id"}, ".", true},
		{[]string{"--root", "/r", "start", "id"}, ".", false},
	} {
		bundle, ok := created(c.args)
		require.Equal(t, c.ok, ok, c.args)
		require.Equal(t, c.bundle, bundle, c.args)
	}
}

func TestEdit(t *testing.T) {
	for _, c := range []struct {
		name  string
		env   []string
		given bool
	}{
		{"the sidecar's image", []string{"NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_DRIVER_CAPABILITIES=utility"}, true},
		{"a device plugin's answer", []string{"NVIDIA_VISIBLE_DEVICES=GPU-1"}, true},
		{"nothing said", nil, false},
		{"void", []string{"NVIDIA_VISIBLE_DEVICES=void"}, false},
		{"the last one counts", []string{"NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_VISIBLE_DEVICES=none"}, false},
		{"another part of the driver", []string{"NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_DRIVER_CAPABILITIES=compute,video"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "config.json")
			before := specs.Spec{Version: "1.0.2", Process: &specs.Process{Env: c.env, NoNewPrivileges: true}}
			text, err := json.Marshal(before)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(path, text, 0o600))
			require.NoError(t, edit(path))
			text, err = os.ReadFile(path)
			require.NoError(t, err)
			var after specs.Spec
			require.NoError(t, json.Unmarshal(text, &after))
			require.True(t, after.Process.NoNewPrivileges)
			if !c.given {
				require.Equal(t, before, after)
				return
			}
			require.Len(t, after.Mounts, 2)
			require.Subset(t, after.Process.Env, driver.Env())
			for _, m := range after.Mounts {
				require.Contains(t, m.Options, "ro")
			}
		})
	}
}
