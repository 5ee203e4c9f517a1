package workload

import (
	"context"
	"errors"
	"fmt"
	"strings"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/validate/content"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/flowcontrol"

	"gpuscaler/scaler/evaluate"
	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/kubernetes"
	"gpuscaler/scaler/pod"
	"gpuscaler/scaler/terms"
	"gpuscaler/scaler/trigger"
)

// api reads what is needed of a few kinds, and links the types of few others.
type api struct{ raw, core rest.Interface }

func newAPI(config *rest.Config) (a *api, err error) {
	config = rest.CopyConfig(config)
	config.RateLimiter = flowcontrol.NewTokenBucketRateLimiter(requestsPerSecond, requestBurst)
	a = &api{}
	if a.raw, err = kubernetes.Raw(config); err != nil {
		return nil, err
	}
	a.core, err = kubernetes.Core(config)
	return a, err
}

// scaledObject is what matters of KEDA's type, whose Go package would link all
// of KEDA's dependencies.
type scaledObject struct {
	Spec struct {
		ScaleTargetRef struct {
			Name string `json:"name"`
		} `json:"scaleTargetRef"`
		Triggers []triggerSpec `json:"triggers"`
	} `json:"spec"`
	Status struct {
		// Target is what KEDA found the target to be.
		Target *struct {
			Group    string `json:"group"`
			Version  string `json:"version"`
			Kind     string `json:"kind"`
			Resource string `json:"resource"`
		} `json:"scaleTargetGVKR"`
	} `json:"status"`
}

type triggerSpec struct {
	Type       string            `json:"type"`
	MetricType string            `json:"metricType"`
	Metadata   map[string]string `json:"metadata"`
}

// errNoTarget: KEDA has not looked at the ScaledObject yet.
var errNoTarget = errors.New("KEDA has not found its target yet")

// errScaledJob: the name is a ScaledJob's.
var errScaledJob = errors.New("is a ScaledJob")

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

// find asks the API server for what a ScaledObject scales.
func (a *api) find(ctx context.Context, of ask, object *scaledObject) (*found, error) {
	f := &found{
		workload: evaluate.Workload{Name: "ScaledObject " + of.String(), Namespace: of.namespace, Spec: -1, Status: -1},
		triggers: object.Spec.Triggers,
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
		return nil, fmt.Errorf("the scale subresource of its target %s %s has no selector; name its pods with podSelector",
			object.Status.Target.Kind, object.Spec.ScaleTargetRef.Name)
	}
	if f.workload.Selector, err = labels.Parse(selector); err != nil {
		return nil, fmt.Errorf("selector %q: %w", selector, err)
	}
	f.workload.Pods, err = a.pods(ctx, of.namespace, selector)
	return f, err
}

// scale reads the scale subresource of the target, of whatever kind it is.
func (a *api) scale(ctx context.Context, of ask, o *scaledObject) (*autoscalingv1.Scale, error) {
	t := o.Status.Target
	if t == nil || t.Resource == "" {
		return nil, errNoTarget
	}
	root := "/apis/" + t.Group + "/" + t.Version
	if t.Group == "" {
		root = "/api/" + t.Version
	}
	scale := &autoscalingv1.Scale{}
	return scale, a.get(ctx, scale, root, of.namespace, t.Resource, o.Spec.ScaleTargetRef.Name, "scale")
}

// pods are the workload's pods, wherever they are.
func (a *api) pods(ctx context.Context, namespace, selector string) ([]*fleet.Pod, error) {
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	list := &corev1.PodList{}
	if err := a.core.Get().Namespace(namespace).Resource("pods").Param("labelSelector", selector).Do(limited).Into(list); err != nil {
		return nil, err
	}
	var all []*fleet.Pod
	for i := range list.Items {
		if !pod.Ended(&list.Items[i]) {
			p := pod.Describe(&list.Items[i])
			p.Labels = nil // they fit the selector, and that is all there is to know
			all = append(all, &p)
		}
	}
	return all, nil
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
	case apierrors.IsNotFound(err):
		return true, fail(evaluate.Impossible, "ScaledObject %s: %w", of, err)
	case apierrors.IsForbidden(err): // the API server names the permission
		return false, fail(evaluate.Impossible, "ScaledObject %s: the scaler lacks a permission (deploy/components/pod-resources/rbac.yaml has them all): %w", of, err)
	}
	return false, fail(evaluate.Unavailable, "ScaledObject %s: %w", of, err)
}

// targetType is the HPA's kind of target for the trigger with this metadata. KEDA
// sends a trigger's metadata as it is, but for keys that end in FromEnv: their
// values are those of the workload's environment, or they are left out. Of several
// that fit, the one that says most is meant; if none fits it is not known.
func targetType(all []triggerSpec, metadata map[string]string) (of trigger.TargetType, known bool) {
	var best *triggerSpec
	for i := range all {
		t := &all[i]
		if t.Type != "external" && t.Type != "external-push" {
			continue
		}
		if best == nil { // in any case: its metadata may just have changed
			best = t
		}
		if included(t.Metadata, metadata) && (!included(best.Metadata, metadata) || len(t.Metadata) > len(best.Metadata)) {
			best = t
		}
	}
	if best == nil {
		return trigger.AverageValue, false
	}
	return metricType(*best), included(best.Metadata, metadata)
}

func included(some, all map[string]string) bool {
	for k, v := range some {
		if strings.HasSuffix(k, "FromEnv") {
			continue
		}
		if got, ok := all[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// metricType is KEDA's AverageValue where the trigger names none.
func metricType(t triggerSpec) trigger.TargetType {
	if t.MetricType == string(trigger.Value) {
		return trigger.Value
	}
	return trigger.AverageValue
}
