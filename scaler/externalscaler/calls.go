package externalscaler

import (
	"slices"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"gpuscaler/scaler/evaluate"
)

// Calls that are counted, by position in callNames.
const (
	callGetMetricSpec = iota
	callGetMetrics
	callIsActive
)

var callNames = [...]string{"GetMetricSpec", "GetMetrics", "IsActive"}

// calls counts KEDA's calls by how they ended.
type calls [len(callNames)][codes.Unauthenticated + 1]atomic.Uint64

func (c *calls) count(call int, err error) { c[call][status.Code(err)].Add(1) }

// usual are the codes that calls end with by what is asked, and not by an accident.
// They are told from 0 on: who adds up what a counter grows by would miss the first.
var usual = []codes.Code{codes.OK, codes.InvalidArgument, codes.FailedPrecondition, codes.Unavailable}

// Calls tells how often each of KEDA's calls has ended with each gRPC code: the usual
// ones, and others that there were.
func (s *Service) Calls(tell func(call, code string, count uint64)) {
	for call, name := range callNames {
		for code := range s.calls[call] {
			code := codes.Code(code)
			if n := s.calls[call][code].Load(); n > 0 || slices.Contains(usual, code) {
				tell(name, code.String(), n)
			}
		}
	}
}

// Answers are those about triggers that GetMetrics was asked for since a time, in no
// order.
func (s *Service) Answers(since time.Time) []evaluate.Answer { return s.journal.answers(since) }
