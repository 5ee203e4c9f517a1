package e2e

import (
	"fmt"
	"slices"
	"testing"
	"time"

	pb "github.com/kedacore/keda/v2/pkg/scalers/externalscaler"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// besides starts a scaler on another node of the same cluster, which plays a recording,
// and has a client of it.
func (c *cluster) besides(t *testing.T, flags ...string) *node {
	t.Helper()
	n := &node{t: t, address: freeAddress(t)}
	n.scaler = start(t, nil, bin+"/scaler", append([]string{"serve", "--kubeconfig", c.kubeconfig, "--listen=" + n.address, "--http=",
		"--node-name=node-b", "--log-level=debug", "--replay=../../testdata/one-75.csv"}, flags...)...)
	n.sidecar = n.scaler
	conn, err := grpc.NewClient(n.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	n.conn, n.ExternalScalerClient = conn, pb.NewExternalScalerClient(conn)
	n.eventually(10*time.Second, n.serving)
	return n
}

// TestRecall: a node's scaler is restarted alone while its GPUs fall idle. What a peer
// last received of it completes its windows: both go on answering with what the pods did
// before, and not with what the new process has read.
func TestRecall(t *testing.T) {
	const before, after = 24 * time.Second, 16 * time.Second
	for name, ready := range map[string]time.Duration{
		"pods that have been ready for long":      time.Hour,
		"pods that became ready a short time ago": 30 * time.Second,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			peers := []string{freeAddress(t), freeAddress(t)}
			flags := func(i int) []string {
				return []string{"--peers=" + peers[0] + "," + peers[1], "--peer-listen=" + peers[i], "--peer-interval=200ms"}
			}
			c := &cluster{ready: time.Now().Add(-ready)}
			a := c.startNode(t, flags(0)...)
			b := c.besides(t, flags(1)...)
			// The sum over both pods: as much as one GPU has done, twice.
			ask := func(n *node, window string) float64 {
				var v float64
				n.eventually(20*time.Second, func() (err error) {
					v, err = n.value(map[string]string{"targetValue": "2", "activationThreshold": "0", "window": window})
					return err
				})
				return v
			}
			require.NoError(t, a.control.Set("set * gpu_utilization 90"))
			for _, n := range []*node{a, b} {
				n.eventually(20*time.Second, func() error {
					if v := ask(n, "15s"); v != 180 {
						return fmt.Errorf("%v over 15 s; want 180", v)
					}
					return nil
				})
			}
			time.Sleep(before - 15*time.Second)
			worked := time.Now()
			require.NoError(t, a.control.Set("set * gpu_utilization 0"))
			a.scaler.kill()
			a.startScaler(append([]string{"--kubeconfig", c.kubeconfig}, flags(0)...)...)
			a.eventually(10*time.Second, a.serving)
			// From the first answer on, so long as it is asked.
			var all []float64
			for time.Since(worked) < after {
				all = append(all, ask(a, "5m"))
				time.Sleep(200 * time.Millisecond)
			}
			own, other := ask(a, "5m"), ask(b, "5m")
			t.Logf("%v, and its peer %v; since the restart from %v to %v", own, other, slices.Max(all), slices.Min(all))
			assert.InDelta(t, other, own, 0.05*other, "its own answer and its peer's")
			share := before.Seconds() / (before + after).Seconds()
			assert.InDelta(t, 180*share, own, 0.15*180, "%s at 90 %% and %s at 0 %%", before, after)
			assert.Greater(t, slices.Min(all), 180*share-0.15*180, "never as if it had been idle before")
		})
	}
}
