package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	pb "github.com/kedacore/keda/v2/pkg/scalers/externalscaler"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	podresourcesv1 "k8s.io/kubelet/pkg/apis/podresources/v1"

	"gpuscaler/shared/fixture"
)

// gate lets through, or has all wait until it is opened.
type gate struct {
	mu     sync.Mutex
	closed chan struct{}
}

func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = make(chan struct{})
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed != nil {
		close(g.closed)
		g.closed = nil
	}
}

func (g *gate) wait(ctx context.Context) {
	g.mu.Lock()
	closed := g.closed
	g.mu.Unlock()
	if closed == nil {
		return
	}
	select {
	case <-closed:
	case <-ctx.Done():
	}
}

// cluster is an API server and a kubelet, with a ScaledObject default/llm whose
// Deployment has two pods on the node, and a pod of somebody else.
type cluster struct {
	gate
	podresourcesv1.UnimplementedPodResourcesListerServer
	gpus []string
	// ready is when the pods became ready; zero: nothing says.
	ready time.Time
	// engine is the port of an inference engine in each pod; "": they have none.
	engine     string
	kubeconfig string
}

func (c *cluster) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.wait(r.Context())
	w.Header().Set("Content-Type", "application/json")
	query := r.URL.Query()
	switch {
	case r.URL.Path == "/apis/keda.sh/v1alpha1/namespaces/default/scaledobjects/llm":
		_, _ = w.Write([]byte(scaledObject))
	case r.URL.Path == "/apis/keda.sh/v1alpha1/scaledobjects" && query.Get("watch") == "":
		_, _ = fmt.Fprintf(w, `{"kind":"ScaledObjectList","apiVersion":"keda.sh/v1alpha1","metadata":{"resourceVersion":"1"},"items":[%s]}`, scaledObject)
	case r.URL.Path == "/apis/apps/v1/namespaces/default/deployments/llm/scale":
		_, _ = w.Write([]byte(`{"spec":{"replicas":2},"status":{"replicas":2,"selector":"app=llm"}}`))
	case query.Get("watch") != "" && query.Get("sendInitialEvents") == "":
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	case r.URL.Path == "/api/v1/pods" && query.Get("fieldSelector") == "spec.nodeName=node-a" && query.Get("watch") == "":
		c.listPods(w, "llm-0", "llm-1", "other-0")
	case r.URL.Path == "/api/v1/namespaces/default/pods" && query.Get("labelSelector") == "app=llm":
		c.listPods(w, "llm-0", "llm-1")
	default:
		w.WriteHeader(http.StatusBadRequest)
		_ = json.NewEncoder(w).Encode(map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "BadRequest", "code": 400})
	}
}

// scaledObject is default/llm.
const scaledObject = `{"apiVersion":"keda.sh/v1alpha1","kind":"ScaledObject","metadata":{"namespace":"default","name":"llm","uid":"so","resourceVersion":"1"},
	"spec":{"scaleTargetRef":{"name":"llm"},"triggers":[{"type":"external","metadata":{}}]},
	"status":{"scaleTargetGVKR":{"group":"apps","version":"v1","kind":"Deployment","resource":"deployments"}}}`

func (c *cluster) listPods(w io.Writer, names ...string) {
	changed := ""
	if !c.ready.IsZero() {
		changed = fmt.Sprintf(`,"lastTransitionTime":%q`, c.ready.UTC().Format(time.RFC3339))
	}
	containers := "[]"
	if c.engine != "" {
		containers = fmt.Sprintf(`[{"name":"engine","ports":[{"containerPort":%s}]}]`, c.engine)
	}
	var pods []string
	for _, name := range names {
		pods = append(pods, fmt.Sprintf(`{"spec":{"nodeName":"node-a","containers":%s},"metadata":{"namespace":"default","name":%q,"uid":%q,"labels":{"app":%q,"pod-template-hash":"5d8f"},
			"ownerReferences":[{"apiVersion":"apps/v1","kind":"ReplicaSet","name":"%s-5d8f","uid":"rs","controller":true}]},
			"status":{"phase":"Running","podIP":"127.0.0.1","startTime":"2026-03-01T12:00:00Z","conditions":[{"type":"Ready","status":"True"%s}]}}`,
			containers, name, name, strings.TrimRight(name, "-01"), strings.TrimRight(name, "-01"), changed))
	}
	_, _ = fmt.Fprintf(w, `{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[%s]}`, strings.Join(pods, ","))
}

func (c *cluster) List(ctx context.Context, _ *podresourcesv1.ListPodResourcesRequest) (*podresourcesv1.ListPodResourcesResponse, error) {
	c.wait(ctx)
	answer := &podresourcesv1.ListPodResourcesResponse{}
	for i, name := range []string{"llm-0", "llm-1"} {
		answer.PodResources = append(answer.PodResources, &podresourcesv1.PodResources{
			Namespace: "default", Name: name, Containers: []*podresourcesv1.ContainerResources{{
				Name: "engine", Devices: []*podresourcesv1.ContainerDevices{{ResourceName: "nvidia.com/gpu", DeviceIds: c.gpus[i : i+1]}},
			}},
		})
	}
	return answer, nil
}

// startInCluster starts a node of two GPUs, at 60 and 80 %, that default/llm holds, with
// the reader of the kubelet. Flags are the scaler's.
func startInCluster(t *testing.T, flags ...string) (*node, *cluster) {
	t.Helper()
	c := &cluster{}
	return c.startNode(t, flags...), c
}

// startNode is startInCluster with a cluster that is prepared.
func (c *cluster) startNode(t *testing.T, flags ...string) *node {
	t.Helper()
	recording, err := fixture.Load("../../testdata/two-60-80.csv")
	require.NoError(t, err)
	for _, d := range recording.Samples[0].Devices {
		c.gpus = append(c.gpus, d.ID)
	}
	server := httptest.NewServer(c)
	t.Cleanup(server.Close) // after the scaler, which watches, has ended
	t.Cleanup(c.open)
	c.kubeconfig = kubeconfig(t, server.URL)
	n := startNode(t, "two-60-80.csv", append([]string{"--kubeconfig", c.kubeconfig}, flags...)...)
	serveKubelet(t, c, n.dir+"/kubelet.sock")
	start(t, nil, bin+"/scaler", "podresources", "--socket", n.socket, "--kubelet-socket", n.dir+"/kubelet.sock", "--interval=1s")
	return n
}

// TestNobodyWaitsForTheCluster: with API server and kubelet hanging, which is
// worse than down, every call is answered at once: by what was known, then with
// what is missing; and with the number again when they are back.
func TestNobodyWaitsForTheCluster(t *testing.T) {
	n, c := startInCluster(t, "--stale-after=2s", "--attribution-stale-after=6s")
	ref := n.ref(map[string]string{"targetValue": "75", "window": "0s"})
	ask := func() (float64, error) {
		began := time.Now()
		_, err := n.GetMetricSpec(t.Context(), ref)
		require.NoError(t, err)
		_, activeErr := n.IsActive(t.Context(), ref)
		r, err := n.GetMetrics(t.Context(), &pb.GetMetricsRequest{ScaledObjectRef: ref})
		require.Less(t, time.Since(began), 500*time.Millisecond, "a call waits")
		if err == nil {
			err = activeErr
		}
		if err != nil {
			return 0, err
		}
		return r.GetMetricValues()[0].GetMetricValueFloat(), nil
	}
	known := func() error {
		v, err := ask()
		if err == nil && v != 140 {
			err = fmt.Errorf("%v; want the sum of both pods' GPUs", v)
		}
		return err
	}
	n.eventually(10*time.Second, known)

	c.close()
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		require.NoError(t, known(), "what was known is good for a while")
	}
	missing := regexp.MustCompile("nothing heard from (the kubelet|the API server) for .*, more than 6s")
	n.eventually(10*time.Second, func() error {
		_, err := ask()
		if status.Code(err) != codes.Unavailable || !missing.MatchString(err.Error()) {
			return fmt.Errorf("got %w", err)
		}
		return nil
	})
	v, err := n.value(map[string]string{"scope": "node", "window": "0s"})
	require.NoError(t, err)
	assert.InDelta(t, 80, v, 0, "the node's own GPUs are known all the same")

	c.open()
	n.eventually(20*time.Second, known)
}

func serveKubelet(t *testing.T, c *cluster, socket string) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	s := grpc.NewServer()
	podresourcesv1.RegisterPodResourcesListerServer(s, c)
	served := make(chan struct{})
	go func() { defer close(served); _ = s.Serve(l) }()
	t.Cleanup(func() { s.Stop(); <-served })
}
