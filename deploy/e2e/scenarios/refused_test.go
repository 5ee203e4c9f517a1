package scenarios

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

const quota = `
apiVersion: v1
kind: ResourceQuota
metadata: {name: none}
spec: {hard: {pods: "0"}}
`

// policy refuses all pods of a namespace, %s.
const policy = `
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata: {name: %[1]s}
spec:
  failurePolicy: Fail
  matchConstraints:
    namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: %[1]s}}
    resourceRules: [{apiGroups: [""], apiVersions: [v1], operations: [CREATE], resources: [pods]}]
  validations: [{expression: "false", message: no pods here}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata: {name: %[1]s}
spec: {policyName: %[1]s, validationActions: [Deny]}
`

// TestPodsAreRefused: the pods of a busy workload are evicted, and new ones are refused
// by a quota or by a policy. It keeps the replicas that it asks for, its author is told
// why, and all is well when pods can be created again.
func TestPodsAreRefused(t *testing.T) {
	t.Parallel() // with what follows, too
	for name, manifests := range map[string]string{"quota": quota, "policy": policy} {
		t.Run(name, func(t *testing.T) {
			spec := holding
			if name == "quota" {
				spec = quick // it does not go to zero either
			}
			s := begin(t, setting{name: "refused-" + name, fixture: "h100x8-uneven", replicas: 4, node: ofWorkloads()})
			if name == "policy" {
				manifests = fmt.Sprintf(manifests, s.Namespace)
			}
			s.eventually("4 pods have GPUs", s.gpus(4))
			s.load("set * gpu_utilization 75")
			s.scale(spec, "targetValue", "75", "window", "0s")
			s.eventually("4 pods at the target", s.hpaValue(75))
			s.must(s.Apply(s.ctx, manifests))
			s.eventually("pods are refused", s.refused(true))
			s.must(s.on.Client.DeleteAllOf(s.ctx, &corev1.Pod{}, client.InNamespace(s.Namespace), client.GracePeriodSeconds(0)))
			s.eventually("4 replicas and no pod", s.counts(4, 0))
			s.load("set * gpu_utilization 0") // as it is without pods
			s.always("4 replicas for many cooldowns", 15*time.Second, s.counts(4, 0))
			s.eventually("the user is told", s.said("KEDAScalerFailed", "4 replicas are asked for, and there is no pod", "quota, admission"))

			s.load("set * gpu_utilization 75")
			s.must(s.Remove(s.ctx, manifests))
			s.eventually("pods are no longer refused", s.refused(false))
			s.eventually("4 replicas with pods", s.replicas(4))
			s.always("4 replicas", 3*time.Second, s.replicas(4))
		})
	}
}

// refused checks whether pods can be created in the story's namespace.
func (s *story) refused(want bool) func() error {
	return func() error {
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: "probe", Namespace: s.Namespace},
			Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "probe", Image: "probe"}}},
		}
		err := s.on.Client.Create(s.ctx, pod, client.DryRunAll)
		if err != nil && !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err) {
			return err
		}
		if refused := err != nil; refused != want {
			return fmt.Errorf("pods are refused: %t (%w)", refused, err)
		}
		return nil
	}
}

// TestTypoInPodSelector: no pod has the labels. The workload keeps its replicas, idle as
// it is, and its author is told the selector.
func TestTypoInPodSelector(t *testing.T) {
	s := begin(t, setting{name: "selector-typo", fixture: "h100x8-uneven", replicas: 4, node: ofWorkloads()})
	s.eventually("4 pods have GPUs", s.gpus(4))
	s.eventually("4 pods are ready", s.replicas(4))
	s.load("set * gpu_utilization 0")
	s.scale(holding, "targetValue", "75", "window", "0s", "podSelector", "app=selector-tyop")
	s.eventually("the user is told", s.said("KEDAScalerFailed", "4 replicas are asked for", "no pod has the labels of podSelector app=selector-tyop"))
	s.always("4 replicas for many cooldowns", 12*time.Second, s.replicas(4))
	s.scale(holding, "targetValue", "75", "window", "0s", "podSelector", "app=selector-typo")
	s.eventually("1 replica with the right labels", s.replicas(1))
}
