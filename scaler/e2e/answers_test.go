package e2e

import (
	"fmt"
	"math"
	"testing"
	"time"

	pb "github.com/kedacore/keda/v2/pkg/scalers/externalscaler"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"gpuscaler/shared/snapshot"
	"gpuscaler/shared/snapshotpb"
)

type metadata = map[string]string

// The cases that users of the published reference know, from the driver's
// library to the wire.
func TestAnswersOfTheReference(t *testing.T) {
	type answer struct {
		metadata metadata
		want     float64
	}
	for fixture, answers := range map[string][]answer{
		"one-75.csv": {
			{metadata{}, 75},
			{metadata{"metricType": "memory_used_percent"}, 75},
			{metadata{"metricType": "memory_utilization"}, 40},
			{metadata{"metricType": "temperature"}, 65},
			{metadata{"metricType": "power_draw"}, 250},
			{metadata{"targetGpuUtilization": "80"}, 75},
		},
		"two-60-80.csv": {
			{metadata{}, 80},
			{metadata{"gpuIndex": "1"}, 80},
			{metadata{"gpuIndex": "0"}, 60},
			{metadata{"aggregation": "avg"}, 70},
			{metadata{"aggregation": "min"}, 60},
			{metadata{"aggregation": "sum"}, 140},
		},
		"hundred.csv": {
			{metadata{"aggregation": "max"}, 100},
			{metadata{"aggregation": "p99"}, 99},
			{metadata{"aggregation": "p95"}, 95},
			{metadata{"aggregation": "p50"}, 50},
		},
	} {
		t.Run(fixture, func(t *testing.T) {
			t.Parallel()
			n := startNode(t, fixture)
			for _, c := range answers {
				got, err := n.value(c.metadata)
				require.NoError(t, err, "%v", c.metadata)
				assert.Equal(t, c.want, got, "%v", c.metadata)
			}
		})
	}
}

func TestProfiles(t *testing.T) {
	t.Parallel()
	n := startNode(t, "one-75.csv")
	for profile, want := range map[string]struct {
		target, value float64
		active        bool
	}{
		"vllm-inference":   {80, 75, true},
		"triton-inference": {75, 75, true},
		"training":         {90, 75, true},
		"batch":            {70, 75, true},
	} {
		ref := n.ref(metadata{"profile": profile})
		spec, err := n.GetMetricSpec(t.Context(), ref)
		require.NoError(t, err)
		assert.Equal(t, want.target, spec.GetMetricSpecs()[0].GetTargetSizeFloat(), profile)
		value, err := n.value(metadata{"profile": profile})
		require.NoError(t, err)
		assert.Equal(t, want.value, value, profile)
		active, err := n.IsActive(t.Context(), ref)
		require.NoError(t, err)
		assert.Equal(t, want.active, active.GetResult(), profile)
	}
	idle, err := n.IsActive(t.Context(), n.ref(metadata{"profile": "triton-inference", "activationThreshold": "75"}))
	require.NoError(t, err)
	assert.False(t, idle.GetResult(), "75 is not above 75")
	training, err := n.IsActive(t.Context(), n.ref(metadata{"profile": "training", "activationThreshold": "99"}))
	require.NoError(t, err)
	assert.True(t, training.GetResult(), "never to zero")
}

func TestRefusals(t *testing.T) {
	t.Parallel()
	n := startNode(t, "one-75.csv")
	refused := func(m metadata, code codes.Code, parts ...string) {
		t.Helper()
		_, err := n.value(m)
		assert.Equal(t, code, status.Code(err), "%v: %v", m, err)
		assert.True(t, contains(err, parts...), "%v lacks %q", err, parts)
	}
	for _, bad := range []string{"NaN", "Inf", "0", "-1", "1e400", "", "80%"} {
		refused(metadata{"targetValue": bad}, codes.InvalidArgument, "targetValue", "allowed is")
	}
	refused(metadata{"gpuIndex": "99"}, codes.InvalidArgument, "gpuIndex", "99", "1 GPU")
	refused(metadata{"profile": "vllm"}, codes.InvalidArgument, "profile", `"vllm"`, "vllm-inference", "triton-inference")
	refused(metadata{"metricType": "gpu_util"}, codes.InvalidArgument, "metricType", "gpu_utilization", "power_draw")
	refused(metadata{"aggregation": "median"}, codes.InvalidArgument, "aggregation", "max, min, avg, sum")
	refused(metadata{"targetVallue": "80"}, codes.InvalidArgument, "targetVallue", "targetValue")
	refused(metadata{"metricName": string(make([]byte, 1<<20))}, codes.InvalidArgument, "metadata", "65536")
	refused(metadata{"metricType": "sm_activity"}, codes.FailedPrecondition, "sm_activity", "gpu_utilization")
	refused(metadata{"scope": "workload"}, codes.FailedPrecondition, "scope", "node")
	refused(metadata{"gpuModel": "T4"}, codes.FailedPrecondition, "gpuModel", "T4", "NVIDIA")
	_, err := n.GetMetrics(t.Context(), &pb.GetMetricsRequest{})
	assert.Equal(t, codes.InvalidArgument, status.Code(err))
}

// A change in NVML is seen by KEDA after one interval at most, and some
// milliseconds: the bench measures it, this only shows that it comes.
func TestAChangeInNVMLReachesKEDA(t *testing.T) {
	t.Parallel()
	n := startNode(t, "one-75.csv")
	stream, err := n.StreamIsActive(t.Context(), n.ref(metadata{"activationThreshold": "10", "window": "0s"}))
	require.NoError(t, err)
	first, err := stream.Recv()
	require.NoError(t, err)
	require.True(t, first.GetResult())

	require.NoError(t, n.control.Set("set 0 gpu_utilization 3"))
	next, err := stream.Recv()
	require.NoError(t, err)
	assert.False(t, next.GetResult())
	n.eventually(5*time.Second, func() error {
		if v, err := n.value(metadata{"window": "0s"}); err != nil || v != 3 {
			return fmt.Errorf("%v, %w", v, err)
		}
		return nil
	})
	mean, err := n.value(metadata{"window": "1m"})
	require.NoError(t, err)
	assert.Greater(t, mean, 3.0, "a window remembers")
}

// Faults of the driver, all the way to KEDA: an error that says what is wrong,
// and never a zero.
func TestFaultsOfTheDriver(t *testing.T) {
	t.Parallel()
	n := startNode(t, "two-60-80.csv")
	fails := func(code codes.Code, m metadata, parts ...string) {
		t.Helper()
		n.eventually(15*time.Second, func() error {
			v, err := n.value(m)
			if status.Code(err) != code || !contains(err, parts...) {
				return fmt.Errorf("got %v, %w", v, err)
			}
			return nil
		})
	}
	answers := func(m metadata, want float64) {
		t.Helper()
		n.eventually(15*time.Second, func() error {
			if v, err := n.value(m); err != nil || math.Abs(v-want) > 1e-9 {
				return fmt.Errorf("%v instead of %v, %w", v, want, err)
			}
			return nil
		})
	}
	now := metadata{"window": "0s"}
	answers(now, 80)

	require.NoError(t, n.control.Set("lost 1"))
	answers(now, 60) // left out
	fails(codes.Unavailable, metadata{"gpuIndex": "1"}, "GPU 1", "GPU_IS_LOST")
	require.NoError(t, n.control.Set("lost *"))
	fails(codes.Unavailable, now, "node-a", "GPU 0", "GPU 1", "GPU_IS_LOST")
	n.eventually(5*time.Second, func() error {
		if err := n.serving(); err == nil {
			return fmt.Errorf("SERVING with all GPUs lost")
		}
		return nil
	})
	require.NoError(t, n.control.Set("reload 1"))
	answers(now, 80)
	require.NoError(t, n.control.Set("error nvmlDeviceGetUtilizationRates * UNKNOWN"))
	fails(codes.Unavailable, now, "gpu_utilization", "UNKNOWN")
	answers(metadata{"metricType": "temperature", "window": "0s"}, 70) // the others go on
	require.NoError(t, n.control.Set("error nvmlDeviceGetUtilizationRates * NOT_SUPPORTED"))
	fails(codes.FailedPrecondition, now, "gpu_utilization", "temperature")
	require.NoError(t, n.control.Set("count 1"))
	answers(now, 60)
	fails(codes.InvalidArgument, metadata{"gpuIndex": "1"}, "1 GPU")
	require.NoError(t, n.control.Set())
	answers(now, 80)
}

// The mode without hardware and without C tells KEDA the same as the whole
// chain.
func TestReplayAnswersLikeTheSidecar(t *testing.T) {
	t.Parallel()
	n := startNode(t, "one-75.csv")
	address := freeAddress(t)
	start(t, nil, bin+"/scaler", "serve", "--replay", n.fixture, "--listen", address, "--http", "", "--nvml-socket", "")
	replay := *n
	conn, err := dial(address)
	require.NoError(t, err)
	defer conn.Close()
	replay.conn, replay.ExternalScalerClient = conn, pb.NewExternalScalerClient(conn)
	replay.eventually(10*time.Second, replay.serving)
	for _, m := range []metadata{{}, {"metricType": "memory_used_percent"}, {"metricType": "power_draw"}} {
		want, err := n.value(m)
		require.NoError(t, err)
		got, err := replay.value(m)
		require.NoError(t, err)
		assert.Equal(t, want, got, "%v", m)
	}
}

// A reader for other hardware is one more process on the same socket (see
// scaler/ingest/acme_test.go for one as an outsider writes it).
func TestAnotherVendorBesideTheGPUs(t *testing.T) {
	t.Parallel()
	n := startNode(t, "one-75.csv")
	wear := metadata{"metricType": "x_wear_percent", "window": "0s"}
	_, err := n.value(wear)
	assert.Equal(t, codes.FailedPrecondition, status.Code(err), "nobody reports it yet: %v", err)

	disk := func(i int, percent float64) snapshot.Device {
		return snapshot.Device{ID: fmt.Sprint("ACME-", i), Vendor: "acme", Model: "ACME Disk", Index: i,
			Values: map[string]float64{"x_wear_percent": percent}}
	}
	acme := n.writer()
	for _, percent := range []float64{12, 30} {
		require.NoError(t, snapshotpb.Write(acme, &snapshot.Sample{Writer: "acme", Devices: []snapshot.Device{disk(0, percent), disk(1, percent+5)}}))
		n.eventually(2*time.Second, func() error {
			if v, err := n.value(wear); err != nil || v != percent+5 {
				return fmt.Errorf("%v, %w", v, err)
			}
			return nil
		})
	}
	first, err := n.value(metadata{"metricType": "x_wear_percent", "window": "0s", "gpuIndex": "0"})
	require.NoError(t, err)
	assert.Equal(t, 30.0, first)
	active, err := n.IsActive(t.Context(), n.ref(metadata{"metricType": "x_wear_percent", "activationThreshold": "50"}))
	require.NoError(t, err)
	assert.False(t, active.GetResult())
	gpus, err := n.value(metadata{})
	require.NoError(t, err)
	assert.Equal(t, 75.0, gpus)
}
