// Package bench measures what gpuscaler promises of one node, on the binaries
// as they ship, as ratios within one run: a machine's speed cancels out. Run it
// with "make bench".
package bench

import (
	"context"
	"fmt"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"text/tabwriter"
	"time"

	pb "github.com/kedacore/keda/v2/pkg/scalers/externalscaler"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"gpuscaler/nvmlsidecar/fakenvml"
	"gpuscaler/scaler/bench/process"
)

// chain is sidecar and scaler on the fake driver with 8 GPUs.
type chain struct {
	scaler, sidecar *exec.Cmd
	control         *fakenvml.Control
	health          healthpb.HealthClient
	keda            pb.ExternalScalerClient
	address, http   string
}

// startChain starts them, the scaler with further flags.
func startChain(b *testing.B, flags ...string) *chain {
	b.Helper()
	dir := b.TempDir()
	must := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	for pkg, cgo := range map[string]string{"gpuscaler/scaler": "0", "gpuscaler/nvmlsidecar": "1"} {
		build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", dir+"/", pkg)
		build.Env = append(os.Environ(), "CGO_ENABLED="+cgo)
		if out, err := build.CombinedOutput(); err != nil {
			b.Fatalf("%v\n%s", err, out)
		}
	}
	library, err := fakenvml.Build(dir)
	must(err)
	fixture, err := filepath.Abs("../../testdata/h100x8-uneven.csv")
	must(err)
	addresses := [2]string{}
	for i := range addresses {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		must(err)
		addresses[i] = l.Addr().String()
		must(l.Close())
	}
	c := &chain{
		address: addresses[0], http: addresses[1],
		control: fakenvml.NewControl(dir + "/control"),
		scaler: exec.Command(dir+"/scaler", append([]string{"serve", "--nvml-socket", dir + "/s", "--listen", addresses[0], "--http", addresses[1],
			"--log-level", "error"}, flags...)...),
		sidecar: exec.Command(dir+"/nvmlsidecar", "--socket", dir+"/s", "--nvml-library", library, "--log-level", "error"),
	}
	c.sidecar.Env = append(os.Environ(), "FAKENVML_FIXTURE="+fixture, "FAKENVML_CONTROL="+c.control.Path())
	for _, p := range []*exec.Cmd{c.scaler, c.sidecar} {
		p.Stderr = os.Stderr
		must(p.Start())
		b.Cleanup(func() { _ = p.Process.Kill(); _ = p.Wait() })
	}
	c.health, c.keda = c.client(b)
	for range 200 {
		if r, err := c.health.Check(b.Context(), &healthpb.HealthCheckRequest{}); err == nil && r.GetStatus() == healthpb.HealthCheckResponse_SERVING {
			return c
		}
		time.Sleep(50 * time.Millisecond)
	}
	b.Fatal("the scaler does not serve")
	return nil
}

func (c *chain) client(b *testing.B) (healthpb.HealthClient, pb.ExternalScalerClient) {
	conn, err := grpc.NewClient(c.address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = conn.Close() })
	return healthpb.NewHealthClient(conn), pb.NewExternalScalerClient(conn)
}

// request is what KEDA sends for the six-line ScaledObject.
var request = &pb.GetMetricsRequest{
	MetricName: "keda_gpu_vllm_inference",
	ScaledObjectRef: &pb.ScaledObjectRef{Name: "llm", Namespace: "default", ScalerMetadata: map[string]string{
		"scalerAddress": "gpuscaler.gpuscaler.svc:6000", "profile": "vllm-inference",
	}},
}

func check(ctx context.Context, h healthpb.HealthClient) error {
	_, err := h.Check(ctx, &healthpb.HealthCheckRequest{})
	return err
}

func getMetrics(ctx context.Context, k pb.ExternalScalerClient) error {
	_, err := k.GetMetrics(ctx, request)
	return err
}

// BenchmarkLatency compares GetMetrics with a health check of the same server,
// call by call in turn, so that whatever else the machine does hits both.
func BenchmarkLatency(b *testing.B) {
	c := startChain(b)
	const calls = 20000
	var health, metrics []time.Duration
	for b.Loop() {
		for range calls {
			for _, m := range []struct {
				call  func() error
				times *[]time.Duration
			}{
				{func() error { return check(b.Context(), c.health) }, &health},
				{func() error { return getMetrics(b.Context(), c.keda) }, &metrics},
			} {
				began := time.Now()
				if err := m.call(); err != nil {
					b.Fatal(err)
				}
				*m.times = append(*m.times, time.Since(began))
			}
		}
	}
	slices.Sort(health)
	slices.Sort(metrics)
	for _, p := range []struct {
		name  string
		share float64
		reach float64
	}{{"p50", 0.50, 1.15}, {"p99", 0.99, 1.3}} {
		h, m := quantile(health, p.share), quantile(metrics, p.share)
		report(b, "GetMetrics "+p.name+" / health check", float64(m)/float64(h), "<=", p.reach, fmt.Sprintf("%v / %v", m, h))
	}
}

func quantile(sorted []time.Duration, share float64) time.Duration {
	return sorted[int(share*float64(len(sorted)-1))].Round(100 * time.Nanosecond)
}

// BenchmarkThroughput compares calls per second, in many short turns: what else
// the machine does for seconds hits both.
func BenchmarkThroughput(b *testing.B) {
	const (
		turns    = 80
		turnTime = 100 * time.Millisecond
		seconds  = turns * float64(turnTime) / float64(time.Second)
	)
	c := startChain(b)
	for _, clients := range []int{8, 64} {
		b.Run(strconv.Itoa(clients), func(b *testing.B) {
			var health, metrics []func() error
			for range clients {
				h, k := c.client(b)
				health = append(health, func() error { return check(b.Context(), h) })
				metrics = append(metrics, func() error { return getMetrics(b.Context(), k) })
			}
			var h, m float64
			for b.Loop() {
				turn(b, health, time.Second) // connect, warm up
				for range turns {
					h += turn(b, health, turnTime)
					m += turn(b, metrics, turnTime)
				}
			}
			report(b, fmt.Sprintf("GetMetrics/s at %d clients / health checks/s", clients), m/h, ">=", 0.85,
				fmt.Sprintf("%.0f / %.0f per second", m/seconds, h/seconds))
		})
	}
}

// turn lets all clients call for a while and counts the calls.
func turn(b *testing.B, calls []func() error, d time.Duration) float64 {
	var n atomic.Int64
	var all sync.WaitGroup
	end := time.Now().Add(d)
	for _, call := range calls {
		all.Go(func() {
			for time.Now().Before(end) {
				if err := call(); err != nil {
					b.Error(err)
					return
				}
				n.Add(1)
			}
		})
	}
	all.Wait()
	return float64(n.Load())
}

// BenchmarkFreshness measures from a change in NVML to the first GetMetrics
// that shows it, and compares with the interval that has to pass.
func BenchmarkFreshness(b *testing.B) {
	c := startChain(b)
	now := &pb.GetMetricsRequest{ScaledObjectRef: &pb.ScaledObjectRef{ScalerMetadata: map[string]string{"window": "0s", "gpuIndex": "5"}}}
	var worst time.Duration
	var all []time.Duration
	for b.Loop() {
		for i := range 20 {
			want := float64(10 + i)
			if err := c.control.Set(fmt.Sprintf("set 5 gpu_utilization %v", want)); err != nil {
				b.Fatal(err)
			}
			began := time.Now()
			for {
				r, err := c.keda.GetMetrics(b.Context(), now)
				if err != nil {
					b.Fatal(err)
				}
				if math.Abs(r.GetMetricValues()[0].GetMetricValueFloat()-want) < 1e-9 {
					break
				}
				time.Sleep(time.Millisecond)
			}
			took := time.Since(began)
			all = append(all, took)
			worst = max(worst, took)
			// Not in step with the sidecar's second.
			time.Sleep(time.Duration(i*37%200) * time.Millisecond)
		}
	}
	slices.Sort(all)
	report(b, "NVML to GetMetrics, worst of 20 / (interval + 50 ms)", worst.Seconds()/1.05, "<=", 1,
		fmt.Sprintf("median %v, worst %v", quantile(all, 0.5).Round(time.Millisecond), worst.Round(time.Millisecond)))
}

// BenchmarkFootprint looks at both processes with 8 GPUs at 1 Hz for 20 s, the
// scaler being polled once a second.
func BenchmarkFootprint(b *testing.B) {
	c := startChain(b)
	const seconds = 20
	for b.Loop() {
		scaler, sidecar := usage(b, c.scaler), usage(b, c.sidecar)
		for range seconds {
			if err := getMetrics(b.Context(), c.keda); err != nil {
				b.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		for _, p := range []struct {
			name   string
			cmd    *exec.Cmd
			before process.Usage
			reach  float64
		}{{"scaler", c.scaler, scaler, 40}, {"sidecar", c.sidecar, sidecar, 20}} {
			after := usage(b, p.cmd)
			cpu := (after.CPU - p.before.CPU).Seconds() / seconds
			report(b, p.name+" resident / allowed", after.ResidentMiB/p.reach, "<=", 1, fmt.Sprintf("%.1f MiB of %.0f", after.ResidentMiB, p.reach))
			report(b, p.name+" CPU / 1% of a core", cpu/0.01, "<=", 1, fmt.Sprintf("%.2f %% of a core", cpu*100))
		}
	}
}

// usage is what a process of the chain has used.
func usage(b *testing.B, cmd *exec.Cmd) process.Usage {
	b.Helper()
	u, err := process.Of(cmd.Process.Pid)
	if err != nil {
		b.Fatal(err)
	}
	return u
}

// rows are what TestMain prints in the end, as one table.
var rows []string

// report adds a row: what, the ratio, what is to be reached, and the figures.
func report(b *testing.B, what string, ratio float64, relation string, reach float64, figures string) {
	b.Helper()
	verdict := "reached"
	if (relation == "<=" && ratio > reach) || (relation == ">=" && ratio < reach) {
		verdict = "MISSED"
	}
	b.ReportMetric(ratio, "ratio")
	rows = append(rows, fmt.Sprintf("%s\t%.2f\t%s %.2f\t%s\t%s", what, ratio, relation, reach, verdict, figures))
}

func TestMain(m *testing.M) {
	code := m.Run()
	if len(rows) > 0 {
		table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
		_, _ = fmt.Fprintln(table, "\nwhat\tratio\tto reach\t\tfigures")
		for _, row := range rows {
			_, _ = fmt.Fprintln(table, row)
		}
		_ = table.Flush()
	}
	os.Exit(code)
}
