// Package externalscaler serves KEDA's ExternalScaler API: it turns metadata
// into a trigger, asks for a decision, and maps the outcome to gRPC. Every
// answer comes from memory, because KEDA's calls carry no deadline. How a
// number comes about is not known here.
package externalscaler

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"time"

	pb "github.com/kedacore/keda/v2/pkg/scalers/externalscaler"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"gpuscaler/profiles"
	"gpuscaler/scaler/evaluate"
	"gpuscaler/scaler/replicas"
	"gpuscaler/scaler/terms"
	"gpuscaler/scaler/trigger"
)

// Fleet is where the data comes from.
type Fleet interface {
	evaluate.Fleet
	// Updated is closed at the next change of a node.
	Updated() <-chan struct{}
}

// Peers tell the fleet of other nodes, while somebody wants to know.
type Peers interface {
	// Asked says that somebody does. It must not wait.
	Asked()
	// Settled says whether all have been heard that can be: else what is missing may
	// be there in a moment.
	Settled() bool
}

// Profiles is where the profiles come from.
type Profiles interface {
	Load() *profiles.Set
	// Changed is closed at the next change of Load.
	Changed() <-chan struct{}
}

// Refusals is told what KEDA keeps from the user: when GetMetricSpec refuses
// metadata KEDA logs why, and the ScaledObject says only that there are no
// metrics. What GetMetrics answers KEDA makes events of by itself.
type Refusals interface {
	// Refused must not wait. The names are as the caller says, and may be of no
	// object at all. Everybody may read the message.
	Refused(namespace, name, message string)
	// Notify has the ScaledObject's author notified of something, by its reason in
	// CamelCase. It must not wait.
	Notify(namespace, name, reason, message string)
}

type nobody struct{}

func (nobody) Refused(string, string, string) {}

func (nobody) Notify(string, string, string, string) {}

// Workloads is where it is known what ScaledObjects scale. Neither method may
// wait.
type Workloads interface {
	// Workload is what a ScaledObject scales: by podSelector, if it is not "". The
	// metadata tells the trigger from the ScaledObject's others. Errors are of type
	// *[evaluate.Error].
	Workload(namespace, name, podSelector string, metadata map[string]string) (*evaluate.Workload, error)
	// Expect says that Workload will soon be asked.
	Expect(namespace, name, podSelector string)
}

// Service implements KEDA's ExternalScaler.
type Service struct {
	pb.UnimplementedExternalScalerServer
	fleet     Fleet
	peers     Peers // nil: there are none
	interval  time.Duration
	profiles  Profiles
	limits    evaluate.Limits
	workloads Workloads // nil: there are none
	engines   Engines   // nil: none are read
	services  Services  // nil: likewise
	refusals  Refusals
	log       *slog.Logger
	journal   *journal
	calls     calls
	memo      memo
	stopping  chan struct{}
}

// NewService answers from a fleet; readings older than staleAfter are no data.
func NewService(fleet Fleet, profiles Profiles, staleAfter time.Duration, log *slog.Logger) *Service {
	return &Service{
		fleet: fleet, profiles: profiles, limits: evaluate.Limits{StaleAfter: staleAfter, Tolerance: replicas.DefaultTolerance},
		refusals: nobody{}, log: log, journal: newJournal(log), stopping: make(chan struct{}),
	}
}

// UseWorkloads makes triggers that name no scope read the GPUs of their own
// workload. It must be called before the service serves.
func (s *Service) UseWorkloads(workloads Workloads, limits evaluate.Limits) {
	s.workloads, s.limits = workloads, limits
}

// UsePeers makes the GPUs of other nodes known, while KEDA asks; each tells of itself
// every interval. It must be called before the service serves.
func (s *Service) UsePeers(peers Peers, interval time.Duration) {
	s.peers, s.interval = peers, interval
}

// TellRefusals names who is told of refused metadata; else nobody is. It must
// be called before the service serves.
func (s *Service) TellRefusals(to Refusals) { s.refusals = to }

// Stop ends all streams cleanly, which is what resets KEDA's back-off. It must
// be called once.
func (s *Service) Stop() { close(s.stopping) }

// GetMetricSpec depends on the metadata alone: KEDA's fallback does not work
// when it fails.
func (s *Service) GetMetricSpec(_ context.Context, ref *pb.ScaledObjectRef) (*pb.GetMetricSpecResponse, error) {
	response, err := s.metricSpec(ref)
	s.calls.count(callGetMetricSpec, err)
	return response, err
}

func (s *Service) metricSpec(ref *pb.ScaledObjectRef) (*pb.GetMetricSpecResponse, error) {
	s.asked()
	t, err := trigger.Parse(ref.GetScalerMetadata(), s.profiles.Load())
	if err != nil {
		var bad *trigger.Error
		if errors.As(err, &bad) {
			s.refusals.Refused(ref.GetNamespace(), ref.GetName(), bad.Public())
		}
		return nil, s.refuse(ref, err)
	}
	if s.ofWorkload(&t) {
		s.workloads.Expect(ref.GetNamespace(), ref.GetName(), t.PodSelector)
		s.want(&t, ref)
	}
	return spec(&t), nil
}

// GetMetrics answers with one value, or with an error when there is no data.
func (s *Service) GetMetrics(_ context.Context, r *pb.GetMetricsRequest) (*pb.GetMetricsResponse, error) {
	response, err := s.metrics(r)
	s.calls.count(callGetMetrics, err)
	return response, err
}

func (s *Service) metrics(r *pb.GetMetricsRequest) (*pb.GetMetricsResponse, error) {
	if r.GetScaledObjectRef() == nil {
		return nil, status.Error(codes.InvalidArgument, "scaledObjectRef: missing; GetMetrics needs the ScaledObject's name, namespace and metadata")
	}
	t, err := s.trigger(r.GetScaledObjectRef())
	if err != nil {
		return nil, err
	}
	d, err := s.decide(&t, r.GetScaledObjectRef())
	s.journal.note(r.GetScaledObjectRef(), &t, &d, err)
	notices := d.Notices
	if !s.ofWorkload(&t) { // a decision for a workload has them
		notices = evaluate.Suspicions(&t, s.limits.Tolerance)
	}
	for _, n := range notices {
		s.refusals.Notify(r.GetScaledObjectRef().GetNamespace(), r.GetScaledObjectRef().GetName(), n.Reason, n.Message)
	}
	if err != nil {
		return nil, s.refuse(r.GetScaledObjectRef(), err)
	}
	return &pb.GetMetricsResponse{MetricValues: []*pb.MetricValue{{
		MetricName:       t.MetricName,
		MetricValue:      int64(math.Round(d.Value)),
		MetricValueFloat: thousandths(d.Value),
	}}}, nil
}

// IsActive says whether the workload should have at least one replica.
func (s *Service) IsActive(_ context.Context, ref *pb.ScaledObjectRef) (*pb.IsActiveResponse, error) {
	response, err := s.isActive(ref)
	s.calls.count(callIsActive, err)
	return response, err
}

func (s *Service) isActive(ref *pb.ScaledObjectRef) (*pb.IsActiveResponse, error) {
	t, err := s.trigger(ref)
	if err != nil {
		return nil, err
	}
	active, err := s.active(&t, ref)
	if err != nil {
		return nil, s.refuse(ref, err)
	}
	return &pb.IsActiveResponse{Result: active}, nil
}

// ofWorkload says whether a trigger is about the workload's own pods: by what it
// says, else wherever these can be known.
func (s *Service) ofWorkload(t *trigger.Trigger) bool {
	return s.workloads != nil && (t.Scope == trigger.ScopeWorkload || t.Scope == "")
}

func (s *Service) decide(t *trigger.Trigger, ref *pb.ScaledObjectRef) (evaluate.Decision, error) {
	switch {
	case s.ofWorkload(t):
		if terms.IsEngine(t.Metric) && s.engines == nil {
			return evaluate.Decision{}, errNoEngines
		}
		s.want(t, ref)
		w, err := s.workload(t, ref)
		if err != nil {
			return evaluate.Decision{}, err
		}
		if terms.IsQueue(t.Metric) {
			return s.decideForQueue(t, ref, w)
		}
		return s.decideForWorkload(t, ref, w)
	case t.Scope == trigger.ScopeCluster && s.peers != nil:
		if !s.peers.Settled() { // who has not been found is no gap
			return evaluate.Decision{}, errUnsettled
		}
		return s.settled(s.memo.get(ref, t, nil, true, s.keep(), func(now time.Time) (evaluate.Decision, error) {
			return evaluate.ForCluster(t, s.fleet, now, s.limits.StaleAfter)
		}))
	}
	return evaluate.Evaluate(t, s.fleet.Own(), time.Now(), s.limits.StaleAfter)
}

func (s *Service) decideForWorkload(t *trigger.Trigger, ref *pb.ScaledObjectRef, w *evaluate.Workload) (evaluate.Decision, error) {
	decide := func(now time.Time) (evaluate.Decision, error) {
		return evaluate.ForWorkload(t, s.fleet, w, now, s.limits)
	}
	if s.peers == nil {
		return decide(time.Now())
	}
	return s.settled(s.memo.get(ref, t, w, s.peers.Settled(), s.keep(), decide))
}

// keep is for how long a large decision is good.
func (s *Service) keep() time.Duration {
	if s.fleet.Own() != nil {
		return keptOwn
	}
	return min(s.interval, keptAtMost)
}

var errUnsettled = &evaluate.Error{Kind: evaluate.Unavailable,
	Reason: "not all nodes are heard yet: this scaler has just begun to listen to its peers, or cannot find them (see its log)"}

// settled refuses a decision with gaps that may be filled in a moment: a scaler that
// has just begun to listen to its peers.
func (s *Service) settled(d evaluate.Decision, err error) (evaluate.Decision, error) {
	if err == nil && d.Gaps() > 0 && !s.peers.Settled() {
		return evaluate.Decision{}, errUnsettled
	}
	return d, err
}

func (s *Service) active(t *trigger.Trigger, ref *pb.ScaledObjectRef) (bool, error) {
	if t.AlwaysActive {
		return true, nil
	}
	d, err := s.decide(t, ref)
	if d.Active { // what is known to be active is, also where too much is missing for a number
		return true, nil
	}
	return false, err
}

func (s *Service) workload(t *trigger.Trigger, ref *pb.ScaledObjectRef) (*evaluate.Workload, error) {
	return s.workloads.Workload(ref.GetNamespace(), ref.GetName(), t.PodSelector, ref.GetScalerMetadata())
}

func (s *Service) asked() {
	if s.peers != nil {
		s.peers.Asked()
	}
}

func (s *Service) trigger(ref *pb.ScaledObjectRef) (trigger.Trigger, error) {
	s.asked()
	t, err := trigger.Parse(ref.GetScalerMetadata(), s.profiles.Load())
	if err != nil {
		return t, s.refuse(ref, err)
	}
	return t, nil
}

// refuse maps an error of trigger or evaluate to a gRPC status: the only place
// that does.
func (s *Service) refuse(ref *pb.ScaledObjectRef, err error) error {
	code := codes.Internal
	var bad *trigger.Error
	var none *evaluate.Error
	switch {
	case errors.As(err, &bad):
		code = codes.InvalidArgument
	case errors.As(err, &none):
		switch none.Kind {
		case evaluate.Invalid:
			code = codes.InvalidArgument
		case evaluate.Unavailable:
			code = codes.Unavailable
		case evaluate.Impossible:
			code = codes.FailedPrecondition
		}
	}
	s.log.Debug("refused", "namespace", ref.GetNamespace(), "name", ref.GetName(), "code", code, "reason", err)
	return status.Error(code, err.Error())
}

func spec(t *trigger.Trigger) *pb.GetMetricSpecResponse {
	return &pb.GetMetricSpecResponse{MetricSpecs: []*pb.MetricSpec{{
		MetricName: t.MetricName,
		// The integer is for clients from before targetSizeFloat; they would
		// take a target below a half for none at all.
		TargetSize:      max(1, int64(math.Round(t.Target))),
		TargetSizeFloat: t.Target,
	}}}
}

// thousandths keeps the decimals that survive in KEDA. A value that is not
// zero never becomes zero, which KEDA reads as idle.
func thousandths(v float64) float64 {
	if v > 0 && v < 0.001 {
		return 0.001
	}
	return math.Round(v*1000) / 1000
}
