package scenarios

import (
	"fmt"
	"testing"
	"time"
)

// TestFormula: a formula over our trigger gets what the GPUs really do: their mean where
// the composite is a Value, their sum where it is an AverageValue, whatever the trigger's
// own target is. Its author is told.
func TestFormula(t *testing.T) {
	t.Parallel() // with what follows, too
	for kind, gets := range map[string]string{"Value": "gets the mean", "AverageValue": "gets the sum"} {
		t.Run(kind, func(t *testing.T) {
			s := begin(t, setting{name: "formula-" + map[string]string{"Value": "mean", "AverageValue": "sum"}[kind], fixture: "h100x8-uneven", replicas: 3, node: ofWorkloads(), workload: slow})
			s.node.Kubelet.Loading(loading)
			s.eventually("3 pods are ready", s.replicas(3))
			s.eventually("3 pods have GPUs", s.gpus(3))
			s.loads(map[*story]float64{s: 60})
			formula := fmt.Sprintf(`advanced: {scalingModifiers: {formula: "gpu * 2", target: "120", metricType: %s}}`, kind)
			s.scaleOn("external", holding+"\nmaxReplicaCount: 50\n"+formula, "    name: gpu\n", "targetValue", "20", "window", "0s")
			s.eventually("Ready", s.condition("Ready", "True"))
			s.eventually("the user is told", s.said("CompositeTrigger", gets))
			s.always("3 replicas: twice 60 is the formula's target", 8*time.Second, s.replicas(3))
			s.loads(map[*story]float64{s: 100})
			s.eventually("5 replicas: 3 x 200 / 120", s.replicas(5)) // the two new ones have no load
			s.always("5 replicas", 6*time.Second, s.replicas(5))
			s.loads(map[*story]float64{s: 10})
			s.eventually("1 replica", s.replicas(1))
		})
	}
}
