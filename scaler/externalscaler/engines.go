package externalscaler

import (
	"time"

	pb "github.com/kedacore/keda/v2/pkg/scalers/externalscaler"

	"gpuscaler/scaler/demand"
	"gpuscaler/scaler/evaluate"
	"gpuscaler/scaler/terms"
	"gpuscaler/scaler/trigger"
)

// Engines reads the inference engines that triggers are about.
type Engines interface {
	// Want says that a trigger asks for engines, now. It must not wait.
	Want(w demand.Want, now time.Time)
}

// UseEngines makes engine metrics known, where workloads are. It must be called before
// the service serves.
func (s *Service) UseEngines(engines Engines) { s.engines = engines }

var errNoEngines = &evaluate.Error{Kind: evaluate.Impossible,
	Reason: "metricType: the engines of pods are not read by this scaler (--engines=off); component engines, or the chart's engines.enabled, has them read"}

// want has the engines read that a trigger is about.
func (s *Service) want(t *trigger.Trigger, ref *pb.ScaledObjectRef) {
	if s.engines == nil || !terms.IsEngine(t.Metric) {
		return
	}
	w := demand.Want{Namespace: ref.GetNamespace(), Name: ref.GetName(), PodSelector: t.PodSelector}
	w.How.EngineKey = evaluate.EngineKey(t, "")
	if terms.IsLatency(t.Metric) {
		w.How.Quantile = t.Engine.Quantile
	}
	s.engines.Want(w, time.Now())
}
