// Package pod says what the scaler wants to know of a Kubernetes pod. It is pure.
package pod

import (
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gpuscaler/scaler/attribution"
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

// Plain says whether a pod asks for no device: no container of it for a resource that a
// device plugin has, which have a domain in their names, and itself for no claim.
func Plain(p *corev1.Pod) bool {
	if len(p.Spec.ResourceClaims) > 0 {
		return false
	}
	for _, all := range [][]corev1.Container{p.Spec.Containers, p.Spec.InitContainers} {
		for i := range all {
			for name := range all[i].Resources.Limits {
				if strings.Contains(string(name), "/") {
					return false
				}
			}
		}
	}
	return true
}

// Describe is what the scaler wants to know of a pod. Whether a pod that is not
// ready has been is told by when its readiness changed last, as the HPA does
// (groupPods in k8s.io/kubernetes/pkg/controller/podautoscaler).
func Describe(p *corev1.Pod) fleet.Pod {
	d := fleet.Pod{
		Namespace: p.Namespace, Name: p.Name, UID: string(p.UID), Node: p.Spec.NodeName, Labels: p.Labels, Owner: owner(p),
		Created: p.CreationTimestamp.Time, Pending: p.Status.Phase == corev1.PodPending, Terminating: p.DeletionTimestamp != nil,
	}
	d.IP, d.Ports = p.Status.PodIP, ports(p)
	d.Group, d.Leader = fleet.GroupOf(p.Labels)
	d.Sharer, _ = attribution.UnsupportedPod(p.Labels)
	if p.Status.StartTime != nil {
		d.Started = p.Status.StartTime.Time
	}
	for _, c := range p.Status.Conditions {
		if c.Type != corev1.PodReady {
			continue
		}
		d.Changed = c.LastTransitionTime.Time
		if p.Status.Phase != corev1.PodRunning || p.Status.StartTime == nil {
			break
		}
		d.Ready = c.Status == corev1.ConditionTrue
		d.WasReady = d.Ready || !c.LastTransitionTime.Time.Before(p.Status.StartTime.Add(initialReadiness))
		if d.Ready {
			d.FirstReady = d.Changed
		}
	}
	return d
}

// ports are the TCP ports that a pod's containers declare, sidecars (init containers that
// go on) included.
func ports(p *corev1.Pod) (all []fleet.Port) {
	add := func(c *corev1.Container) {
		for _, port := range c.Ports {
			if port.Protocol == "" || port.Protocol == corev1.ProtocolTCP {
				all = append(all, fleet.Port{Container: c.Name, Name: port.Name, Number: int(port.ContainerPort)})
			}
		}
	}
	for i := range p.Spec.Containers {
		add(&p.Spec.Containers[i])
	}
	for i := range p.Spec.InitContainers {
		if c := &p.Spec.InitContainers[i]; c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			add(c)
		}
	}
	return all
}
