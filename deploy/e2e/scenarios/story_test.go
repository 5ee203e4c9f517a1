package scenarios

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	kedav1alpha1 "github.com/kedacore/keda/v2/apis/keda/v1alpha1"
	"github.com/stretchr/testify/require"

	"gpuscaler/deploy/e2e/cluster"
)

// storyTime bounds a story that does not say otherwise.
const storyTime = 3 * time.Minute

// story is a test with a GPU node and a workload on it, all named alike.
type story struct {
	*testing.T
	ctx  context.Context
	name string
	on   *cluster.Cluster
	node *cluster.GPUNode
	// fleet are all nodes, where there are several.
	fleet []*cluster.GPUNode
	// hidden are pods of which nothing can be read, by name.
	hidden map[string]bool
	*cluster.Workload
}

// all are the nodes of the story.
func (s *story) all() []*cluster.GPUNode {
	if len(s.fleet) > 0 {
		return s.fleet
	}
	return []*cluster.GPUNode{s.node}
}

// setting is what a story begins with.
type setting struct {
	name    string
	fixture string // of testdata, e.g. "h200-llm"
	// replicas is what the Deployment has at the beginning.
	replicas int
	// workload changes what the Deployment is.
	workload func(*cluster.Workload)
	node     cluster.GPUNodeOptions
	// on says which cluster it is on; nil is the one that stories share.
	on func() *cluster.Cluster
	// alone: the story is about a time too short for a busy machine.
	alone bool
	// joins: it is part of a story that has its turn already.
	joins bool
	// shares of the machine; 0 is oneShare.
	shares int
	// within is how long the story may take.
	within time.Duration
}

// begin sets the scene. Stories run side by side, the cases of a table beside
// each other: most of each is waiting.
func begin(t *testing.T, s setting) *story {
	t.Helper()
	s.within = cmp.Or(s.within, storyTime)
	if !s.alone && !s.joins {
		turns.turn(t, cmp.Or(s.shares, oneShare), s.within)
	}
	on := shared
	if s.on != nil {
		on = s.on()
	}
	ctx, cancel := context.WithTimeoutCause(t.Context(), s.within, fmt.Errorf("the story took more than %s", s.within))
	t.Cleanup(cancel)
	s.node.Name = s.name
	s.node.Fixture = fixture(s.fixture)
	node, err := on.AddGPUNode(ctx, s.node)
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, node.Stop()) })
	var options []func(*cluster.Workload)
	if s.workload != nil {
		options = append(options, s.workload)
	}
	w, err := on.AddWorkload(ctx, s.name, s.name, s.replicas, options...)
	require.NoError(t, err)
	st := &story{T: t, ctx: ctx, name: s.name, on: on, node: node, Workload: w}
	t.Cleanup(st.retire)
	t.Cleanup(st.tellFailure)
	return st
}

// scalerFlags are flags for the node's scaler.
func scalerFlags(flags ...string) cluster.GPUNodeOptions {
	return cluster.GPUNodeOptions{ScalerFlags: flags}
}

func fixture(name string) string { return repo + "/testdata/" + name + ".csv" }

// scale creates the ScaledObject: periods and bounds as YAML lines of its spec,
// and our trigger's metadata, beside the address, as key and value.
func (s *story) scale(spec string, metadata ...string) {
	s.Helper()
	s.scaleOn("external", spec, "", metadata...)
}

// scaleOn is scale with the kind of trigger, and further triggers as YAML.
func (s *story) scaleOn(kind, spec, more string, metadata ...string) {
	s.Helper()
	target := "name: " + s.name
	if s.Kind != "Deployment" { // KEDA's default
		target += ", kind: " + s.Kind
	}
	text := fmt.Sprintf("apiVersion: keda.sh/v1alpha1\nkind: ScaledObject\nmetadata: {name: %s}\nspec:\n  scaleTargetRef: {%s}\n", s.name, target)
	for _, line := range strings.Split(spec, "\n") {
		text += "  " + strings.TrimSpace(line) + "\n"
	}
	text += fmt.Sprintf("  triggers:\n  - type: %s\n    metadata:\n      scalerAddress: %s\n", kind, s.node.Address)
	for i := 0; i < len(metadata); i += 2 {
		text += fmt.Sprintf("      %s: %q\n", metadata[i], metadata[i+1])
	}
	require.NoError(s, s.Apply(s.ctx, text+more))
}

// must ends the story unless err is nil.
func (s *story) must(err error) {
	s.Helper()
	require.NoError(s, err)
}

// load sets figures of the driver, over those of the recording.
func (s *story) load(lines ...string) {
	s.Helper()
	require.NoError(s, s.node.Driver(lines...))
}

// eventually waits for what the reader is told by name.
func (s *story) eventually(what string, check func() error) {
	s.Helper()
	started := time.Now()
	err := cluster.Until(s.ctx, func(context.Context) error {
		require.NoError(s, s.on.Ended())
		return check()
	})
	require.NoError(s, err, "never came: %s", what)
	s.Logf("%s after %s", what, time.Since(started).Round(10*time.Millisecond))
}

// always looks at it for a time, and fails as soon as it does not hold.
func (s *story) always(what string, during time.Duration, check func() error) {
	s.Helper()
	for end := time.Now().Add(during); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		require.NoError(s, check(), "did not hold: %s", what)
	}
	s.Logf("%s for %s", what, during)
}

// replicas checks that the Deployment asks for n and has them.
func (s *story) replicas(n int) func() error {
	return func() error {
		wanted, ready, err := s.Replicas(s.ctx)
		if err == nil && (wanted != n || ready != n) {
			err = fmt.Errorf("%d replicas, %d of them ready; want %d", wanted, ready, n)
		}
		return err
	}
}

// atLeast checks that the Deployment asks for n or more.
func (s *story) atLeast(n int) func() error {
	return func() error {
		wanted, _, err := s.Replicas(s.ctx)
		if err == nil && wanted < n {
			err = fmt.Errorf("%d replicas; want %d or more", wanted, n)
		}
		return err
	}
}

// condition checks a condition of the ScaledObject, e.g. Ready, True.
func (s *story) condition(kind kedav1alpha1.ConditionType, status string) func() error {
	return func() error {
		o, err := s.ScaledObject(s.ctx)
		if err != nil {
			return err
		}
		i := slices.IndexFunc(o.Status.Conditions, func(c kedav1alpha1.Condition) bool { return c.Type == kind })
		if i < 0 {
			return fmt.Errorf("no condition %s yet", kind)
		}
		if c := o.Status.Conditions[i]; string(c.Status) != status {
			return fmt.Errorf("%s is %s (%s: %s); want %s", kind, c.Status, c.Reason, c.Message, status)
		}
		return nil
	}
}

// said checks that an event or a condition of the ScaledObject has all words:
// what a user finds with "kubectl describe".
func (s *story) said(words ...string) func() error {
	return func() error {
		messages, err := s.Described(s.ctx)
		if err != nil {
			return err
		}
		for _, m := range messages {
			if containsAll(m, words) {
				return nil
			}
		}
		return fmt.Errorf("nothing says %q; there is:\n%s", words, strings.Join(messages, "\n"))
	}
}

func containsAll(text string, words []string) bool {
	return !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(text, w) })
}

// retire ends the story's load on the cluster.
func (s *story) retire() {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second) // the story's may have ended
	defer cancel()
	if err := s.Retire(ctx); err != nil {
		s.Logf("its ScaledObjects stay: %v", err)
	}
}

// tellFailure shows what a person would look at first.
func (s *story) tellFailure() {
	if !s.Failed() {
		return
	}
	ctx := context.Background() // the story's may have ended
	messages, err := s.Messages(ctx)
	s.Logf("failed at %s; messages (%v):\n%s", time.Now().UTC().Format("15:04:05.000"), err, strings.Join(messages, "\n"))
	if h, err := s.HPA(ctx); err == nil {
		s.Logf("HPA: %+v\n%+v", h.Spec.Metrics, h.Status)
	}
	if s.node.Scaler != nil {
		s.Logf("scaler:\n%s", s.node.Scaler.Tail(20))
	}
}
