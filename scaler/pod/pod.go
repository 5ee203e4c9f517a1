// Package pod says what the scaler wants to know of a Kubernetes pod. It is pure.
package pod

import (
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gpuscaler/scaler/fleet"
)

// initialReadiness is within what time of its start a pod's readiness is not a
// change of it, as the HPA has it
// (--horizontal-pod-autoscaler-initial-readiness-delay).
const initialReadiness = 30 * time.Second

// Ended says that a pod has failed or is finished: then it counts in no way.
func Ended(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded
}

// owner is what has a pod made, as people know it: of a ReplicaSet its Deployment,
// whose name is that of the ReplicaSet without the hash of the template; of a pod
// that nothing controls the pod.
func owner(p *corev1.Pod) fleet.Owner {
	controller := metav1.GetControllerOf(p)
	if controller == nil {
		return fleet.Owner{Kind: "Pod", Name: p.Name}
	}
	if hash := p.Labels["pod-template-hash"]; controller.Kind == "ReplicaSet" && hash != "" {
		if name, ok := strings.CutSuffix(controller.Name, "-"+hash); ok {
			return fleet.Owner{Kind: "Deployment", Name: name}
		}
	}
	return fleet.Owner{Kind: controller.Kind, Name: controller.Name}
}

// Describe is what the scaler wants to know of a pod. Whether a pod that is not
// ready has been is told by when its readiness changed last, as the HPA does
// (groupPods in k8s.io/kubernetes/pkg/controller/podautoscaler).
func Describe(p *corev1.Pod) fleet.Pod {
	d := fleet.Pod{
		Namespace: p.Namespace, Name: p.Name, UID: string(p.UID), Node: p.Spec.NodeName, Labels: p.Labels, Owner: owner(p),
		Created: p.CreationTimestamp.Time, Terminating: p.DeletionTimestamp != nil,
	}
	if p.Status.StartTime != nil {
		d.Started = p.Status.StartTime.Time
	}
	if p.Status.Phase != corev1.PodRunning || p.Status.StartTime == nil {
		return d
	}
	for _, c := range p.Status.Conditions {
		if c.Type != corev1.PodReady {
			continue
		}
		d.Ready = c.Status == corev1.ConditionTrue
		d.WasReady = d.Ready || c.LastTransitionTime.After(p.Status.StartTime.Add(initialReadiness))
	}
	return d
}
