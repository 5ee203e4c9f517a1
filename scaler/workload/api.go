package workload

import (
	"context"
	"errors"
	"fmt"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validate/content"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/flowcontrol"

	"gpuscaler/scaler/evaluate"
	"gpuscaler/scaler/kubernetes"
	"gpuscaler/scaler/terms"
)

// api reads what is needed of a few kinds, and links the types of few others.
type api struct{ raw, core, objects rest.Interface }

func newAPI(config *rest.Config) (a *api, err error) {
	config = rest.CopyConfig(config)
	config.RateLimiter = flowcontrol.NewTokenBucketRateLimiter(requestsPerSecond, requestBurst)
	a = &api{}
	if a.raw, err = kubernetes.Raw(config); err != nil {
		return nil, err
	}
	if a.core, err = kubernetes.Core(config); err != nil {
		return nil, err
	}
	a.objects, err = kubernetes.Custom(config, kind, &scaledObject{}, &scaledObjects{})
	return a, err
}

// errScaledJob: the name is a ScaledJob's.
var errScaledJob = errors.New("is a ScaledJob")

// errNoSelector: the HPA cannot scale such a target.
var errNoSelector = errors.New("has no selector in its scale subresource, which the HPA requires, too: " +
	"set labelSelectorPath in the CRD's subresources.scale to a field, as .status.selector, that its controller fills in")

// scaledObject asks the API server for the ScaledObject.
func (a *api) scaledObject(ctx context.Context, of ask) (*scaledObject, error) {
	object := &scaledObject{}
	err := a.get(ctx, object, "/apis/keda.sh/v1alpha1", of.namespace, "scaledobjects", of.name)
	if apierrors.IsNotFound(err) {
		// KEDA asks for ScaledJobs in the same form.
		if a.get(ctx, &struct{}{}, "/apis/keda.sh/v1alpha1", of.namespace, "scaledjobs", of.name) == nil {
			return nil, errScaledJob
		}
	}
	return object, err
}

// jobTriggers asks the API server for the triggers of the ScaledJob of that name; none
// if there is no such job.
func (a *api) jobTriggers(ctx context.Context, of ask) []triggerSpec {
	job := &scaledObject{} // as far as it matters
	if a.get(ctx, job, "/apis/keda.sh/v1alpha1", of.namespace, "scaledjobs", of.name) != nil {
		return nil
	}
	return job.Spec.Triggers
}

// find asks the API server for what a ScaledObject scales.
func (a *api) find(ctx context.Context, of ask, object *scaledObject) (*found, error) {
	f := &found{
		workload: evaluate.Workload{Name: "ScaledObject " + of.String(), Namespace: of.namespace, Spec: -1, Status: -1},
		ref:      object.Spec.ScaleTargetRef,
	}
	selector := of.podSelector
	scale, err := a.scale(ctx, of, object)
	switch {
	case err == nil:
		f.workload.Spec, f.workload.Status = int(scale.Spec.Replicas), int(scale.Status.Replicas)
		if selector == "" {
			selector = scale.Status.Selector
		}
	case selector != "" && (apierrors.IsNotFound(err) || errors.Is(err, errNoTarget)): // it does without
	default:
		return nil, err
	}
	if selector == "" {
		return nil, fmt.Errorf("its target %s %s %w", object.Status.Target.Kind, object.Spec.ScaleTargetRef.Name, errNoSelector)
	}
	if f.workload.Selector, err = labels.Parse(selector); err != nil {
		return nil, fmt.Errorf("selector %q: %w", selector, err)
	}
	f.workload.Pods, f.workload.Sets, err = a.pods(ctx, of.namespace, f.workload.Selector)
	return f, err
}

// scale reads the scale subresource of the target, of whatever kind it is.
func (a *api) scale(ctx context.Context, of ask, o *scaledObject) (*autoscalingv1.Scale, error) {
	t, err := o.target()
	if err != nil {
		return nil, err
	}
	root := "/apis/" + t.Group + "/" + t.Version
	if t.Group == "" {
		root = "/api/" + t.Version
	}
	scale := &autoscalingv1.Scale{}
	return scale, a.get(ctx, scale, root, of.namespace, t.Resource, o.Spec.ScaleTargetRef.Name, "scale")
}

func (a *api) get(ctx context.Context, into any, root, namespace string, path ...string) error {
	for _, segment := range path {
		if problems := content.IsPathSegmentName(segment); len(problems) > 0 {
			return fmt.Errorf("%s: %s", terms.Quote(segment), problems[0])
		}
	}
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return kubernetes.GetJSON(limited, a.raw.Get().AbsPath(append([]string{root, "namespaces", namespace}, path...)...), into)
}

// classify says what a user has to know of an error, and whether it is an answer
// rather than the lack of one.
func classify(of ask, err error) (definite bool, told error) {
	switch {
	case errors.Is(err, errScaledJob):
		return true, fail(evaluate.Impossible, "%s %w: its jobs come and go by the queue, and no GPU says how long that is; "+
			"use scope: node, or a trigger on the queue", of, err)
	case errors.Is(err, errNoSelector), apierrors.IsNotFound(err):
		return true, fail(evaluate.Impossible, "ScaledObject %s: %w", of, err)
	case apierrors.IsForbidden(err): // the API server names the permission
		return false, fail(evaluate.Impossible, "ScaledObject %s: the scaler lacks a permission (deploy/components/pod-resources/rbac.yaml has them all): %w", of, err)
	}
	return false, fail(evaluate.Unavailable, "ScaledObject %s: %w", of, err)
}
