package externalscaler

import (
	"time"

	pb "github.com/kedacore/keda/v2/pkg/scalers/externalscaler"

	"gpuscaler/scaler/evaluate"
	"gpuscaler/scaler/terms"
	"gpuscaler/scaler/trigger"
)

// Services reads the Services that triggers are about.
type Services interface {
	// Queue is what is known of a Service of a namespace, which is read from now on; nil:
	// nothing yet. It must not wait.
	Queue(namespace string, service trigger.Service) *evaluate.Queue
	// Updated is closed at the next change of what some Service tells.
	Updated() <-chan struct{}
}

// UseServices makes service_queue known, where workloads are. It must be called before
// the service serves.
func (s *Service) UseServices(services Services) { s.services = services }

var errNoServices = &evaluate.Error{Kind: evaluate.Impossible,
	Reason: "metricType: Services are not read by this scaler (--engines=off); component engines, or the chart's engines.enabled, has them read"}

// decideForQueue decides on what waits in front of a workload. A Service is read only for
// a trigger that the ScaledObject has.
func (s *Service) decideForQueue(t *trigger.Trigger, ref *pb.ScaledObjectRef, w *evaluate.Workload) (evaluate.Decision, error) {
	if s.services == nil {
		return evaluate.Decision{}, errNoServices
	}
	var q *evaluate.Queue
	if !w.Guess {
		q = s.services.Queue(ref.GetNamespace(), t.Service)
	}
	return evaluate.ForQueue(t, q, s.fleet, w, time.Now(), s.limits)
}

// queueUpdated is closed at the next change of what a trigger's Service tells; nil where it
// has none.
func (s *Service) queueUpdated(t *trigger.Trigger) <-chan struct{} {
	if s.services == nil || !terms.IsQueue(t.Metric) {
		return nil
	}
	return s.services.Updated()
}
