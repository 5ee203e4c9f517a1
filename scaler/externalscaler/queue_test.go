package externalscaler

import (
	"sync"
	"testing"
	"time"

	pb "github.com/kedacore/keda/v2/pkg/scalers/externalscaler"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/labels"

	"gpuscaler/scaler/evaluate"
	"gpuscaler/scaler/trigger"
	"gpuscaler/scaler/window"
)

// oneService always has the same number of requests, until that is changed.
type oneService struct {
	mu      sync.Mutex
	waiting float64
	asked   []trigger.Service
	updated chan struct{}
}

func (o *oneService) Queue(_ string, s trigger.Service) *evaluate.Queue {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.asked = append(o.asked, s)
	n := o.waiting
	return &evaluate.Queue{Selector: map[string]string{"app": "gateway"}, UIDs: []string{"g"}, Last: n, Means: window.Means{n, n, n, n}, Heard: time.Now()}
}

func (o *oneService) Updated() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.updated
}

func (o *oneService) set(n float64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.waiting = n
	close(o.updated)
	o.updated = make(chan struct{})
}

var ofQueue = metadata{"metricType": "service_queue", "service": "gateway", "serviceMetric": "m", "targetValue": "5", "pollIntervalSeconds": "3600"}

// TestQueue: KEDA is told of what waits in front of a workload, and by a stream as soon as
// it is known; a Service is read only for a trigger that the ScaledObject has.
func TestQueue(t *testing.T) {
	a, one := newAcross(t, 1, time.Minute), &oneService{updated: make(chan struct{})}
	a.works.w.Selector = labels.SelectorFromSet(labels.Set{"app": "llm"})
	_, err := a.value(ofQueue)
	require.Equal(t, codes.FailedPrecondition, status.Code(err), "Services are not read")
	a.UseServices(one)

	a.works.w.Guess = true
	_, err = a.value(ofQueue)
	require.Equal(t, codes.Unavailable, status.Code(err))
	assert.Empty(t, one.asked, "its author has not asked for it")
	a.works.w.Guess = false

	s := newTape[pb.IsActiveResponse](t.Context())
	end := make(chan error, 1)
	go func() {
		end <- a.StreamIsActive(&pb.ScaledObjectRef{Namespace: "shop", Name: "llm", ScalerMetadata: ofQueue}, s)
	}()
	states := func() (all []bool) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, m := range s.sent {
			all = append(all, m.GetResult())
		}
		return all
	}
	eventually(t, "inactive", func() bool { return len(states()) == 1 })
	one.set(12)
	eventually(t, "active", func() bool { return len(states()) == 2 })
	assert.Equal(t, []bool{false, true}, states())
	v, err := a.value(ofQueue)
	require.NoError(t, err)
	assert.InDelta(t, 12, v, 0)
	a.Stop()
	require.NoError(t, <-end)
	assert.Equal(t, trigger.Service{Name: "gateway", Path: "/metrics", Metric: "m"}, one.asked[0])
}
