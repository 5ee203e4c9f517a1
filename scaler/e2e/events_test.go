package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	pb "github.com/kedacore/keda/v2/pkg/scalers/externalscaler"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

var badMetadata = map[string]string{"targetVallue": "80"}

// api is an API server with one ScaledObject, default/llm.
type api struct {
	mu       sync.Mutex
	requests []string
	event    map[string]any // the last one
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.requests = append(a.requests, r.Method+" "+r.URL.Path+" "+r.UserAgent())
	w.Header().Set("Content-Type", "application/json")
	switch r.Method + " " + r.URL.Path {
	case "GET /apis/keda.sh/v1alpha1/namespaces/default/scaledobjects/llm":
		_, _ = w.Write([]byte(`{"kind":"PartialObjectMetadata","apiVersion":"meta.k8s.io/v1","metadata":{"name":"llm","namespace":"default","uid":"u-1"}}`))
	case "POST /api/v1/namespaces/default/events":
		_ = json.NewDecoder(r.Body).Decode(&a.event)
		_ = json.NewEncoder(w).Encode(a.event)
	default:
		w.WriteHeader(http.StatusNotFound)
		_, _ = w.Write([]byte(`{"kind":"Status","apiVersion":"v1","status":"Failure","reason":"NotFound","code":404}`))
	}
}

func (a *api) seen() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]string(nil), a.requests...)
}

// kubeconfig is a file that names a server.
func kubeconfig(t *testing.T, server string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, os.WriteFile(path, fmt.Appendf(nil, `{apiVersion: v1, kind: Config, current-context: c,
contexts: [{name: c, context: {cluster: c, user: c}}], clusters: [{name: c, cluster: {server: %q}}], users: [{name: c, user: {}}]}`, server), 0o600))
	return path
}

// startWithAPI is a scaler that has an API server, and KEDA's client.
func startWithAPI(t *testing.T, server string) (*process, pb.ExternalScalerClient) {
	t.Helper()
	address := freeAddress(t)
	p := startReplay(t, nil, address, "--kubeconfig", kubeconfig(t, server), "--workloads=off", "--node-name", "node-a")
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return p, pb.NewExternalScalerClient(conn)
}

func TestRefusedMetadataIsAnEvent(t *testing.T) {
	a := &api{}
	server := httptest.NewServer(a)
	defer server.Close()
	p, keda := startWithAPI(t, server.URL)
	refused := &pb.ScaledObjectRef{Namespace: "default", Name: "llm", ScalerMetadata: badMetadata}
	var err error
	for range 20 {
		_, err = keda.GetMetricSpec(t.Context(), refused)
		require.Equal(t, codes.InvalidArgument, status.Code(err))
	}
	waitFor(t, 10*time.Second, func() bool { return len(a.seen()) == 2 })
	assert.Equal(t, []string{
		"GET /apis/keda.sh/v1alpha1/namespaces/default/scaledobjects/llm gpuscaler/e2e",
		"POST /api/v1/namespaces/default/events gpuscaler/e2e",
	}, a.seen())
	assert.Equal(t, status.Convert(err).Message(), a.event["message"], "word for word")
	assert.Equal(t, "Warning InvalidTrigger", fmt.Sprint(a.event["type"], " ", a.event["reason"]))
	assert.Equal(t, map[string]any{"component": "gpuscaler", "host": "node-a"}, a.event["source"])
	assert.Equal(t, map[string]any{"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "namespace": "default", "name": "llm", "uid": "u-1"}, a.event["involvedObject"])
	// What KEDA tells by itself is not told twice, and a ScaledJob's calls are nobody's event.
	_, err = keda.GetMetrics(t.Context(), &pb.GetMetricsRequest{ScaledObjectRef: &pb.ScaledObjectRef{Namespace: "default", Name: "other", ScalerMetadata: badMetadata}})
	require.Equal(t, codes.InvalidArgument, status.Code(err))
	_, err = keda.GetMetricSpec(t.Context(), &pb.ScaledObjectRef{Namespace: "default", Name: "job", ScalerMetadata: badMetadata})
	require.Equal(t, codes.InvalidArgument, status.Code(err))
	waitFor(t, 10*time.Second, func() bool { return len(a.seen()) == 3 })
	assert.Contains(t, a.seen()[2], "scaledobjects/job")
	code, _ := p.stop(t)
	assert.Zero(t, code)
	assert.Len(t, a.seen(), 3)
}

// An API server that accepts and never answers costs KEDA nothing, the end
// neither; nor does one that is not there.
func TestAHangingAPIServer(t *testing.T) {
	hanging, err := net.Listen("tcp", "127.0.0.1:0") // the backlog accepts
	require.NoError(t, err)
	defer hanging.Close()
	for _, server := range []string{"http://" + hanging.Addr().String(), "https://" + hanging.Addr().String(), "http://" + freeAddress(t)} {
		p, keda := startWithAPI(t, server)
		began := time.Now()
		for i := range 500 {
			_, err := keda.GetMetricSpec(t.Context(), &pb.ScaledObjectRef{Namespace: "default", Name: fmt.Sprint("llm-", i), ScalerMetadata: badMetadata})
			require.Equal(t, codes.InvalidArgument, status.Code(err))
			_, err = keda.GetMetrics(t.Context(), &pb.GetMetricsRequest{ScaledObjectRef: &pb.ScaledObjectRef{Namespace: "default", Name: "llm"}})
			require.NoError(t, err)
		}
		assert.Less(t, time.Since(began), 5*time.Second, "a thousand calls")
		waitFor(t, 15*time.Second, func() bool { return strings.Contains(p.log(), "cannot look up ScaledObjects") })
		assert.Equal(t, 1, strings.Count(p.log(), "too many refused triggers at once"))
		assert.Equal(t, 1, strings.Count(p.log(), "cannot look up ScaledObjects"))
		code, took := p.stop(t)
		assert.Zero(t, code)
		assert.Less(t, took, 3*time.Second)
	}
}

// Whoever makes up names gets few lookups out of it.
func TestMadeUpNames(t *testing.T) {
	a := &api{}
	server := httptest.NewServer(a)
	defer server.Close()
	_, keda := startWithAPI(t, server.URL)
	began := time.Now()
	for i := range 3000 {
		_, err := keda.GetMetricSpec(t.Context(), &pb.ScaledObjectRef{Namespace: "default", Name: fmt.Sprint("made-up-", i), ScalerMetadata: badMetadata})
		require.Equal(t, codes.InvalidArgument, status.Code(err))
	}
	assert.LessOrEqual(t, float64(len(a.seen())), 11+time.Since(began).Seconds())
}

func TestKubernetesFlags(t *testing.T) {
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	address := freeAddress(t)
	p := startReplay(t, nil, address)
	assert.Equal(t, 1, strings.Count(p.log(), "no events on ScaledObjects"))
	assert.Contains(t, p.log(), "no Kubernetes API: unable to load in-cluster configuration")
	p.kill()
	p = startReplay(t, nil, address, "--kubernetes=off")
	assert.NotContains(t, p.log(), "events")
	good := kubeconfig(t, "http://127.0.0.1:9")
	for flags, want := range map[string]string{
		"--kubernetes=on":                              `--kubernetes must be one of "auto","off"`,
		"--kubeconfig=/nowhere":                        "--kubeconfig: kubeconfig /nowhere: ",
		"--kubernetes=off --kubeconfig=" + good:        "--kubeconfig: contradicts --kubernetes=off",
		"--kubernetes=auto --kubeconfig=" + os.DevNull: "--kubeconfig: kubeconfig " + os.DevNull + ": ",
	} {
		p := start(t, nil, bin+"/scaler", append([]string{"serve", "--replay", "../../testdata/one-75.csv", "--listen", freeAddress(t), "--http", ""}, strings.Fields(flags)...)...)
		select {
		case <-p.done:
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: it runs", flags)
		}
		assert.NotZero(t, p.cmd.ProcessState.ExitCode(), flags)
		assert.Contains(t, p.log(), want)
	}
}
