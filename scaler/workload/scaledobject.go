package workload

import (
	"errors"
	"math"
	"reflect"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"gpuscaler/scaler/trigger"
)

// kind is that of a ScaledObject.
var kind = schema.GroupVersionKind{Group: "keda.sh", Version: "v1alpha1", Kind: "ScaledObject"}

// scaledObject is what matters of KEDA's type, whose Go package would link all
// of KEDA's dependencies. Read-only.
type scaledObject struct {
	metav1.TypeMeta
	metav1.ObjectMeta `json:"metadata"`

	Spec   spec   `json:"spec"`
	Status status `json:"status"`

	// edited is when its triggers, or what KEDA makes of them, changed last; zero: not
	// since it is followed.
	edited time.Time
}

type spec struct {
	ScaleTargetRef targetRef     `json:"scaleTargetRef"`
	Triggers       []triggerSpec `json:"triggers"`
	Min            *int32        `json:"minReplicaCount"`
	Idle           *int32        `json:"idleReplicaCount"`
	Advanced       struct {
		Modifiers struct {
			Formula    string `json:"formula"`
			MetricType string `json:"metricType"`
		} `json:"scalingModifiers"`
		HPA struct {
			Name     string `json:"name"`
			Behavior struct {
				Up   rules `json:"scaleUp"`
				Down rules `json:"scaleDown"`
			} `json:"behavior"`
		} `json:"horizontalPodAutoscalerConfig"`
	} `json:"advanced"`
}

type status struct {
	// Target is what KEDA found the target to be.
	Target *resolved `json:"scaleTargetGVKR"`
	HPA    string    `json:"hpaName"`
}

// targetRef is what its author says that it scales.
type targetRef struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Name       string `json:"name"`
}

type resolved struct {
	Group    string `json:"group"`
	Version  string `json:"version"`
	Kind     string `json:"kind"`
	Resource string `json:"resource"`
}

type rules struct {
	Tolerance tolerance `json:"tolerance"`
}

type triggerSpec struct {
	Type       string            `json:"type"`
	MetricType string            `json:"metricType"`
	Metadata   map[string]string `json:"metadata"`
}

// scaledObjects is a list of them.
type scaledObjects struct {
	metav1.TypeMeta
	metav1.ListMeta `json:"metadata"`

	Items []scaledObject `json:"items"`
}

// DeepCopyObject copies what is not read-only.
func (o *scaledObject) DeepCopyObject() runtime.Object {
	c := *o
	o.DeepCopyInto(&c.ObjectMeta)
	return &c
}

// DeepCopyObject copies what is not read-only.
func (l *scaledObjects) DeepCopyObject() runtime.Object {
	c := *l
	l.DeepCopyInto(&c.ListMeta)
	c.Items = append([]scaledObject(nil), l.Items...)
	return &c
}

// strip keeps what is used: the API server's books (managedFields) and kubectl's
// annotation are larger than all the rest.
func strip(object any) any {
	if o, ok := object.(*scaledObject); ok {
		o.ObjectMeta = metav1.ObjectMeta{Namespace: o.Namespace, Name: o.Name, ResourceVersion: o.ResourceVersion}
	}
	return object
}

// same says whether nothing differs that is used: KEDA writes to the status of each
// ScaledObject whenever it is active.
func (o *scaledObject) same(other *scaledObject) bool {
	return reflect.DeepEqual(o.Spec, other.Spec) && reflect.DeepEqual(o.Status, other.Status)
}

// after notes when the object was edited, of which before is the previous state, if there
// is any.
func (o *scaledObject) after(before *scaledObject, now time.Time) {
	switch {
	case before == nil:
	case reflect.DeepEqual(o.Spec.Triggers, before.Spec.Triggers) && o.Spec.Advanced.Modifiers == before.Spec.Advanced.Modifiers:
		o.edited = before.edited
	default:
		o.edited = now
	}
}

// errNoTarget: KEDA has not looked at the ScaledObject, or at its latest target, yet.
var errNoTarget = errors.New("KEDA has not found its target yet")

// target is what KEDA found that it scales. Until KEDA has looked at a target that its
// author changed, the status has the one before.
func (o *scaledObject) target() (*resolved, error) {
	t, ref := o.Status.Target, o.Spec.ScaleTargetRef
	if t == nil || t.Resource == "" {
		return nil, errNoTarget
	}
	// KEDA's defaults.
	if ref.APIVersion == "" {
		ref.APIVersion = "apps/v1"
	}
	if ref.Kind == "" {
		ref.Kind = "Deployment"
	}
	if version, err := schema.ParseGroupVersion(ref.APIVersion); err != nil || version.Group != t.Group || ref.Kind != t.Kind {
		return nil, errNoTarget
	}
	return t, nil
}

// composite is the target type of its scalingModifiers; "" without a formula. KEDA's
// default is AverageValue (controllers/keda/hpa.go).
func (o *scaledObject) composite() trigger.TargetType {
	if o.Spec.Advanced.Modifiers.Formula == "" {
		return ""
	}
	return targetType(o.Spec.Advanced.Modifiers.MetricType)
}

// toZero says whether it may be scaled to zero: that is KEDA's default.
func (o *scaledObject) toZero() bool {
	return o.Spec.Min == nil || *o.Spec.Min == 0 || (o.Spec.Idle != nil && *o.Spec.Idle == 0)
}

// targetType is KEDA's AverageValue where the ScaledObject names none.
func targetType(metricType string) trigger.TargetType {
	if metricType == string(trigger.Value) {
		return trigger.Value
	}
	return trigger.AverageValue
}

// tolerance is a resource.Quantity, as a string or a number. One that the HPA could not
// use is ignored: it must not hide the rest of the object.
type tolerance struct{ value *float64 }

// UnmarshalJSON never fails.
func (t *tolerance) UnmarshalJSON(text []byte) error {
	var q resource.Quantity
	t.value = nil
	if len(text) == 0 || string(text) == "null" || q.UnmarshalJSON(text) != nil {
		return nil //nolint:nilerr // see tolerance
	}
	if v := q.AsApproximateFloat64(); v >= 0 && !math.IsInf(v, 0) {
		t.value = &v
	}
	return nil
}
