package workload

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"

	"gpuscaler/profiles"
	"gpuscaler/scaler/evaluate"
	"gpuscaler/scaler/trigger"
)

// adjusting is for how long after an edit KEDA's HPA is looked at. If it has not been
// adjusted by then, KEDA refuses the ScaledObject, which its conditions say.
const adjusting = time.Minute

// compositeMetric is the name of the HPA's one external metric where the ScaledObject has
// a formula (CompositeMetricName in KEDA's apis/keda/v1alpha1).
const compositeMetric = "composite-metric"

// hpa is what matters of autoscaling/v2's HorizontalPodAutoscaler.
type hpa struct {
	Spec struct {
		Metrics []hpaMetric `json:"metrics"`
	} `json:"spec"`
}

type hpaMetric struct {
	External *struct {
		Metric struct {
			Name string `json:"name"`
		} `json:"metric"`
		Target hpaTarget `json:"target"`
	} `json:"external"`
}

type hpaTarget struct {
	Type         trigger.TargetType `json:"type"`
	Value        *resource.Quantity `json:"value"`
	AverageValue *resource.Quantity `json:"averageValue"`
}

func (t hpaTarget) is(kind trigger.TargetType, target float64) bool {
	of := t.AverageValue
	if kind == trigger.Value {
		of = t.Value
	}
	return t.Type == kind && of != nil && math.Abs(of.AsApproximateFloat64()-target) < 0.0005 // KEDA writes three decimals
}

func (t hpaTarget) String() string {
	of := t.AverageValue
	if t.Type == trigger.Value {
		of = t.Value
	}
	return fmt.Sprintf("%s %s", t.Type, of)
}

// targets are the HPA's external metrics.
type targets []hpaMetric

// lookedAt is what the HPA was when it was read, since when it has been that, and whether
// it could be read at all.
type lookedAt struct {
	targets   targets
	since     time.Time // zero: not read since the edit
	forbidden bool
}

// hpaName is that of KEDA's HPA (getHPANameOnEnsure in KEDA's controllers/keda).
func (o *scaledObject) hpaName() string {
	switch {
	case o.Status.HPA != "":
		return o.Status.HPA
	case o.Spec.Advanced.HPA.Name != "":
		return o.Spec.Advanced.HPA.Name
	}
	return "keda-hpa-" + o.Name
}

// hpa asks the API server for KEDA's HPA. One that does not exist has no targets.
func (a *api) hpa(ctx context.Context, of ask, o *scaledObject) (targets, error) {
	h := &hpa{}
	err := a.get(ctx, h, "/apis/autoscaling/v2", of.namespace, "horizontalpodautoscalers", o.hpaName())
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, err
	}
	return slices.DeleteFunc(h.Spec.Metrics, func(m hpaMetric) bool { return m.External == nil }), nil
}

func (t targets) equal(other targets) bool {
	return slices.EqualFunc(t, other, func(a, b hpaMetric) bool {
		return a.External.Metric.Name == b.External.Metric.Name && a.External.Target.String() == b.External.Target.String()
	})
}

// adjusted says whether the HPA has what a trigger asks for, or what it has instead.
func (t targets) adjusted(w *evaluate.Workload, asks *trigger.Trigger) (yes bool, instead string) {
	var have []string
	for i := range t {
		m := t[i].External
		name := m.Metric.Name
		if w.Composite != "" { // the formula has a target of its own
			yes = yes || name == compositeMetric && m.Target.Type == w.Composite
			have = append(have, m.Target.String())
			continue
		}
		// KEDA puts "s", the trigger's number and a dash before it (pkg/scalers/scaler.go).
		if _, of, ok := strings.Cut(name, "-"); !ok || of != asks.MetricName {
			continue
		}
		yes = yes || m.Target.is(w.TargetType, asks.Target)
		have = append(have, m.Target.String())
	}
	if len(have) == 0 {
		return yes, "no such metric"
	}
	return yes, strings.Join(have, " and ")
}

// followed completes a workload whose ScaledObject was edited a moment ago with what is
// known of KEDA's HPA, and has that read until it is what the trigger asks for.
func (e *entry) followed(w *evaluate.Workload, metadata map[string]string, set *profiles.Set, now time.Time) {
	if w.Edited.IsZero() || now.Sub(w.Edited) >= adjusting || e.hpa.forbidden {
		return
	}
	asks, err := trigger.Parse(metadata, set)
	if err != nil {
		return // no number is made of it
	}
	w.HPA.Known = true
	if !e.hpa.since.After(w.Edited) {
		e.hpaWanted, e.outdated = true, true
		w.HPA.Has = "not been read since"
		return
	}
	yes, instead := e.hpa.targets.adjusted(w, &asks)
	if yes {
		w.HPA.Adjusted = e.hpa.since
		return
	}
	e.hpaWanted, e.outdated = true, true
	w.HPA.Has = "still " + instead
}

// tookHPA takes over what KEDA's HPA is, which was asked for at a time, or why it could not
// be read.
func (r *Resolver) tookHPA(e *entry, has targets, err error, asked time.Time) {
	e.hpaWanted = false
	switch {
	case apierrors.IsForbidden(err):
		e.hpa = lookedAt{forbidden: true}
		r.warnHPA.Do(func() {
			r.log.Warn("KEDA's HPAs cannot be read: after an edit of a ScaledObject, answers wait for a fixed time instead of for KEDA "+
				"(deploy/components/pod-resources/rbac.yaml has the permission)", "error", err)
		})
	case err != nil: // it is read again for the next answer
	case e.hpa.since.IsZero() || !e.hpa.since.After(e.object.edited) || !e.hpa.targets.equal(has):
		e.hpa = lookedAt{targets: has, since: asked}
	}
}
