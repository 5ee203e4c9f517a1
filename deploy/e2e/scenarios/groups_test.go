package scenarios

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// groupKind is LeaderWorkerSet as far as scaling needs it: a replica is a group of pods,
// and the scale subresource's selector selects the leaders alone.
const groupKind = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: leaderworkersets.leaderworkerset.x-k8s.io, annotations: {api-approved.kubernetes.io: unapproved}}
spec:
  group: leaderworkerset.x-k8s.io
  names: {kind: LeaderWorkerSet, plural: leaderworkersets, singular: leaderworkerset, listKind: LeaderWorkerSetList}
  scope: Namespaced
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
    subresources:
      status: {}
      scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas, labelSelectorPath: .status.hpaPodSelector}
`

// The labels of a group's pods, and how many there are.
const (
	setLabel    = "leaderworkerset.sigs.k8s.io/name"
	groupLabel  = "leaderworkerset.sigs.k8s.io/group-index"
	workerLabel = "leaderworkerset.sigs.k8s.io/worker-index"
	groupSize   = 4
)

// groups is a LeaderWorkerSet whose controller the story plays.
type groups struct {
	*story
	// leaders have a GPU, as the workers do.
	leaders bool
}

// TestGroups: two groups of four pods at 1.5 times the target become three groups, and
// stay three, because the HPA counts groups and not pods.
func TestGroups(t *testing.T) {
	t.Parallel() // with what follows, too
	for name, c := range map[string]struct {
		leaders  bool
		selector string // %s is the set's name
	}{
		"scale":               {true, ""},
		"selector":            {true, setLabel + "=%s"},
		"scale-no-leader":     {false, ""},
		"selector-no-leader":  {false, setLabel + "=%s"},
		"selector-of-leaders": {false, setLabel + "=%s," + workerLabel + "=0"},
	} {
		t.Run(name, func(t *testing.T) {
			s := begin(t, setting{name: "groups-" + name, fixture: "twenty-steps", replicas: 0, node: ofWorkloads()})
			s.must(s.on.Apply(s.ctx, groupKind))
			g := &groups{s, c.leaders}
			s.eventually("the kind is served", func() error {
				return s.Apply(s.ctx, fmt.Sprintf("{apiVersion: leaderworkerset.x-k8s.io/v1, kind: LeaderWorkerSet, metadata: {name: %s}, spec: {replicas: 2}}", s.name))
			})
			playing, stop := context.WithCancel(s.ctx)
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				for playing.Err() == nil {
					_ = g.play(playing) // what fails comes again
					time.Sleep(200 * time.Millisecond)
				}
			}()
			t.Cleanup(func() { stop(); <-ended })
			each := groupSize
			if !c.leaders {
				each--
			}
			s.eventually("2 groups have GPUs", s.gpus(2*each))
			s.loads(map[*story]float64{s: 90})
			selector := ""
			if c.selector != "" {
				selector = fmt.Sprintf(`, podSelector: "%s"`, fmt.Sprintf(c.selector, s.name))
			}
			s.must(s.Apply(s.ctx, fmt.Sprintf(`
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata: {name: %[1]s}
spec:
  scaleTargetRef: {apiVersion: leaderworkerset.x-k8s.io/v1, kind: LeaderWorkerSet, name: %[1]s}
  pollingInterval: 1
  minReplicaCount: 1
  maxReplicaCount: 5
  triggers: [{type: external, metadata: {scalerAddress: "%[2]s", targetValue: "60", window: 0s%[3]s}}]
`, s.name, s.node.Address, selector)))
			s.eventually("3 groups", g.asked(3)) // the HPA looks for new kinds each 30 s
			s.eventually("3 groups have GPUs", s.gpus(3*each))
			// Two at 90 % and one at 0 % are at the target.
			s.always("3 groups", 8*time.Second, g.asked(3))
			s.loads(map[*story]float64{s: 18})
			s.eventually("1 group", g.asked(1))
			s.eventually("1 group has GPUs", s.gpus(each))
		})
	}
}

// asked checks how many groups are asked for.
func (g *groups) asked(n int64) func() error {
	return func() error {
		set, err := g.set(g.ctx)
		if err != nil {
			return err
		}
		if wanted, _, _ := unstructured.NestedInt64(set.Object, "spec", "replicas"); wanted != n {
			return fmt.Errorf("%d groups; want %d", wanted, n)
		}
		return nil
	}
}

func (g *groups) set(ctx context.Context) (*unstructured.Unstructured, error) {
	set := &unstructured.Unstructured{}
	set.SetAPIVersion("leaderworkerset.x-k8s.io/v1")
	set.SetKind("LeaderWorkerSet")
	return set, g.on.Client.Get(ctx, client.ObjectKey{Namespace: g.Namespace, Name: g.name}, set)
}

// play is the controller: it creates the pods of groups that are missing, deletes those
// of groups that are too many, and writes the status.
func (g *groups) play(ctx context.Context) error {
	set, err := g.set(ctx)
	if err != nil {
		return err
	}
	wanted, _, err := unstructured.NestedInt64(set.Object, "spec", "replicas")
	if err != nil {
		return err
	}
	for group := range wanted {
		for worker := range groupSize {
			if err := g.create(ctx, int(group), worker); err != nil {
				return err
			}
		}
	}
	pods, err := g.Pods(ctx)
	if err != nil {
		return err
	}
	leaders := int64(0)
	for i := range pods {
		group, err := strconv.ParseInt(pods[i].Labels[groupLabel], 10, 64)
		if err != nil {
			return err
		}
		if pods[i].Labels[workerLabel] == "0" {
			leaders++
		}
		if group >= wanted && pods[i].DeletionTimestamp == nil {
			if err := g.on.Client.Delete(ctx, &pods[i]); err != nil {
				return err
			}
		}
	}
	set.Object["status"] = map[string]any{"replicas": leaders, "hpaPodSelector": setLabel + "=" + g.name + "," + workerLabel + "=0"}
	return g.on.Client.Status().Update(ctx, set)
}

// create creates a pod of a group, unless it exists.
func (g *groups) create(ctx context.Context, group, worker int) error {
	name := fmt.Sprintf("%s-%d", g.name, group)
	resources := "{limits: {nvidia.com/gpu: 1}}"
	if worker > 0 {
		name += fmt.Sprintf("-%d", worker)
	} else if !g.leaders {
		resources = "{}"
	}
	err := g.on.Client.Get(ctx, client.ObjectKey{Namespace: g.Namespace, Name: name}, &corev1.Pod{})
	if !apierrors.IsNotFound(err) {
		return err
	}
	labels := []string{"app: " + g.name, setLabel + ": " + g.name, fmt.Sprintf("%s: %q", groupLabel, strconv.Itoa(group)), fmt.Sprintf("%s: %q", workerLabel, strconv.Itoa(worker))}
	return g.Apply(ctx, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata: {name: %[1]s, labels: {%[2]s}}
spec:
  nodeSelector: {kubernetes.io/hostname: %[3]s}
  tolerations: [{key: kwok.x-k8s.io/node, operator: Exists}]
  containers:
  - {name: engine, image: engine, resources: %[4]s}
`, name, strings.Join(labels, ", "), g.node.Name, resources))
}
