package scenarios

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// fleetKind is a kind that nobody has heard of and that can be scaled, as
// LeaderWorkerSets, Rollouts and the like are.
const fleetKind = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: fleets.e2e.example.com}
spec:
  group: e2e.example.com
  names: {kind: Fleet, plural: fleets, singular: fleet, listKind: FleetList}
  scope: Namespaced
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
    subresources:
      status: {}
      scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas, labelSelectorPath: .status.selector}
`

// TestCustomKind: a workload of a custom kind scales as a Deployment does, with
// the rights that the manifests give.
func TestCustomKind(t *testing.T) {
	s := begin(t, setting{name: "fleet", fixture: "h100x8-uneven", replicas: 2, node: ofWorkloads()})
	s.must(s.on.Apply(s.ctx, fleetKind))
	s.eventually("the kind is known", func() error {
		return s.Apply(s.ctx, "{apiVersion: e2e.example.com/v1, kind: Fleet, metadata: {name: fleet}, spec: {replicas: 2}}")
	})
	playing, stop := context.WithCancel(s.ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for playing.Err() == nil {
			_ = s.playFleet(playing) // what fails comes again
			time.Sleep(200 * time.Millisecond)
		}
	}()
	t.Cleanup(func() { stop(); <-ended })
	s.eventually("2 pods have GPUs", s.gpus(2))
	s.loads(map[*story]float64{s: 90})
	s.must(s.Apply(s.ctx, fmt.Sprintf(`
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata: {name: fleet}
spec:
  scaleTargetRef: {apiVersion: e2e.example.com/v1, kind: Fleet, name: fleet}
  pollingInterval: 1
  minReplicaCount: 1
  triggers: [{type: external, metadata: {scalerAddress: "%s", targetValue: "75", window: 0s}}]
`, s.node.Address)))
	s.eventually("3 replicas", s.replicas(3)) // the HPA looks for new kinds each 30 s
	s.eventually("3 pods have GPUs", s.gpus(3))
	s.loads(map[*story]float64{s: 20})
	s.eventually("1 replica", s.replicas(1))
}

// playFleet is the controller of the custom kind: its pods are those of a
// Deployment of the same name.
func (s *story) playFleet(ctx context.Context) error {
	fleet := &unstructured.Unstructured{}
	fleet.SetAPIVersion("e2e.example.com/v1")
	fleet.SetKind("Fleet")
	if err := s.on.Client.Get(ctx, client.ObjectKey{Namespace: s.Namespace, Name: s.name}, fleet); err != nil {
		return err
	}
	wanted, _, err := unstructured.NestedInt64(fleet.Object, "spec", "replicas")
	if err != nil {
		return err
	}
	if err := s.Scale(ctx, int(wanted)); err != nil {
		return err
	}
	pods, err := s.Pods(ctx)
	if err != nil {
		return err
	}
	fleet.Object["status"] = map[string]any{"replicas": int64(len(pods)), "selector": "app=" + s.name}
	return s.on.Client.Status().Update(ctx, fleet)
}

// TestScaledJob: is refused, and says why and what to use instead.
func TestScaledJob(t *testing.T) {
	s := begin(t, setting{name: "job", fixture: "h200-idle", replicas: 0, node: ofWorkloads()})
	s.must(s.Apply(s.ctx, fmt.Sprintf(`
apiVersion: keda.sh/v1alpha1
kind: ScaledJob
metadata: {name: job}
spec:
  pollingInterval: 1
  jobTargetRef: {template: {spec: {restartPolicy: Never, containers: [{name: job, image: job}]}}}
  triggers: [{type: external, metadata: {scalerAddress: "%s", profile: batch}}]
`, s.node.Address)))
	s.eventually("the user is told", s.told("ScaledJob job", "job/job is a ScaledJob", "use scope: node, or a trigger on the queue"))
}

// TestMissingPermission: the user is told which, and who lacks it.
func TestMissingPermission(t *testing.T) {
	node := ofWorkloads()
	node.User = "system:serviceaccount:gpuscaler:narrow"
	require.NoError(t, shared.Apply(t.Context(), strings.NewReplacer("USER", node.User).Replace(`
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: narrow}
rules:
- {apiGroups: [""], resources: [pods], verbs: [list, watch]}
- {apiGroups: [keda.sh], resources: [scaledobjects], verbs: [get]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: narrow}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: narrow}
subjects: [{kind: User, name: USER}]
`)))
	s := begin(t, setting{name: "narrow", fixture: "h200-idle", replicas: 1, node: node})
	s.scale(holding, "targetValue", "75")
	s.eventually("the user is told", s.said("KEDAScalerFailed", "lacks a permission", `cannot get resource "deployments/scale"`, node.User))
	s.eventually("1 replica as before", s.replicas(1)) // it may just have become ready
	s.always("1 replica as before", 3*time.Second, s.replicas(1))
}

// told checks that an event of the namespace has all words.
func (s *story) told(words ...string) func() error {
	return func() error {
		messages, _ := s.Messages(s.ctx) // there need be no ScaledObject
		for _, m := range messages {
			if containsAll(m, words) {
				return nil
			}
		}
		return fmt.Errorf("nothing says %q; there is:\n%s", words, strings.Join(messages, "\n"))
	}
}
