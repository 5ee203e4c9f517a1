package trigger

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v2"

	"gpuscaler/profiles"
)

// Every built-in profile has an example, and every example is a trigger that
// the scaler takes.
func TestExamples(t *testing.T) {
	files, err := filepath.Glob("../../deploy/examples/*.yaml")
	require.NoError(t, err)
	set := profiles.Builtin()
	var seen []string
	for _, file := range files {
		data, err := os.ReadFile(file)
		require.NoError(t, err)
		var object struct {
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
		require.NoError(t, yaml.Unmarshal(data, &object), file)
		assert.Equal(t, "keda.sh/v1alpha1 ScaledObject", object.APIVersion+" "+object.Kind, file)
		require.Len(t, object.Spec.Triggers, 1, file)
		trigger := object.Spec.Triggers[0]
		assert.Equal(t, "external", trigger.Type, file)
		assert.NotEmpty(t, trigger.Metadata["scalerAddress"], file)

		parsed, err := Parse(trigger.Metadata, set)
		require.NoError(t, err, file)
		assert.Equal(t, strings.TrimSuffix(filepath.Base(file), ".yaml"), parsed.Profile, file)
		if parsed.AlwaysActive && assert.NotNil(t, object.Spec.MinReplicaCount, file) {
			assert.Positive(t, *object.Spec.MinReplicaCount, file)
		}
		seen = append(seen, parsed.Profile)
	}
	assert.Equal(t, set.Names(), seen)
}
