package services

import (
	"context"
	"fmt"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/flowcontrol"

	"gpuscaler/scaler/evaluate"
	"gpuscaler/scaler/kubernetes"
	"gpuscaler/scaler/pod"
	"gpuscaler/scaler/terms"
)

// Requests per second to the API server, and how many at once: two for each Service and
// period.
const (
	requestsPerSecond = 20
	requestBurst      = 40
	requestTimeout    = 5 * time.Second
)

type api struct{ core rest.Interface }

func newAPI(config *rest.Config) (*api, error) {
	config = rest.CopyConfig(config)
	config.RateLimiter = flowcontrol.NewTokenBucketRateLimiter(requestsPerSecond, requestBurst)
	core, err := kubernetes.Core(config)
	return &api{core}, err
}

// endpoint is a ready pod and where it tells its metrics.
type endpoint struct {
	uid, name, ip string
	port          int
}

// behind is what is behind a Service: the labels of its pods, and its ready pods.
type behind struct {
	selector map[string]string
	pods     []endpoint
}

// find asks the API server what is behind a Service: the ready pods of its selector, and
// nobody else. silent: the API server gave no answer; err, of type *evaluate.Error, is one else.
func (a *api) find(ctx context.Context, k key) (found behind, silent bool, err error) {
	service := &corev1.Service{}
	if err := a.get(ctx, a.core.Get().Namespace(k.namespace).Resource("services").Name(k.Name), service); err != nil {
		silent, err = classify(k, err)
		return found, silent, err
	}
	pods := &corev1.PodList{}
	port, err := readable(service, k)
	if err != nil {
		return found, false, err
	}
	found.selector = service.Spec.Selector
	request := a.core.Get().Namespace(k.namespace).Resource("pods").Param("labelSelector", labels.SelectorFromSet(found.selector).String())
	if err := a.get(ctx, request, pods); err != nil {
		silent, err = classify(k, err)
		return found, silent, err
	}
	found.pods, err = ready(pods.Items, port, k)
	return found, false, err
}

// readable is the port of a Service at which its pods may be read.
func readable(service *corev1.Service, k key) (*corev1.ServicePort, error) {
	if service.Spec.Type == corev1.ServiceTypeExternalName {
		return nil, fail(evaluate.Impossible, "service: %s is an ExternalName, which leads out of the namespace; allowed is a Service with a selector", k.Name)
	}
	if len(service.Spec.Selector) == 0 {
		return nil, fail(evaluate.Impossible, "service: %s has no selector: addresses that somebody wrote are not read; allowed is a Service with a selector", k.Name)
	}
	return choose(service, k.Port)
}

// ready are the pods that are ready, and where each tells its metrics.
func ready(pods []corev1.Pod, port *corev1.ServicePort, k key) (all []endpoint, err error) {
	for i := range pods {
		p := &pods[i]
		d := pod.Describe(p)
		if pod.Ended(p) || d.Terminating || !d.Ready {
			continue
		}
		if p.Spec.HostNetwork {
			return nil, fail(evaluate.Impossible, "service: pod %s of %s is on its node's network (hostNetwork), where its address is that of others, too; it is not read", p.Name, k.Name)
		}
		number := target(p, port)
		if number == 0 {
			return nil, fail(evaluate.Impossible, "service: pod %s of %s has no container port named %s", p.Name, k.Name, terms.Quote(port.TargetPort.StrVal))
		}
		all = append(all, endpoint{d.UID, p.Name, d.IP, number})
	}
	switch {
	case len(all) == 0:
		return nil, fail(evaluate.Unavailable, "service: %s has no ready pod, of %d that it selects", k.Name, len(pods))
	case len(all) > mostPods:
		return nil, fail(evaluate.Impossible, "service: %s has %d ready pods; at most %d are read", k.Name, len(all), mostPods)
	}
	return all, nil
}

func (a *api) get(ctx context.Context, request *rest.Request, into runtime.Object) error {
	limited, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	return request.Do(limited).Into(into)
}

// choose is the port of a Service that is asked for.
func choose(service *corev1.Service, asked string) (*corev1.ServicePort, error) {
	var names []string
	for i := range service.Spec.Ports {
		port := &service.Spec.Ports[i]
		number := strconv.Itoa(int(port.Port))
		if asked != "" && (asked == port.Name || asked == number) || asked == "" && (port.Name == "metrics" || len(service.Spec.Ports) == 1) {
			return port, nil
		}
		if port.Name != "" {
			number += " (" + port.Name + ")"
		}
		names = append(names, number)
	}
	if asked == "" {
		return nil, fail(evaluate.Impossible, "service: %s has several ports and none of them is named metrics; say which, as %s:PORT; it has %s", service.Name, service.Name, terms.List(names))
	}
	return nil, fail(evaluate.Impossible, "service: %s has no port %s; it has %s", service.Name, terms.Quote(asked), terms.List(names))
}

// target is where a Service's port is at a pod, as kube-proxy has it; 0: nowhere.
func target(p *corev1.Pod, port *corev1.ServicePort) int {
	if port.TargetPort.StrVal == "" {
		if n := port.TargetPort.IntValue(); n != 0 {
			return n
		}
		return int(port.Port)
	}
	for i := range p.Spec.Containers {
		for _, c := range p.Spec.Containers[i].Ports {
			if c.Name == port.TargetPort.StrVal {
				return int(c.ContainerPort)
			}
		}
	}
	return 0
}

// classify says what a user has to know of an error of the API server, and whether it is the
// lack of an answer.
func classify(k key, err error) (silent bool, is error) {
	switch {
	case apierrors.IsNotFound(err):
		return false, fail(evaluate.Impossible, "service: there is no Service %s in namespace %s", k.Name, k.namespace)
	case apierrors.IsForbidden(err): // the API server names the permission
		return false, fail(evaluate.Impossible, "service: the scaler lacks a permission (deploy/components/pod-resources/rbac.yaml has them all): %w", err)
	}
	return true, fail(evaluate.Unavailable, "service: %s: %w", k.Name, err)
}

func fail(kind evaluate.Kind, format string, args ...any) error {
	return &evaluate.Error{Kind: kind, Reason: fmt.Errorf(format, args...).Error()}
}
