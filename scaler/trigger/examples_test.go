package trigger

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v2"

	"gpuscaler/profiles"
)

// object is what the tests need of a manifest.
type object struct {
	APIVersion string `yaml:"apiVersion"`
	Kind       string
	Spec       struct {
		MinReplicaCount *int `yaml:"minReplicaCount"`
		Triggers        []struct {
			Type     string
			Metadata map[string]string
		}
	}
}

// Every built-in profile has an example of its name, and every trigger in an
// example, those of subfolders too, is one that the scaler takes and that means
// what it says.
func TestExamples(t *testing.T) {
	const folder = "../../deploy/examples"
	set := profiles.Builtin()
	var named []string
	require.NoError(t, filepath.WalkDir(folder, func(file string, entry fs.DirEntry, err error) error {
		require.NoError(t, err)
		if entry.IsDir() {
			return nil
		}
		require.Equal(t, ".yaml", filepath.Ext(file))
		triggers := 0
		for _, o := range documents(t, file) {
			if o.Kind != "ScaledObject" {
				continue
			}
			assert.Equal(t, "keda.sh/v1alpha1", o.APIVersion, file)
			for _, trigger := range o.Spec.Triggers {
				triggers++
				assert.Equal(t, "external", trigger.Type, file)
				assert.NotEmpty(t, trigger.Metadata["scalerAddress"], file)
				parsed, err := Parse(trigger.Metadata, set)
				require.NoError(t, err, file)
				assert.Empty(t, Suspicions(&parsed, 0.1), file)
				if parsed.AlwaysActive && assert.NotNil(t, o.Spec.MinReplicaCount, file) {
					assert.Positive(t, *o.Spec.MinReplicaCount, file)
				}
				if filepath.Dir(file) == filepath.Clean(folder) {
					assert.Equal(t, strings.TrimSuffix(filepath.Base(file), ".yaml"), parsed.Profile, file)
					named = append(named, parsed.Profile)
				}
			}
		}
		assert.Equal(t, 1, triggers, file)
		return nil
	}))
	slices.Sort(named)
	assert.Equal(t, set.Names(), named)
}

// documents reads all manifests of a file.
func documents(t *testing.T, file string) (all []object) {
	t.Helper()
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var o object
		err := decoder.Decode(&o)
		if errors.Is(err, io.EOF) {
			return all
		}
		require.NoError(t, err, file)
		all = append(all, o)
	}
}
