package workload

import (
	"strings"

	"gpuscaler/profiles"
	"gpuscaler/scaler/evaluate"
	"gpuscaler/scaler/terms"
	"gpuscaler/scaler/trigger"
)

// Profiles is where the profiles come from.
type Profiles interface {
	Load() *profiles.Set
}

func (t *triggerSpec) external() bool { return t.Type == "external" || t.Type == "external-push" }

// fits says whether KEDA sends this metadata for the trigger. KEDA sends a trigger's
// keys as they are, but for those that end in FromEnv: their values are those of the
// workload's environment, and without one the key is left out (external_scaler.go,
// parseExternalScalerMetadata).
func (t *triggerSpec) fits(metadata map[string]string) bool {
	if !t.external() || !included(t.Metadata, metadata) {
		return false
	}
	for k := range metadata {
		if _, ok := t.Metadata[k]; !ok {
			return false
		}
	}
	return true
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

// match is the HPA's kind of target for the trigger with this metadata; fits is false
// where no trigger has it, and the answer is a guess: the metadata may just have
// changed. ambiguous are the numbers, from 0, of two triggers that both fit and differ in
// their kind of target.
func match(all []triggerSpec, metadata map[string]string) (of trigger.TargetType, fits bool, ambiguous []int) {
	first, guess := -1, -1
	for i := range all {
		t := &all[i]
		switch {
		case !t.external():
		case t.fits(metadata):
			if first < 0 {
				first = i
			} else if targetType(t.MetricType) != targetType(all[first].MetricType) {
				return "", true, []int{first, i}
			}
		case guess < 0:
			guess = i
		case included(t.Metadata, metadata) && (!included(all[guess].Metadata, metadata) || len(t.Metadata) > len(all[guess].Metadata)):
			guess = i // the one that says most
		}
	}
	switch {
	case first >= 0:
		return targetType(all[first].MetricType), true, nil
	case guess >= 0:
		return targetType(all[guess].MetricType), false, nil
	}
	return trigger.AverageValue, false, nil
}

// complete adds to a workload what its ScaledObject says for the trigger with this
// metadata; fits is false where no trigger has it. The error is about the metadata.
func (o *scaledObject) complete(w *evaluate.Workload, metadata map[string]string, set *profiles.Set) (fits bool, err error) {
	behavior := &o.Spec.Advanced.HPA.Behavior
	w.ScaleUpTolerance, w.ScaleDownTolerance = behavior.Up.Tolerance.value, behavior.Down.Tolerance.value
	w.Composite = o.composite()
	w.NothingWakes = o.nothingWakes(metadata["scalerAddress"], set)
	var ambiguous []int
	w.TargetType, fits, ambiguous = match(o.Spec.Triggers, metadata)
	switch {
	case len(ambiguous) == 0:
	case w.Composite != "": // replaces the triggers' own types
		w.TargetType = w.Composite
	default:
		a, b := &o.Spec.Triggers[ambiguous[0]], &o.Spec.Triggers[ambiguous[1]]
		return true, fail(evaluate.Invalid, "metadata: the triggers %d and %d of %s differ in nothing but their metricType (%s and %s) and keys from the environment, "+
			"so that they cannot be distinguished; give each a metricName of its own",
			ambiguous[0], ambiguous[1], w.Name, targetType(a.MetricType), targetType(b.MetricType))
	}
	return fits, nil
}

// nothingWakes says whether it may be scaled to zero and no trigger becomes active
// without a pod: CPU, memory and the GPUs that the scaler with this address reads are
// those of pods.
func (o *scaledObject) nothingWakes(address string, set *profiles.Set) bool {
	if !o.toZero() {
		return false
	}
	for i := range o.Spec.Triggers {
		if o.wakes(&o.Spec.Triggers[i], address, set) {
			return false
		}
	}
	return true
}

func (o *scaledObject) wakes(t *triggerSpec, address string, set *profiles.Set) bool {
	if t.Type == "cpu" || t.Type == "memory" {
		return false
	}
	if !t.external() || t.Metadata["scalerAddress"] != address {
		return true
	}
	if o.composite() != "" {
		return false // KEDA goes by the formula's number, whatever the trigger says
	}
	if t.Metadata["metricType"] == terms.Queue.Name {
		return true // what waits in front of the pods
	}
	name, ok := t.Metadata["profile"]
	if !ok {
		_, hidden := t.Metadata["profileFromEnv"]
		return hidden // that may be any
	}
	p, ok := set.Get(name)
	return ok && (!p.ScaleToZero || terms.IsQueue(p.Metric))
}
