package externalscaler

import (
	"context"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	pb "github.com/kedacore/keda/v2/pkg/scalers/externalscaler"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"gpuscaler/scaler/evaluate"
	"gpuscaler/scaler/trigger"
)

const minute = time.Minute // stale-after for tests in which nothing goes stale

func TestGetMetricSpec(t *testing.T) {
	r := serve(t, minute)
	for _, c := range []struct {
		md      metadata
		name    string
		integer int64
		float   float64
	}{
		{nil, "keda_gpu_metric", 80, 80},
		{metadata{"targetGpuUtilization": "80"}, "keda_gpu_metric", 80, 80},
		{metadata{"profile": "vllm-inference"}, "keda_gpu_vllm_inference", 80, 80},
		{metadata{"profile": "triton-inference"}, "keda_gpu_triton_inference", 75, 75},
		{metadata{"profile": "distributed-training"}, "keda_gpu_distributed_training", 50000, 50000},
		{metadata{"targetValue": "62.5"}, "keda_gpu_metric", 63, 62.5},
		{metadata{"metricType": "x_ratio", "targetValue": "0.25"}, "keda_gpu_metric", 1, 0.25}, // an integer of 0 would be divided by
		{metadata{"metricType": "x_ratio", "targetValue": "0.001"}, "keda_gpu_metric", 1, 0.001},
		{metadata{"metricType": "x_ratio", "targetValue": "1e15"}, "keda_gpu_metric", 1e15, 1e15},
		{metadata{"metricName": "mine", "metricType": "power_draw", "targetValue": "300"}, "mine", 300, 300},
		{metadata{"gpuIndex": "99", "metricType": "x_nobody_has_it", "scope": "workload"}, "keda_gpu_metric", 80, 80},
	} {
		got, err := r.client.GetMetricSpec(t.Context(), ref(c.md))
		require.NoError(t, err, "with no data at all, %v", c.md)
		require.Len(t, got.GetMetricSpecs(), 1)
		spec := got.GetMetricSpecs()[0]
		assert.Equal(t, c.name, spec.GetMetricName(), c.md)
		assert.Equal(t, c.integer, spec.GetTargetSize(), c.md)
		assert.Equal(t, c.float, spec.GetTargetSizeFloat(), c.md)
	}
}

func TestGetMetrics(t *testing.T) {
	r := serve(t, minute)
	r.say(t, values{"gpu_utilization": 60, "temperature": 55.55549, "power_draw": 0.0004, "memory_used_mib": 1e9, "x_tiny": 1e-12, "x_large": 1e15},
		values{"gpu_utilization": 80, "temperature": 40, "power_draw": 0, "memory_used_mib": 1e9, "x_tiny": 0, "x_large": 1e15})
	for _, c := range []struct {
		md      metadata
		integer int64
		float   float64
	}{
		{nil, 80, 80},
		{metadata{"aggregation": "avg"}, 70, 70},
		{metadata{"gpuIndex": "0"}, 60, 60},
		{metadata{"metricType": "temperature"}, 56, 55.555}, // three decimals survive
		{metadata{"metricType": "temperature", "aggregation": "avg"}, 48, 47.778},
		{metadata{"metricType": "power_draw"}, 0, 0.001}, // a little is not nothing
		{metadata{"metricType": "power_draw", "gpuIndex": "1"}, 0, 0},
		{metadata{"metricType": "x_tiny"}, 0, 0.001},
		{metadata{"metricType": "memory_used_mib", "aggregation": "sum"}, 2e9, 2e9},
		{metadata{"metricType": "x_large", "aggregation": "sum"}, 2e15, 2e15},
	} {
		got, err := r.get(c.md)
		require.NoError(t, err, c.md)
		assert.Equal(t, "keda_gpu_metric", got.GetMetricName())
		assert.Equal(t, c.integer, got.GetMetricValue(), c.md)
		assert.Equal(t, c.float, got.GetMetricValueFloat(), c.md)
	}
	got, err := r.get(metadata{"metricName": "mine"})
	require.NoError(t, err)
	assert.Equal(t, "mine", got.GetMetricName())
}

func TestThousandths(t *testing.T) {
	for v, want := range map[float64]float64{0: 0, 1e-300: .001, .0009: .001, .0014: .001, .0015: .002, 99.99951: 100, 2.56e17: 2.56e17,
		math.MaxFloat64 / 2000: math.MaxFloat64 / 2000} {
		assert.Equal(t, want, thousandths(v), v)
	}
}

func TestIsActive(t *testing.T) {
	r := serve(t, minute)
	r.utilization(t, 10, 5)
	for _, c := range []struct {
		md   metadata
		want bool
	}{
		{nil, true},
		{metadata{"activationThreshold": "10"}, false},
		{metadata{"activationThreshold": "9.99"}, true},
		{metadata{"profile": "triton-inference"}, false},
		{metadata{"profile": "training"}, true},
		{metadata{"gpuIndex": "1", "activationThreshold": "6"}, false},
	} {
		got, err := r.client.IsActive(t.Context(), ref(c.md))
		require.NoError(t, err, c.md)
		assert.Equal(t, c.want, got.GetResult(), c.md)
	}
}

// call makes every call that a set of metadata can fail in.
func (r *rig) call(md metadata) map[string]error {
	ctx := context.Background()
	errs := map[string]error{}
	_, errs["GetMetrics"] = r.get(md)
	_, errs["IsActive"] = r.client.IsActive(ctx, ref(md))
	_, errs["GetMetricSpec"] = r.client.GetMetricSpec(ctx, ref(md))
	return errs
}

func (r *rig) streams(md metadata) map[string]error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	errs := map[string]error{}
	active, err := r.client.StreamIsActive(ctx, ref(md))
	if err == nil {
		_, err = active.Recv()
	}
	errs["StreamIsActive"] = err
	specs, err := r.client.StreamMetricSpec(ctx, ref(md))
	if err == nil {
		_, err = specs.Recv()
	}
	errs["StreamMetricSpec"] = err
	return errs
}

func TestBadMetadata(t *testing.T) {
	r := serve(t, minute)
	r.utilization(t, 75)
	for _, c := range []struct {
		md   metadata
		want string
	}{
		{metadata{"targetValue": "80%"}, `targetValue: "80%" is not a number; allowed is a finite number above 0`},
		{metadata{"targetValue": "NaN"}, `targetValue: "NaN" is not a number; allowed is a finite number above 0`},
		{metadata{"targetValue": "Inf"}, `targetValue: "Inf" is not a number; allowed is a finite number above 0`},
		{metadata{"targetValue": "0.8"}, `targetValue: "0.8" is 1 % or less, and gpu_utilization is in percent; did you mean "80"? allowed is above 1 and at most 100, or more with aggregation sum`},
		{metadata{"targetValue": "1e400"}, `targetValue: "1e400" is too large; allowed is a finite number above 0`},
		{metadata{"targetValue": "0"}, `targetValue: "0" is not above 0; allowed is a finite number above 0`},
		{metadata{"targetValue": "-1"}, `targetValue: "-1" is not above 0; allowed is a finite number above 0`},
		{metadata{"targetValue": ""}, `targetValue: "" is empty; allowed is a finite number above 0`},
		{metadata{"activationThreshold": "-1"}, `activationThreshold: "-1" is below 0; allowed is a finite number, 0 or above`},
		{metadata{"profile": "vlm-inference"}, `profile: "vlm-inference" is unknown; did you mean "vllm-inference"? allowed are batch, `},
		{metadata{"metricType": "gpu_utilisation"}, `metricType: "gpu_utilisation" is unknown; did you mean "gpu_utilization"? allowed are gpu_utilization, `},
		{metadata{"aggregation": "mean"}, `aggregation: "mean" is unknown; allowed are max, min, avg, sum, p50 to p99`},
		{metadata{"tragetValue": "80"}, `tragetValue: unknown key; did you mean "targetValue"? allowed are profile, metricType, `},
		{metadata{"pollIntervalSeconds": "0"}, `pollIntervalSeconds: "0" is out of range; allowed is an integer from 1 to 3600`},
		{metadata{"targetGpuUtilization": "80", "targetMemoryUtilization": "80"}, `targetGpuUtilization: "80" contradicts targetMemoryUtilization "80"; only one of the two is allowed`},
		{metadata{"targetValue": strings.Repeat("9", 1<<20)}, `metadata: 1048587 bytes; at most 65536 are allowed`},
		{metadata{strings.Repeat("k", 1<<20): ""}, `metadata: 1048576 bytes; at most 65536 are allowed`},
	} {
		errs := r.call(c.md)
		for call, err := range r.streams(c.md) {
			errs[call] = err
		}
		require.Len(t, errs, 5)
		for call, err := range errs {
			assert.Equal(t, codes.InvalidArgument, status.Code(err), "%s: %s", call, c.want)
			assert.True(t, strings.HasPrefix(status.Convert(err).Message(), c.want), "%s: %v", call, err)
			assert.Less(t, len(status.Convert(err).Message()), 2000, call)
		}
	}
}

// told is who is told of refusals.
type told chan string

func (c told) Refused(namespace, name, message string) {
	c <- namespace + "/" + name + ": " + message
}

func (c told) Notify(namespace, name, reason, message string) {
	c <- namespace + "/" + name + ": " + reason + ": " + message
}

// Users are told of what KEDA keeps from them, and of nothing else.
func TestRefusals(t *testing.T) {
	users := make(told, 10)
	s := NewService(newNode(minute).fleet(), newShelf(), minute, nopLog)
	s.TellRefusals(users)
	bad := ref(metadata{"targetValue": "80%"})
	_, err := s.GetMetricSpec(t.Context(), bad)
	require.Equal(t, codes.InvalidArgument, status.Code(err))
	assert.Equal(t, `default/llm: targetValue: "80%" is not a number; allowed is a finite number above 0`, <-users)
	_, err = s.GetMetrics(t.Context(), &pb.GetMetricsRequest{ScaledObjectRef: bad})
	require.Equal(t, codes.InvalidArgument, status.Code(err))
	_, err = s.IsActive(t.Context(), bad)
	require.Equal(t, codes.InvalidArgument, status.Code(err))
	_, err = s.GetMetricSpec(t.Context(), ref(nil))
	require.NoError(t, err)
	assert.Empty(t, users)

	// Those who may read events may not read Secrets.
	for _, secret := range []metadata{
		{"targetValueFromEnv": "hunter2"}, {"containerFromEnv": "hunter2", "scope": "node"}, {"profileFromEnv": "hunter2"}, {"podSelectorFromEnv": "hunter2", "scope": "node"},
		{"targetGpuUtilization": "1", "metricTypeFromEnv": "hunter2"}, {"hunter": "hunter2"},
	} {
		_, err = s.GetMetricSpec(t.Context(), ref(secret))
		require.Equal(t, codes.InvalidArgument, status.Code(err), secret)
		assert.NotContains(t, <-users, "hunter2")
	}
}

func TestMissingRef(t *testing.T) {
	r := serve(t, minute)
	_, err := r.client.GetMetrics(t.Context(), &pb.GetMetricsRequest{MetricName: "s0-x"})
	assert.Equal(t, codes.InvalidArgument, status.Code(err))
	assert.Equal(t, "scaledObjectRef: missing; GetMetrics needs the ScaledObject's name, namespace and metadata", status.Convert(err).Message())
	_, err = r.client.IsActive(t.Context(), &pb.ScaledObjectRef{}) // as far as the wire can tell, {}
	assert.Equal(t, codes.Unavailable, status.Code(err))
}

// A request beyond the limit of a message is refused before it is read.
func TestTooLargeARequest(t *testing.T) {
	r := serve(t, minute)
	_, err := r.client.GetMetricSpec(t.Context(), ref(metadata{"a": strings.Repeat("x", 3<<20)}))
	assert.Equal(t, codes.ResourceExhausted, status.Code(err))
	_, err = r.client.GetMetricSpec(t.Context(), ref(nil))
	assert.NoError(t, err)
}

func TestNoData(t *testing.T) {
	r := serve(t, minute)
	check := func(md metadata, code codes.Code, message string) {
		t.Helper()
		errs := r.call(md)
		assert.NoError(t, errs["GetMetricSpec"], message)
		for _, call := range []string{"GetMetrics", "IsActive"} {
			assert.Equal(t, code, status.Code(errs[call]), message)
			assert.Equal(t, message, status.Convert(errs[call]).Message())
		}
	}
	check(nil, codes.Unavailable, "node node-1: nothing heard yet from any reader")
	active, err := r.client.IsActive(t.Context(), ref(metadata{"profile": "training"}))
	require.NoError(t, err)
	assert.True(t, active.GetResult(), "what never scales to zero is active whatever is known")

	r.utilization(t, 75)
	check(metadata{"gpuIndex": "99"}, codes.InvalidArgument, "gpuIndex: 99 is beyond the GPUs of node node-1; it has 1 GPU (gpuIndex 0)")
	check(metadata{"metricType": "sm_activity"}, codes.FailedPrecondition, "metricType: no GPU in scope on node node-1 has sm_activity: NVIDIA H200; they have gpu_utilization")
	check(metadata{"gpuModel": "A100"}, codes.FailedPrecondition, `gpuModel: no GPU in scope on node node-1 has "A100" in its name; there are NVIDIA H200`)
	check(metadata{"scope": "workload"}, codes.FailedPrecondition,
		"scope: workload needs the Kubernetes API and --workloads=auto, which this scaler does not have; use scope: node")
}

func TestStale(t *testing.T) {
	t.Parallel()
	r := serve(t, time.Second)
	r.utilization(t, 75)
	_, err := r.get(nil)
	require.NoError(t, err)
	eventually(t, "it is stale", func() bool { _, err = r.get(nil); return err != nil })
	assert.Equal(t, codes.Unavailable, status.Code(err))
	assert.Regexp(t, `^node node-1: GPU 0 \(NVIDIA H200\): nothing heard for [\d.]+s, more than 1s$`, status.Convert(err).Message())
	r.utilization(t, 76)
	_, err = r.get(nil)
	assert.NoError(t, err, "fresh at once")
}

// What is neither a trigger's nor a decision's fault is ours.
func TestCodes(t *testing.T) {
	s := NewService(newNode(minute).fleet(), newShelf(), minute, nopLog)
	for _, c := range []struct {
		err  error
		code codes.Code
	}{
		{&trigger.Error{Key: "k", Reason: "r"}, codes.InvalidArgument},
		{&evaluate.Error{Kind: evaluate.Invalid}, codes.InvalidArgument},
		{&evaluate.Error{Kind: evaluate.Unavailable}, codes.Unavailable},
		{&evaluate.Error{Kind: evaluate.Impossible}, codes.FailedPrecondition},
		{errors.New("anything else"), codes.Internal},
	} {
		assert.Equal(t, c.code, status.Code(s.refuse(nil, c.err)), c.err)
	}
}

// Authors are notified of what is allowed and hardly meant, in every scope.
func TestNotices(t *testing.T) {
	users := make(told, 10)
	n := newNode(minute)
	n.utilization(t, 85)
	s := NewService(n.fleet(), newShelf(), minute, nopLog)
	s.TellRefusals(users)
	get := func(md metadata) {
		_, err := s.GetMetrics(t.Context(), &pb.GetMetricsRequest{ScaledObjectRef: ref(md)})
		require.NoError(t, err)
	}
	get(metadata{"activationThreshold": "90"})
	assert.Contains(t, <-users, "default/llm: SuspiciousTarget: activationThreshold")
	get(metadata{"targetValue": "95"})
	assert.Contains(t, <-users, "default/llm: SuspiciousTarget: The target 95 of gpu_utilization can never ask for more replicas")
	get(metadata{})
	assert.Empty(t, users)
}
