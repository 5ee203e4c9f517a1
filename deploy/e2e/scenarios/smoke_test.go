package scenarios

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpuscaler/deploy/e2e/cluster"
)

func TestSmoke(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	n, err := shared.AddGPUNode(ctx, cluster.GPUNodeOptions{Name: "smoke", Fixture: repo + "/testdata/hundred.csv"})
	require.NoError(t, err)
	w, err := shared.AddWorkload(ctx, "smoke", "smoke", 1)
	require.NoError(t, err)
	require.NoError(t, w.Apply(ctx, `
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata: {name: smoke}
spec:
  scaleTargetRef: {name: smoke}
  pollingInterval: 1
  cooldownPeriod: 3
  triggers:
  - type: external
    metadata:
      scalerAddress: `+n.Address+`
      profile: training
`))
	require.NoError(t, cluster.Until(ctx, func(ctx context.Context) error {
		h, err := w.HPA(ctx)
		if err != nil {
			return err
		}
		t.Log(h.Status.DesiredReplicas, h.Status.CurrentMetrics)
		a, b, err := w.Replicas(ctx)
		t.Log(a, b, err)
		if b < 2 {
			return context.Canceled
		}
		return nil
	}))
}
