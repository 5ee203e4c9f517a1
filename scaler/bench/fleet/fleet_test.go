// Package fleet measures a front: the real binary, with real gRPC streams from
// thousands of nodes that another process plays, and a stand-in for the API
// server. Run it with "make bench-fleet".
package fleet

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	pb "github.com/kedacore/keda/v2/pkg/scalers/externalscaler"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"gpuscaler/scaler/bench/process"
)

// sizes are the fleets that are measured, in nodes; GPUSCALER_BENCH_SIZES names
// others.
var sizes = []int{10, 100, 1000, 5000}

func TestMain(m *testing.M) {
	if nodes, err := strconv.Atoi(os.Getenv(nodesVar)); err == nil {
		if err := playNodes(nodes); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if list := os.Getenv("GPUSCALER_BENCH_SIZES"); list != "" {
		sizes = nil
		for _, n := range strings.Split(list, ",") {
			size, err := strconv.Atoi(n)
			if err != nil {
				fmt.Fprintln(os.Stderr, "GPUSCALER_BENCH_SIZES:", err)
				os.Exit(2)
			}
			sizes = append(sizes, size)
		}
	}
	os.Exit(m.Run())
}

// front is the running scaler, and clients of it.
type front struct {
	cmd    *exec.Cmd
	http   string
	health healthpb.HealthClient
	keda   pb.ExternalScalerClient
}

func startFront(b *testing.B, binary, kubeconfig string) *front {
	b.Helper()
	addresses := [2]string{}
	for i := range addresses {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		must(b, err)
		addresses[i] = l.Addr().String()
		must(b, l.Close())
	}
	f := &front{http: addresses[1], cmd: exec.Command(binary, "serve", "--nvml-socket=", "--node-name=front", "--peers=kubernetes:///peers.gpuscaler:"+port,
		"--kubeconfig="+kubeconfig, "--listen="+addresses[0], "--http="+addresses[1], "--log-level=error")}
	f.cmd.Env = append(os.Environ(), "GOMEMLIMIT=560MiB", "GOGC=40") // as deploy/components/front has it
	f.cmd.Stderr = os.Stderr
	must(b, f.cmd.Start())
	b.Cleanup(func() { _ = f.cmd.Process.Kill(); _ = f.cmd.Wait() })
	conn, err := grpc.NewClient(addresses[0], grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(b, err)
	b.Cleanup(func() { _ = conn.Close() })
	f.health, f.keda = healthpb.NewHealthClient(conn), pb.NewExternalScalerClient(conn)
	until(b, 10*time.Second, func() error {
		_, err := f.health.Check(b.Context(), &healthpb.HealthCheckRequest{})
		return err
	})
	return f
}

// until repeats check until it succeeds, and says how long that took.
func until(b *testing.B, within time.Duration, check func() error) time.Duration {
	b.Helper()
	began := time.Now()
	for {
		err := check()
		if err == nil {
			return time.Since(began)
		}
		if time.Since(began) > within {
			b.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// ask is GetMetrics for a workload.
func (f *front) ask(ctx context.Context, workload int) error {
	_, err := f.keda.GetMetrics(ctx, &pb.GetMetricsRequest{ScaledObjectRef: &pb.ScaledObjectRef{
		Namespace: "bench", Name: fmt.Sprintf("w-%d", workload), ScalerMetadata: map[string]string{"targetValue": "50"},
	}})
	return err
}

var ofCluster = &pb.GetMetricsRequest{ScaledObjectRef: &pb.ScaledObjectRef{
	Namespace: "bench", Name: "cluster", ScalerMetadata: map[string]string{"scope": "cluster", "aggregation": "avg"},
}}

func (f *front) askCluster(ctx context.Context) error {
	_, err := f.keda.GetMetrics(ctx, ofCluster)
	return err
}

// state is what /state tells of peers.
type state struct {
	Peers []struct {
		AgeSeconds float64 `json:"ageSeconds"`
	} `json:"peers"`
	Unheard []string `json:"unheard"`
}

func (f *front) state(b *testing.B) (s state) {
	b.Helper()
	r, err := http.Get("http://" + f.http + "/state")
	must(b, err)
	defer r.Body.Close()
	must(b, json.NewDecoder(r.Body).Decode(&s))
	return s
}

func usage(b *testing.B, cmd *exec.Cmd) process.Usage {
	b.Helper()
	u, err := process.Of(cmd.Process.Pid)
	must(b, err)
	return u
}

func BenchmarkFleet(b *testing.B) {
	binary := b.TempDir() + "/scaler"
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", binary, "gpuscaler/scaler")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	var rows []row
	for _, nodes := range sizes {
		b.Run(strconv.Itoa(nodes), func(b *testing.B) {
			for b.Loop() {
				rows = append(rows, measure(b, binary, nodes))
			}
		})
	}
	table := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "\n"+strings.Join(columns, "\t"))
	for _, r := range rows {
		_, _ = fmt.Fprintln(table, strings.Join(r.cells(), "\t"))
	}
	_ = table.Flush()
	if path := os.Getenv("GPUSCALER_BENCH_PLOT"); path != "" && len(rows) > 1 {
		must(b, os.WriteFile(path, []byte(plot(rows)), 0o600))
	}
}

// watched is for how long CPU and bytes are counted.
const watched = 20 * time.Second

// measure measures one fleet.
func measure(b *testing.B, binary string, nodes int) row {
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	f := startFront(b, binary, startAPI(b, nodes))
	simulated := startNodes(b, nodes)

	first := until(b, time.Minute, func() error { return f.askCluster(ctx) })
	if s := f.state(b); len(s.Peers) != nodes || len(s.Unheard) > 0 {
		b.Fatalf("the first answer was of %d nodes", len(s.Peers))
	}
	for w := range workloads(nodes) {
		_ = f.ask(ctx, w)
	}
	for w := range workloads(nodes) {
		until(b, time.Minute, func() error { return f.ask(ctx, w) })
	}
	// KEDA asks for each workload every 15 s, and so do we, evenly.
	asked := make(chan struct{})
	go func() {
		defer close(asked)
		tick := time.NewTicker(15 * time.Second / time.Duration(workloads(nodes)))
		defer tick.Stop()
		for w := 0; ; w++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				_ = f.ask(ctx, w%workloads(nodes))
			}
		}
	}()
	time.Sleep(5 * time.Second)
	before, sent := usage(b, f.cmd), simulated.bytes.Load()
	time.Sleep(watched)
	after := usage(b, f.cmd)
	rate := float64(simulated.bytes.Load()-sent) / watched.Seconds() / 1000

	var ages []time.Duration
	for range 5 {
		for _, p := range f.state(b).Peers {
			ages = append(ages, time.Duration(p.AgeSeconds*float64(time.Second)))
		}
		time.Sleep(300 * time.Millisecond)
	}
	health, metrics := f.latency(ctx, b, nodes)
	var cluster []time.Duration
	for range 50 {
		began := time.Now()
		must(b, f.askCluster(ctx))
		cluster = append(cluster, time.Since(began))
		time.Sleep(60 * time.Millisecond)
	}
	cancel()
	<-asked
	millis := func(d time.Duration) float64 { return 1000 * d.Seconds() }
	of := func(q float64) float64 { return float64(quantile(metrics, q)) / float64(quantile(health, q)) }
	return row{
		nodes: nodes, cpuPercent: 100 * (after.CPU - before.CPU).Seconds() / watched.Seconds(),
		residentMiB: after.ResidentMiB, peakMiB: after.PeakMiB, kilobytes: rate,
		ageP50: quantile(ages, 0.5).Seconds(), ageP99: quantile(ages, 0.99).Seconds(),
		metricsP50: millis(quantile(metrics, 0.5)), metricsP99: millis(quantile(metrics, 0.99)), p50Of: of(0.5), p99Of: of(0.99),
		clusterMillis: millis(quantile(cluster, 0.5)), firstMillis: millis(first),
	}
}

// latency compares GetMetrics, for one workload after the other, with a health
// check of the same server, call by call in turn.
func (f *front) latency(ctx context.Context, b *testing.B, nodes int) (health, metrics []time.Duration) {
	b.Helper()
	for i := range 10_000 {
		began := time.Now()
		_, err := f.health.Check(ctx, &healthpb.HealthCheckRequest{})
		must(b, err)
		health = append(health, time.Since(began))
		began = time.Now()
		must(b, f.ask(ctx, i%workloads(nodes)))
		metrics = append(metrics, time.Since(began))
	}
	return health, metrics
}

func quantile(of []time.Duration, share float64) time.Duration {
	slices.Sort(of)
	return of[int(share*float64(len(of)-1))]
}
