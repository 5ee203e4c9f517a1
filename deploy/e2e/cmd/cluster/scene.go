package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"gpuscaler/deploy/e2e/cluster"
)

// nodes are the GPU nodes with what they play, three times as fast as it was.
var nodes = []struct{ name, fixture string }{
	{"gpu-llm", "h200-llm.csv"},
	{"gpu-train", "h100x8-uneven.csv"},
	{"gpu-triton", "t4.csv"},
}

const speed = 3

// scaledObject is the example's trigger on the figures that move in the
// recording: vLLM's memory does not.
const scaledObject = `
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  name: vllm
spec:
  scaleTargetRef:
    name: vllm
  pollingInterval: 2
  cooldownPeriod: 10
  minReplicaCount: 1
  maxReplicaCount: 8
  triggers:
    - type: external
      metadata:
        scalerAddress: %s
        profile: llm-saturation
        targetValue: "10"
`

// scene is what there is to see.
type scene struct {
	nodes    []*cluster.GPUNode
	workload *cluster.Workload
}

// setScene adds the nodes and the workload, in namespace default.
func setScene(ctx context.Context, c *cluster.Cluster, testdata string) (*scene, error) {
	s := &scene{workload: c.Workload("default", "vllm")}
	for _, n := range nodes {
		node, err := c.AddGPUNode(ctx, cluster.GPUNodeOptions{Name: n.name, Fixture: filepath.Join(testdata, n.fixture), Speed: speed})
		if err != nil {
			return nil, err
		}
		s.nodes = append(s.nodes, node)
		say(fmt.Sprintf("node %s plays %s; its scaler is at %s", n.name, n.fixture, node.Address))
	}
	if err := s.workload.Deploy(ctx, s.nodes[0].Name, 1); err != nil {
		return nil, err
	}
	return s, s.workload.Apply(ctx, fmt.Sprintf(scaledObject, s.nodes[0].Address))
}

// layout of a line: replicas, what the HPA sees of each replica, the nodes.
const layout = "%6s %6s   %-14s"

// follow prints a line whenever something changed, at most one a second, until
// ctx is done.
func (s *scene) follow(ctx context.Context) error {
	header := fmt.Sprintf(layout, "asked", "ready", "value (target)")
	for _, n := range s.nodes {
		header += fmt.Sprintf("  %-10s", n.Name)
	}
	fmt.Printf("%s vllm's replicas and tensor_activity, as the HPA sees it; gpu_utilization of each node's busiest GPU\n%s%s\n",
		strings.Repeat(" ", 8), strings.Repeat(" ", 9), header)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	last := ""
	for {
		line, err := s.line(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			line = err.Error() // a person may have deleted something
		}
		if line != last {
			fmt.Printf("%5.0f s  %s\n", time.Since(began).Seconds(), line)
			last = line
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// line is the state in one line.
func (s *scene) line(ctx context.Context) (string, error) {
	asked, ready, err := s.workload.Replicas(ctx)
	if err != nil {
		return "", err
	}
	line := fmt.Sprintf(layout, strconv.Itoa(asked), strconv.Itoa(ready), s.hpa(ctx))
	for _, n := range s.nodes {
		busiest, err := utilization(ctx, n)
		if err != nil {
			return "", err
		}
		line += fmt.Sprintf("  %-10s", fmt.Sprintf("%.0f %%", busiest))
	}
	return line, nil
}

// hpa is the value that the HPA saw and its target, "-" while there is none.
func (s *scene) hpa(ctx context.Context) string {
	h, err := s.workload.HPA(ctx)
	if err != nil || len(h.Status.CurrentMetrics) == 0 || h.Status.CurrentMetrics[0].External == nil {
		return "-"
	}
	// Kubernetes prints 11.79 as 11790m.
	return fmt.Sprintf("%.1f (%s)", h.Status.CurrentMetrics[0].External.Current.AverageValue.AsApproximateFloat64(),
		h.Spec.Metrics[0].External.Target.AverageValue)
}

// utilization is that of a node's busiest GPU now, in %, from the scaler's /state.
func utilization(ctx context.Context, n *cluster.GPUNode) (float64, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.HTTP+"/state", nil)
	if err != nil {
		return 0, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, err
	}
	defer func() { _ = response.Body.Close() }()
	var state struct {
		Devices []struct {
			Metrics map[string]map[string]float64 `json:"metrics"` // name, window
		} `json:"devices"`
	}
	if err := json.NewDecoder(response.Body).Decode(&state); err != nil {
		return 0, err
	}
	busiest := 0.0
	for _, d := range state.Devices {
		busiest = max(busiest, d.Metrics["gpu_utilization"]["0s"])
	}
	return busiest, nil
}
