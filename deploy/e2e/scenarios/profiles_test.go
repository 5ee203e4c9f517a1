package scenarios

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	kedav1alpha1 "github.com/kedacore/keda/v2/apis/keda/v1alpha1"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/yaml"

	"gpuscaler/profiles"
)

// TestProfiles: for every built-in profile the example in deploy/examples and the
// six lines of the README become Ready, and the HPA shows the profile's target.
func TestProfiles(t *testing.T) {
	t.Parallel() // with what follows, too
	for _, name := range profiles.Builtin().Names() {
		profile, _ := profiles.Builtin().Get(name)
		t.Run(name, func(t *testing.T) {
			// Hopper, with NVLink: has every metric.
			s := begin(t, setting{name: "profile-" + name, fixture: "h100x8-uneven", replicas: 1})
			s.scale("", "profile", name)
			s.eventually("Ready", s.condition("Ready", "True"))
			s.eventually("the HPA has the profile's target", s.hpaTarget(name, profile.Target))
			example := s.example(name)
			s.eventually("the example is Ready", example.condition("Ready", "True"))
			s.eventually("the example's HPA has the profile's target", example.hpaTarget(name, profile.Target))
		})
	}
}

func (s *story) hpaTarget(profile string, target float64) func() error {
	return func() error {
		h, err := s.HPA(s.ctx)
		if err != nil {
			return err
		}
		if len(h.Spec.Metrics) != 1 || h.Spec.Metrics[0].External == nil || len(h.Status.CurrentMetrics) != 1 {
			return fmt.Errorf("not one metric: %+v", h.Spec.Metrics)
		}
		name := "s0-keda_gpu_" + strings.ReplaceAll(profile, "-", "_")
		m := h.Spec.Metrics[0].External
		if want := resource.MustParse(fmt.Sprint(target)); m.Metric.Name != name || m.Target.AverageValue.Cmp(want) != 0 {
			return fmt.Errorf("%s with target %s; want %s with %s", m.Metric.Name, m.Target.AverageValue, name, want.String())
		}
		return nil
	}
}

var address = regexp.MustCompile(`scalerAddress: \S+`)

// example applies a profile's file of deploy/examples as it is, but for the
// address, for a workload of the name and kind that it has there.
func (s *story) example(profile string) *story {
	s.Helper()
	text, err := os.ReadFile(filepath.Join(repo, "deploy", "examples", profile+".yaml"))
	require.NoError(s, err)
	var o kedav1alpha1.ScaledObject
	require.NoError(s, yaml.Unmarshal(text, &o))
	e := *s
	e.name = o.Spec.ScaleTargetRef.Name
	e.Workload, err = shared.AddWorkload(s.ctx, "example-"+profile, s.node.Name, 0)
	require.NoError(s, err)
	e.Workload = e.Named(e.name)
	if kind := o.Spec.ScaleTargetRef.Kind; kind != "" {
		e.Kind = kind
	}
	s.Cleanup(e.retire)
	require.NoError(s, e.Deploy(s.ctx, s.node.Name, 1))
	require.NoError(s, e.Apply(s.ctx, address.ReplaceAllString(string(text), "scalerAddress: "+s.node.Address)))
	return &e
}
