package ingest_test

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"

	pb "github.com/kedacore/keda/v2/pkg/scalers/externalscaler"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/types/known/durationpb"

	"gpuscaler/profiles"
	"gpuscaler/scaler/externalscaler"
	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/ingest"
	"gpuscaler/shared/snapshotpb"
)

// acme is a whole reader of another vendor, as an outsider would write it: it
// knows the .proto, the framing and the path of the socket, and nothing else.
func acme(ctx context.Context, socket string, wear func(device int) float64, every time.Duration) error {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	start := time.Now()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		sample := &snapshotpb.Sample{Writer: "acme", Version: "1.0", Elapsed: durationpb.New(time.Since(start) + 1)}
		for i, id := range []string{"ACME-SSD-0", "ACME-SSD-1"} {
			sample.Devices = append(sample.Devices, &snapshotpb.Device{
				Id: id, Vendor: "acme", Model: "Acme Flash 9", Index: uint32(i),
				Values: map[string]float64{"x_wear_percent": wear(i)},
			})
		}
		if _, err := protodelim.MarshalTo(conn, sample); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// gpus stands for nvmlsidecar: one GPU, at 75 %.
func gpus(ctx context.Context, socket string, every time.Duration) error {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if _, err := protodelim.MarshalTo(conn, &snapshotpb.Sample{Writer: "nvmlsidecar", Devices: []*snapshotpb.Device{
			{Id: "GPU-0", Vendor: "nvidia", Model: "NVIDIA H200", Values: map[string]float64{"gpu_utilization": 75}},
		}}); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// A trigger reads another vendor's metric beside the GPUs, with nothing changed
// in the scaler.
func TestAnotherVendorBesideTheGPUs(t *testing.T) {
	const staleAfter = 5 * time.Second
	node := fleet.NewLocal("node-1", staleAfter, slog.New(slog.DiscardHandler), time.Now())
	store, err := profiles.NewStore("", slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	service := externalscaler.NewService(fleet.New(node), store, staleAfter, slog.New(slog.DiscardHandler))
	socket := filepath.Join(t.TempDir(), "s")
	l, err := ingest.Listen(ingest.Options{
		Path: socket, FrameTimeout: staleAfter, Log: slog.New(slog.DiscardHandler),
		Connect: func(int) ingest.Sink { return node.Connect() },
	})
	require.NoError(t, err)

	ctx, cancel := context.WithCancel(t.Context())
	parts := make(chan error)
	go func() { parts <- l.Run(ctx) }()
	go func() { parts <- gpus(ctx, socket, 20*time.Millisecond) }()
	go func() {
		parts <- acme(ctx, socket, func(device int) float64 { return 20 + 11*float64(device) }, 20*time.Millisecond)
	}()

	ask := func(md map[string]string) (float64, error) {
		r, err := service.GetMetrics(ctx, &pb.GetMetricsRequest{ScaledObjectRef: &pb.ScaledObjectRef{Name: "cache", Namespace: "default", ScalerMetadata: md}})
		if err != nil {
			return 0, err
		}
		return r.GetMetricValues()[0].GetMetricValueFloat(), nil
	}
	for deadline := time.Now().Add(10 * time.Second); len(node.Node().Devices) < 3; time.Sleep(time.Millisecond) {
		require.True(t, time.Now().Before(deadline), "the readers are not heard")
	}
	for _, c := range []struct {
		md   map[string]string
		want float64
	}{
		{map[string]string{"metricType": "x_wear_percent"}, 31},
		{map[string]string{"metricType": "x_wear_percent", "aggregation": "avg", "targetValue": "50"}, 25.5},
		{map[string]string{"metricType": "x_wear_percent", "gpuIndex": "0"}, 20},
		{map[string]string{"metricType": "x_wear_percent", "gpuModel": "acme flash"}, 31},
		{map[string]string{}, 75},
		{map[string]string{"gpuIndex": "0", "aggregation": "sum"}, 75},
	} {
		got, err := ask(c.md)
		require.NoError(t, err, c.md)
		assert.Equal(t, c.want, got, c.md)
	}
	_, err = ask(map[string]string{"metricType": "x_unknown"})
	assert.Equal(t, codes.FailedPrecondition, status.Code(err))
	assert.ErrorContains(t, err, "they have gpu_utilization, x_wear_percent")

	cancel()
	for range 3 {
		select {
		case <-parts: // a writer may find the socket closed before it is told
		case <-time.After(5 * time.Second):
			require.Fail(t, "not all parts end")
		}
	}
	assert.NoFileExists(t, socket)
}
