package fleet

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/types"
)

// api is an API server with the nodes' EndpointSlices, and a ScaledObject, a
// Deployment and pods for each workload.
type api struct {
	nodes  int
	slices []byte
	pods   [][]byte // by workload, as the API server has them on the wire
}

func startAPI(b *testing.B, nodes int) (kubeconfig string) {
	b.Helper()
	a := &api{nodes: nodes}
	a.makeSlices(b)
	a.makePods(b)
	server := httptest.NewServer(a)
	b.Cleanup(server.CloseClientConnections)
	b.Cleanup(server.Close)
	kubeconfig = filepath.Join(b.TempDir(), "kubeconfig")
	must(b, os.WriteFile(kubeconfig, fmt.Appendf(nil, `{"apiVersion":"v1","kind":"Config","current-context":"c",
"clusters":[{"name":"c","cluster":{"server":%q}}],"contexts":[{"name":"c","context":{"cluster":"c"}}]}`, server.URL), 0o600))
	return kubeconfig
}

func (a *api) makeSlices(b *testing.B) {
	var endpoints []map[string]any
	for i := range a.nodes {
		endpoints = append(endpoints, map[string]any{
			"addresses": []string{address(i)}, "nodeName": nodeName(i), "targetRef": map[string]any{"kind": "Pod", "uid": fmt.Sprint("scaler-", i)},
		})
	}
	var slices []map[string]any
	for i := 0; len(endpoints) > 0; i++ { // of 100 each, as the controller makes them
		n := min(100, len(endpoints))
		slices = append(slices, map[string]any{"metadata": map[string]any{"name": fmt.Sprint("s-", i), "namespace": "gpuscaler"}, "addressType": "IPv4", "endpoints": endpoints[:n]})
		endpoints = endpoints[n:]
	}
	var err error
	a.slices, err = json.Marshal(map[string]any{"kind": "EndpointSliceList", "apiVersion": "discovery.k8s.io/v1", "metadata": map[string]any{"resourceVersion": "1"}, "items": slices})
	must(b, err)
}

func (a *api) makePods(b *testing.B) {
	lists := make([]corev1.PodList, workloads(a.nodes))
	started := metav1.NewTime(time.Now().Add(-time.Hour))
	for i := range a.nodes {
		for g := range gpus {
			w := workloadOf(i, g, a.nodes)
			lists[w].Items = append(lists[w].Items, corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{
					Namespace: "bench", Name: podName(i, g), UID: types.UID(podName(i, g)), CreationTimestamp: started,
					Labels: map[string]string{"app": fmt.Sprintf("w-%d", w), "pod-template-hash": "5d8f6b7c9"},
				},
				Spec: corev1.PodSpec{NodeName: nodeName(i), Containers: []corev1.Container{{
					Name: "engine", Image: "registry.example.com/engine:v1", Command: []string{"serve", "--model", strings.Repeat("m", 200)},
					Env: []corev1.EnvVar{{Name: "SOME", Value: strings.Repeat("v", 500)}},
				}}},
				Status: corev1.PodStatus{Phase: corev1.PodRunning, StartTime: &started, Conditions: []corev1.PodCondition{
					{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: started},
				}},
			})
		}
	}
	scheme := runtime.NewScheme()
	must(b, corev1.AddToScheme(scheme))
	wire := protobuf.NewSerializer(scheme, scheme)
	for i := range lists {
		lists[i].TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}
		var text bytes.Buffer
		must(b, wire.Encode(&lists[i], &text))
		a.pods = append(a.pods, text.Bytes())
	}
}

func (a *api) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	query, path := r.URL.Query(), r.URL.Path
	workload := func() string { // of .../w-12 or .../w-12/scale
		_, rest, _ := strings.Cut(path, "/w-")
		name, _, _ := strings.Cut(rest, "/")
		return name
	}
	switch {
	case strings.HasSuffix(path, "/endpointslices") && query.Get("watch") == "":
		_, _ = w.Write(a.slices)
	case strings.HasSuffix(path, "/endpointslices") && query.Get("sendInitialEvents") == "":
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	case strings.HasSuffix(path, "/v1alpha1/scaledobjects") && query.Get("watch") == "":
		objects := make([]string, workloads(a.nodes))
		for i := range objects {
			objects[i] = scaledObject(strconv.Itoa(i))
		}
		_, _ = fmt.Fprintf(w, `{"kind":"ScaledObjectList","apiVersion":"keda.sh/v1alpha1","metadata":{"resourceVersion":"1"},"items":[%s]}`, strings.Join(objects, ","))
	case strings.HasSuffix(path, "/v1alpha1/scaledobjects") && query.Get("sendInitialEvents") == "":
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	case strings.Contains(path, "/scaledobjects/w-"):
		_, _ = io.WriteString(w, scaledObject(workload()))
	case strings.HasSuffix(path, "/scale"):
		n := a.nodes * gpus / workloads(a.nodes)
		_, _ = fmt.Fprintf(w, `{"spec":{"replicas":%d},"status":{"replicas":%d,"selector":"app=w-%s"}}`, n, n, workload())
	case strings.HasSuffix(path, "/namespaces/bench/pods"):
		i, err := strconv.Atoi(strings.TrimPrefix(query.Get("labelSelector"), "app=w-"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", runtime.ContentTypeProtobuf)
		_, _ = w.Write(a.pods[i])
	default:
		w.WriteHeader(http.StatusBadRequest)
		_ = json.NewEncoder(w).Encode(map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "BadRequest", "code": 400})
	}
}

func scaledObject(workload string) string {
	return fmt.Sprintf(`{"kind":"ScaledObject","apiVersion":"keda.sh/v1alpha1","metadata":{"namespace":"bench","name":"w-%s"},
		"spec":{"scaleTargetRef":{"name":"w-%s"},"triggers":[{"type":"external","metadata":{"targetValue":"50"}}]},
		"status":{"scaleTargetGVKR":{"group":"apps","version":"v1","kind":"Deployment","resource":"deployments"}}}`, workload, workload)
}
