package scenarios

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"gpuscaler/deploy/e2e/cluster"
	"gpuscaler/deploy/e2e/llmserver"
	"gpuscaler/deploy/e2e/process"
)

// TestWakeFromZero plays the recipe with the real Caddy: a request arrives at zero replicas
// and waits, the workload goes to one, which loads and serves it, and after the cooldown it is
// at zero again.
func TestWakeFromZero(t *testing.T) {
	s := begin(t, setting{name: "wake", fixture: "h100x8-uneven", replicas: 0, node: ofWorkloads(), shares: ofFleet, workload: func(w *cluster.Workload) { w.Engine = "--loading=5s" }})
	g := s.gateway()
	scaled := strings.ReplaceAll(g.recipe["ScaledObject"], "name: llm\n", "name: "+s.name+"\n")
	scaled = strings.Replace(scaled, "cooldownPeriod: 300", "cooldownPeriod: 5\n  pollingInterval: 2", 1)
	scaled = strings.ReplaceAll(scaled, "gpuscaler.gpuscaler.svc:6000", s.node.Address)
	s.must(s.Apply(s.ctx, g.recipe["Service"]+"\n---\n"+scaled))
	s.eventually("Ready", s.condition("Ready", "True"))
	s.eventually("the author sees that nobody has used the gateway yet", s.said("NoSeries", "no series of caddy_http_requests_in_flight has the labels", "handler=metrics"))
	s.always("0 replicas while nobody asks", 5*time.Second, s.replicas(0))

	answered := make(chan error, 1)
	began := time.Now()
	go func() { answered <- g.complete(100, 50) }()
	s.eventually("1 replica is asked for", s.atLeast(1))
	woken := time.Since(began)
	s.eventually("it is ready", s.replicas(1))
	select {
	case err := <-answered:
		s.must(err)
	case <-s.ctx.Done():
		s.must(s.ctx.Err())
	}
	s.Logf("it was woken after %s, and the request was served after %s", woken.Round(10*time.Millisecond), time.Since(began).Round(10*time.Millisecond))
	require.GreaterOrEqual(t, time.Since(began), 5*time.Second, "the engine loads for 5 s")
	require.Less(t, woken, 3*time.Second, "a reading a second, and external-push")
	s.eventually("0 replicas after the cooldown", s.replicas(0))
	s.eventually("its pod is gone", func() error {
		pods, err := s.Pods(s.ctx)
		if err == nil && len(pods) > 0 {
			err = fmt.Errorf("%d pods", len(pods))
		}
		return err
	})
	go func() { answered <- g.complete(100, 50) }()
	s.eventually("1 replica, for the next one", s.replicas(1))
	s.must(<-answered)
}

// gateway is the recipe's Caddy in front of a story's workload.
type gateway struct {
	url     string
	recipe  map[string]string // its objects, by kind
	engines string            // the address of the workload's own Service
}

// gateway runs Caddy with the recipe's configuration, but for its addresses, in a pod with
// the recipe's labels and ports.
func (s *story) gateway() *gateway {
	s.Helper()
	text, err := os.ReadFile(filepath.Join(deploy, "recipes", "wake-from-zero.yaml"))
	s.must(err)
	g := &gateway{recipe: map[string]string{}}
	for object := range strings.SplitSeq(string(text), "\n---\n") {
		var kind struct{ Kind string }
		s.must(yaml.Unmarshal([]byte(object), &kind))
		g.recipe[kind.Kind] = object
	}
	require.Len(s, g.recipe, 4)
	s.must(s.Apply(s.ctx, strings.Replace(g.recipe["Deployment"], "replicas: 2", "replicas: 0", 1))) // it is a valid one
	var deployment struct {
		Spec struct{ Template corev1.PodTemplateSpec }
	}
	s.must(yaml.Unmarshal([]byte(g.recipe["Deployment"]), &deployment))
	var config struct{ Data map[string]string }
	s.must(yaml.Unmarshal([]byte(g.recipe["ConfigMap"]), &config))

	service, err := s.Serve()
	s.must(err)
	s.Cleanup(service.Stop)
	g.engines = service.Address
	ports, err := cluster.FreePorts(2)
	s.must(err)
	file := config.Data["Caddyfile"]
	for from, to := range map[string]string{
		":8080 {": fmt.Sprintf(":%s {\n\tbind 127.0.0.1", ports[0]), ":9180 {": fmt.Sprintf(":%s {\n\tbind 127.0.0.1", ports[1]), "llm:8000": service.Address,
	} {
		require.Contains(s, file, from)
		file = strings.Replace(file, from, to, 1)
	}
	dir := s.TempDir()
	path := filepath.Join(dir, "Caddyfile")
	s.must(os.WriteFile(path, []byte(file), 0o644))
	p, err := s.on.Processes().Start(process.Spec{
		Name: s.name + "-caddy", Path: set.Path("caddy", "caddy"), Args: []string{"run", "--config", path, "--adapter", "caddyfile"},
		Env: []string{"XDG_CONFIG_HOME=" + dir, "XDG_DATA_HOME=" + dir},
	})
	s.must(err)
	s.Cleanup(func() { require.NoError(s, p.Stop()) })

	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: "gateway", Labels: deployment.Spec.Template.Labels}, Spec: deployment.Spec.Template.Spec}
	metrics, err := strconv.ParseInt(ports[1], 10, 32)
	s.must(err)
	pod.Spec.NodeName = s.node.Name
	pod.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "metrics", ContainerPort: int32(metrics)}}
	s.must(s.on.PlayedPod(s.ctx, pod, "127.0.0.1"))
	g.url = "http://127.0.0.1:" + ports[0]
	s.must(cluster.Until(s.ctx, func(context.Context) error {
		response, err := http.Get("http://127.0.0.1:" + ports[1] + "/metrics")
		if err == nil {
			_ = response.Body.Close()
		}
		return err
	}, p))
	return g
}

// complete asks for a completion, and waits for it.
func (g *gateway) complete(promptTokens, maxTokens int) error {
	body, err := json.Marshal(llmserver.Request{PromptTokens: promptTokens, MaxTokens: maxTokens})
	if err != nil {
		return err
	}
	response, err := http.Post(g.url+"/v1/completions", "application/json", bytes.NewReader(body))
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	text, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d: %s", response.StatusCode, text)
	}
	return err
}
