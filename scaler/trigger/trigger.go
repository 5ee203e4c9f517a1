// Package trigger turns the metadata of a ScaledObject's trigger into a
// Trigger: what to read, how to combine it, and what to compare it with. It is
// pure: it must not know gRPC, Kubernetes, any reading of a GPU, or the time.
package trigger

import (
	"time"

	"gpuscaler/scaler/terms"
	"gpuscaler/shared/snapshot"
)

// Trigger is one trigger's settings, complete and checked. It is comparable:
// two triggers that mean the same are equal.
type Trigger struct {
	// Profile is the profile it started from, or "".
	Profile string
	// Metric is what is read.
	Metric snapshot.Metric
	// Target is the target per replica, in the metric's unit: finite, above 0,
	// with the three decimals that reach the HPA. See terms.TargetFits.
	Target float64
	// Activation is the value above which the workload is active, in the
	// metric's unit: finite, 0 or above.
	Activation float64
	// AlwaysActive says that the profile never scales to zero: the workload is
	// active whatever is read, and Activation has no effect.
	AlwaysActive bool
	// Aggregation combines several GPUs into one value.
	Aggregation Aggregation
	// GPUIndex picks one GPU, counted from 0; -1 is all of them.
	GPUIndex int
	// Window is the time over which the mean is taken, one of window.Windows;
	// 0 is the last sample.
	Window time.Duration
	// Scope says whose GPUs count; "" when the trigger does not say.
	Scope Scope
	// PodSelector is a label selector, as it was written, or "". Its syntax
	// has not been checked.
	PodSelector string
	// GPUModel keeps only the GPUs that terms.MatchModel matches; "" is all.
	GPUModel string
	// Container keeps only the GPUs of this container of each pod; "" is all.
	Container string
	// Engine says how pods' inference engines are read; of no effect with other metrics.
	Engine Engine
	// Service is what service_queue reads; empty with other metrics.
	Service Service
	// StartupTimeout is how long a pod that was never ready counts as starting.
	StartupTimeout time.Duration
	// TargetType is how the HPA will use the target, where the ScaledObject
	// cannot be asked.
	TargetType TargetType
	// MetricName is the name shown in the HPA.
	MetricName string
	// PollInterval is the heartbeat of StreamIsActive, 1 s to 1 h.
	PollInterval time.Duration
}

// Scope says whose GPUs a trigger reads.
type Scope string

// The scopes. The empty one leaves the choice to the evaluator.
const (
	ScopeWorkload Scope = "workload" // those of the ScaledObject's own pods
	ScopeNode     Scope = "node"     // those of the node that answers
	ScopeCluster  Scope = "cluster"  // all
)

// TargetType is the HPA's kind of target.
type TargetType string

// The kinds of target that KEDA can ask the HPA for.
const (
	AverageValue TargetType = "AverageValue" // replicas = ceil(number / target)
	Value        TargetType = "Value"        // replicas = ceil(ready pods x number / target)
)

// Aggregation says how the readings of several devices become one.
type Aggregation = terms.Aggregation

// The aggregations beside the percentiles, for which see terms.Percentile.
const (
	Max = terms.Max
	Min = terms.Min
	Avg = terms.Avg
	Sum = terms.Sum
)

// ParseAggregation reads max, min, avg, sum or p50 to p99, in lower case. The
// error quotes the name and says what is allowed.
func ParseAggregation(name string) (Aggregation, error) { return terms.ParseAggregation(name) }

// Error says what is wrong with a trigger's metadata. Its message names the
// key, the value and what is allowed.
type Error struct {
	// Key is the key as it was written, or "metadata" for all of it.
	Key string
	// Value is the value as it was written. Not safe to show: it may be of any
	// length, and that of an unknown key may be a secret.
	Value string
	// Reason begins with the value, made fit to be shown, where that helps.
	Reason string
	// FromEnv: KEDA took a value that Reason quotes from the workload's
	// environment. It may be a Secret's, if the wrong variable was named.
	FromEnv bool
}

// Public is the message for those who may not read the workload's environment.
func (e *Error) Public() string {
	if !e.FromEnv {
		return e.Error()
	}
	return terms.Name(e.Key) + ": the value from the workload's environment is not allowed here; KEDA's log has it, because it may be a Secret's"
}

func (e *Error) Error() string { return terms.Name(e.Key) + ": " + e.Reason }
