package resourceslices

import (
	"context"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"k8s.io/client-go/rest"

	"gpuscaler/scaler/fleet"
	"gpuscaler/shared/snapshot"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	v1 = `{"kind":"ResourceSliceList","items":[
 {"spec":{"driver":"gpu.nvidia.com","nodeName":"node-1","pool":{"name":"node-1","generation":1,"resourceSliceCount":1},"devices":[
  {"name":"gpu-0","attributes":{"uuid":{"string":"GPU-a"},"index":{"int":0},"type":{"string":"gpu"}}},
  {"name":"gpu-1-mig-1g","attributes":{"type":{"string":"mig"}}}]}},
 {"spec":{"driver":"nic.example.com","pool":{"name":"node-1"},"devices":[{"name":"eth0","attributes":{"example.com/uuid":{"string":"NIC-1"}}}]}}]}`
	v1beta1 = `{"items":[{"spec":{"driver":"gpu.nvidia.com","pool":{"name":"node-1"},"devices":[
  {"name":"gpu-0","basic":{"attributes":{"uuid":{"string":"GPU-a"}}}}]}}]}`
)

// forbidden stands for an answer that is refused.
const forbidden = "forbidden"

// apiServer answers from a table of paths.
type apiServer struct {
	mu      sync.Mutex
	answers map[string]string
	asked   int
}

func (s *apiServer) RoundTrip(r *http.Request) (*http.Response, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	w := httptest.NewRecorder()
	w.Header().Set("Content-Type", "application/json")
	switch answer, ok := s.answers[r.URL.RequestURI()]; {
	case ok && answer == forbidden:
		w.WriteHeader(http.StatusForbidden)
	case ok:
		_, _ = w.WriteString(answer)
	default:
		w.WriteHeader(http.StatusNotFound)
	}
	response := w.Result()
	response.Request = r
	return response, nil
}

func (s *apiServer) requests() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.asked
}

// run has a node with one GPU, and a pod with a claim for gpu-0.
func run(t *testing.T, answers map[string]string, story func(node *fleet.Local, s *apiServer)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		node := fleet.NewLocal("node-1", 10*time.Second, slog.New(slog.DiscardHandler), time.Now())
		require.NoError(t, node.Connect().Apply(&snapshot.Sample{Writer: "nvmlsidecar", Devices: []snapshot.Device{{ID: "GPU-a", Vendor: "nvidia"}}}, time.Now()))
		node.SetPods([]fleet.Pod{{Namespace: "ns", Name: "p"}}, time.Now())
		s := &apiServer{answers: answers}
		f, err := New(&rest.Config{Host: "http://kubernetes", Transport: s}, "node-1", node, slog.New(slog.DiscardHandler))
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		defer running.Wait()
		defer cancel()
		running.Go(func() { assert.NoError(t, f.Run(ctx)) })
		story(node, s)
	})
}

func claim(node *fleet.Local, device string) {
	_ = node.Connect().Apply(&snapshot.Sample{Writer: "podresources", Allocation: &snapshot.Allocation{Containers: []snapshot.Container{{
		Namespace: "ns", Pod: "p", Claimed: []snapshot.ClaimedDevice{{Driver: "gpu.nvidia.com", Pool: "node-1", Device: device}},
	}}}}, time.Now())
}

func held(node *fleet.Local) string {
	shares := node.Node().Pods[0].Shares
	if len(shares) == 0 {
		return ""
	}
	return shares[0].Device
}

func TestVersions(t *testing.T) {
	for path, answer := range map[string]string{
		"/apis/resource.k8s.io/v1/resourceslices?fieldSelector=spec.nodeName%3Dnode-1":      v1,
		"/apis/resource.k8s.io/v1beta2/resourceslices?fieldSelector=spec.nodeName%3Dnode-1": v1,
		"/apis/resource.k8s.io/v1beta1/resourceslices?fieldSelector=spec.nodeName%3Dnode-1": v1beta1,
	} {
		run(t, map[string]string{path: answer}, func(node *fleet.Local, _ *apiServer) {
			claim(node, "gpu-0")
			assert.Empty(t, held(node), path)
			time.Sleep(2 * look)
			assert.Equal(t, "GPU-a", held(node), path)
		})
	}
}

// Nobody is asked when there is no claim, and not often when all are known, or
// one cannot be.
func TestAsksOnlyForClaims(t *testing.T) {
	run(t, map[string]string{"/apis/resource.k8s.io/v1/resourceslices?fieldSelector=spec.nodeName%3Dnode-1": v1}, func(node *fleet.Local, s *apiServer) {
		time.Sleep(time.Hour)
		assert.Zero(t, s.requests())
		claim(node, "gpu-0")
		time.Sleep(time.Hour)
		before := s.requests()
		assert.InDelta(t, 60, before, 2)
		claim(node, "gpu-1-mig-1g") // has no UUID
		time.Sleep(10 * again)
		assert.InDelta(t, 10, s.requests()-before, 2)
	})
}

// Without the API there is no answer, and what the pod holds stays unknown.
func TestNoAPI(t *testing.T) {
	run(t, nil, func(node *fleet.Local, _ *apiServer) {
		claim(node, "gpu-0")
		time.Sleep(time.Minute)
		assert.Empty(t, held(node))
		assert.Equal(t, []string{"gpu.nvidia.com/node-1/gpu-0"}, node.Node().Pods[0].Unknown)
	})
}

const (
	slices1 = "/apis/resource.k8s.io/v1/resourceslices?fieldSelector=spec.nodeName%3Dnode-1"
	claim1  = "/apis/resource.k8s.io/v1/namespaces/ns/resourceclaims/p-gpu"
)

// claimBy is claim with the claim's name.
func claimBy(node *fleet.Local, names ...string) {
	a := &snapshot.Allocation{}
	for _, name := range names {
		a.Containers = append(a.Containers, snapshot.Container{
			Namespace: "ns", Pod: "p", Claimed: []snapshot.ClaimedDevice{{Driver: "gpu.nvidia.com", Pool: "node-1", Device: "gpu-0", Claim: name}},
		})
	}
	_ = node.Connect().Apply(&snapshot.Sample{Writer: "podresources", Allocation: a}, time.Now())
}

// TestAdminAccess: each claim is read once, and what it has for administrative access is not
// the pod's. Nothing is guessed until it is read.
func TestAdminAccess(t *testing.T) {
	of := func(admin string) string {
		return `{"status":{"allocation":{"devices":{"results":[{"request":"gpu","driver":"gpu.nvidia.com","pool":"node-1","device":"gpu-0"` + admin + `}]}}}}`
	}
	for admin, want := range map[string]string{"": "GPU-a", `,"adminAccess":false`: "GPU-a", `,"adminAccess":true`: ""} {
		run(t, map[string]string{slices1: v1, claim1: of(admin)}, func(node *fleet.Local, s *apiServer) {
			claimBy(node, "p-gpu")
			assert.Empty(t, held(node))
			assert.Equal(t, []string{"gpu.nvidia.com/node-1/gpu-0"}, node.Node().Pods[0].Unknown)
			time.Sleep(2 * look)
			assert.Equal(t, want, held(node), admin)
			assert.Empty(t, node.Node().Pods[0].Unknown)
			assert.False(t, node.Node().ClaimsUnknown)
			before := s.requests()
			assert.Equal(t, 2, before)
			time.Sleep(time.Hour)
			assert.InDelta(t, 60, s.requests()-before, 2, "slices alone")
			claimBy(node, "p-gpu", "next") // which does not exist
			time.Sleep(time.Minute)
			assert.Equal(t, want, held(node), admin)
			assert.True(t, node.Node().ClaimsUnknown)
		})
	}
}

// TestClaimsForbidden: without the right to read claims all devices are allocated, as before
// claims were read.
func TestClaimsForbidden(t *testing.T) {
	run(t, map[string]string{slices1: v1, claim1: forbidden}, func(node *fleet.Local, s *apiServer) {
		claimBy(node, "p-gpu")
		for range 3 {
			time.Sleep(2 * refresh)
			assert.Equal(t, "GPU-a", held(node))
		}
		s.mu.Lock()
		s.answers[claim1] = `{"status":{"allocation":{"devices":{"results":[{"driver":"gpu.nvidia.com","pool":"node-1","device":"gpu-0","adminAccess":true}]}}}}`
		s.mu.Unlock()
		time.Sleep(2 * refresh)
		assert.Empty(t, held(node), "it may be read now")
	})
}
