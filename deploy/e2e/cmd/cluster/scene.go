package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"gpuscaler/deploy/e2e/arrivals"
	"gpuscaler/deploy/e2e/cluster"
	"gpuscaler/deploy/e2e/llmload"
)

// nodes are the GPU nodes, recording what their GPUs play: engines' work comes over it.
var nodes = []string{"gpu-a", "gpu-b", "gpu-c"}

const recording = "h100x8-uneven.csv"

// pool is the label of the nodes that the workload may be on.
const pool = "fleet"

// scaledObject is the README's, with shorter times and a floor of one replica.
const scaledObject = `
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  name: llm
spec:
  scaleTargetRef:
    name: llm
  pollingInterval: 5
  minReplicaCount: 1
  maxReplicaCount: 8
  triggers:
    - type: external
      metadata:
        scalerAddress: %s
        profile: llm
`

// A day of users in ten minutes, with so many requests a second at noon: more than two
// replicas can do, and less than five. The first day begins when users wake up.
const (
	day     = 10 * time.Minute
	noon    = 10
	morning = day * 7 / 24
)

// scene is what there is to see.
type scene struct {
	nodes    []*cluster.GPUNode
	front    *cluster.Front
	workload *cluster.Workload
	service  *cluster.Service
}

// setScene adds the nodes, the scaler that KEDA asks, and the workload in namespace default:
// the parts of the shipped install.
func setScene(ctx context.Context, c *cluster.Cluster, testdata string) (*scene, error) {
	s := &scene{workload: c.Workload("default", "llm")}
	ports, err := cluster.FreePorts(len(nodes) + 1)
	if err != nil {
		return nil, err
	}
	var peers []string
	for _, port := range ports[:len(nodes)] {
		peers = append(peers, "127.0.0.1:"+port)
	}
	for i, n := range nodes {
		node, err := c.AddGPUNode(ctx, cluster.GPUNodeOptions{
			Name: n, Fixture: filepath.Join(testdata, recording), Workloads: true, Labels: map[string]string{pool: "gpu"}, Peers: peers, PeerListen: peers[i],
		})
		if err != nil {
			return nil, err
		}
		s.nodes = append(s.nodes, node)
		say(fmt.Sprintf("node %s has 8 GPUs; its scaler's /state is at http://%s/state", n, node.HTTP))
	}
	if s.front, err = c.StartFront("front", "127.0.0.1:"+ports[len(nodes)], peers); err != nil {
		return nil, err
	}
	s.workload.Engine = "--loading=20s"
	s.workload.Selector = map[string]string{pool: "gpu"}
	if err := s.workload.Deploy(ctx, "", 1); err != nil {
		return nil, err
	}
	if s.service, err = s.workload.Serve(); err != nil {
		return nil, err
	}
	return s, s.workload.Apply(ctx, fmt.Sprintf(scaledObject, s.front.Address))
}

// users are those of a day, again and again, until ctx is done.
func (s *scene) users(ctx context.Context) {
	for seed := uint64(1); ctx.Err() == nil; seed++ {
		trace, err := arrivals.Generate(arrivals.Day(noon).Compress(day), arrivals.Chat(), seed)
		if err != nil {
			say(err.Error())
			return
		}
		if seed == 1 {
			trace = slices.DeleteFunc(trace, func(r arrivals.Request) bool { return r.At < morning })
			for i := range trace {
				trace[i].At -= morning
			}
		}
		_ = llmload.Replay(ctx, "http://"+s.service.Address, trace, func(llmload.Result) {})
	}
}

// layout of a line: replicas, what the HPA sees of each replica, the engines' requests.
const layout = "%6s %6s   %-14s  %7s  %7s"

// follow prints a line whenever something changed, at most one a second, until
// ctx is done.
func (s *scene) follow(ctx context.Context) error {
	users, stop := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.users(users)
	}()
	defer func() {
		stop()
		<-ended
	}()
	header := fmt.Sprintf(layout, "asked", "ready", "value (target)", "waiting", "running")
	for _, n := range s.nodes {
		header += fmt.Sprintf("  %-6s", n.Name)
	}
	fmt.Printf("%s llm's replicas, engine_saturation as the HPA sees it, its requests; the mean gpu_utilization of each node's engines\n%s%s\n",
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
	waiting, running, busy := 0.0, 0.0, ""
	for _, n := range s.nodes {
		of, err := look(ctx, n)
		if err != nil {
			return "", err
		}
		waiting, running = waiting+of.waiting, running+of.running
		busy += fmt.Sprintf("  %-6s", of.busy)
	}
	return fmt.Sprintf(layout, strconv.Itoa(asked), strconv.Itoa(ready), s.hpa(ctx), fmt.Sprint(waiting), fmt.Sprint(running)) + busy, nil
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

// seen is what a node's scaler says of its engines.
type seen struct {
	waiting, running float64
	busy             string // of the GPUs that their pods hold; "-" without any
}

// look reads the scaler's /state.
func look(ctx context.Context, n *cluster.GPUNode) (of seen, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.HTTP+"/state", nil)
	if err != nil {
		return of, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return of, err
	}
	defer func() { _ = response.Body.Close() }()
	type metrics map[string]map[string]float64 // name, window
	var state struct {
		Devices []struct {
			ID      string
			Metrics metrics
		}
		Engines []struct{ Metrics metrics }
		Pods    []struct{ Holds []struct{ Device string } }
	}
	if err := json.NewDecoder(response.Body).Decode(&state); err != nil {
		return of, err
	}
	for _, e := range state.Engines {
		of.waiting += e.Metrics["engine_waiting"]["0s"]
		of.running += e.Metrics["engine_running"]["0s"]
	}
	held := map[string]bool{}
	for _, p := range state.Pods {
		for _, h := range p.Holds {
			held[h.Device] = true
		}
	}
	sum := 0.0
	for _, d := range state.Devices {
		if held[d.ID] {
			sum += d.Metrics["gpu_utilization"]["0s"]
		}
	}
	if of.busy = "-"; len(held) > 0 {
		of.busy = fmt.Sprintf("%.0f %%", sum/float64(len(held)))
	}
	return of, nil
}
