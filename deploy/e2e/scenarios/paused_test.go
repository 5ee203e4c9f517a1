package scenarios

import (
	"errors"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// TestPaused: a paused ScaledObject holds its replicas whatever the load does,
// and follows it again afterwards.
func TestPaused(t *testing.T) {
	s := begin(t, setting{name: "paused", fixture: "h200-idle", replicas: 1})
	s.load("set * gpu_utilization 50")
	s.scale(quick, "targetValue", "25", "window", "0s")
	s.eventually("2 replicas", s.replicas(2))
	s.must(s.Annotate(s.ctx, "autoscaling.keda.sh/paused", "true"))
	s.eventually("paused", s.condition("Paused", "True"))
	s.eventually("no HPA", func() error {
		if _, err := s.HPA(s.ctx); !apierrors.IsNotFound(err) {
			return errors.Join(errors.New("the HPA is still there"), err)
		}
		return nil
	})
	s.load("set * gpu_utilization 100")
	s.always("2 replicas", 6*time.Second, s.replicas(2))
	s.must(s.Annotate(s.ctx, "autoscaling.keda.sh/paused", ""))
	s.eventually("4 replicas", s.replicas(4))
	s.load("set * gpu_utilization 0")
	s.eventually("0 replicas", s.replicas(0))
}
