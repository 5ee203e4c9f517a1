package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"strings"
	"text/tabwriter"
	"time"

	pb "github.com/kedacore/keda/v2/pkg/scalers/externalscaler"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"gpuscaler/profiles"
	"gpuscaler/scaler/replicas"
	gpustatus "gpuscaler/scaler/status"
	"gpuscaler/scaler/terms"
)

// view asks the scaler over its two ports, as KEDA and a person would, and
// shows the answers.
type view struct {
	options
	title  string
	live   bool // redraw in place
	conn   *grpc.ClientConn
	client pb.ExternalScalerClient
	began  time.Time
}

func newView(o options, title string) (*view, error) {
	conn, err := grpc.NewClient(o.Listen, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, err
	}
	return &view{options: o, title: title, conn: conn, client: pb.NewExternalScalerClient(conn), began: time.Now()}, nil
}

func (v *view) close() { _ = v.conn.Close() }

// try is the line to try, here and in the README.
func (v *view) try() string {
	return `grpcurl -plaintext -d '{"scaledObjectRef":{"name":"llm","namespace":"default","scalerMetadata":{"profile":"vllm-inference"}}}' ` +
		v.Listen + ` externalscaler.ExternalScaler/GetMetrics`
}

func (v *view) intro(w io.Writer) {
	if v.live {
		return // it is part of every picture
	}
	_, _ = fmt.Fprintf(w, "gpuscaler: %s\n  %s\n  curl http://%s/state\n  curl http://%s/metrics\n\n", v.title, v.try(), v.HTTP, v.HTTP)
}

func (v *view) show(ctx context.Context, w io.Writer) {
	state, err := v.state(ctx)
	var page strings.Builder
	if v.live {
		page.WriteString("\x1b[H") // home; each line clears what it leaves of the old one
		fmt.Fprintf(&page, "gpuscaler: %s\n\n", v.title)
	} else {
		fmt.Fprintf(&page, "--- %.0f s\n", time.Since(v.began).Seconds())
	}
	if err != nil {
		fmt.Fprintf(&page, "no answer from the scaler yet: %v\n", err)
	} else {
		if state.NotReady != "" {
			fmt.Fprintf(&page, "not ready: %s\n", state.NotReady)
		}
		devices(&page, state.Devices)
		page.WriteString("\n")
		v.triggers(ctx, &page)
	}
	if !v.live {
		_, _ = io.WriteString(w, page.String()+"\n")
		return
	}
	fmt.Fprintf(&page, "\nTry:  %s\n      curl http://%s/state\n      curl http://%s/metrics\nCtrl-C ends it.\n", v.try(), v.HTTP, v.HTTP)
	_, _ = io.WriteString(w, strings.ReplaceAll(page.String(), "\n", "\x1b[K\n")+"\x1b[J")
}

func (v *view) state(ctx context.Context) (*gpustatus.State, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+v.HTTP+"/state", nil)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	var s gpustatus.State
	return &s, json.NewDecoder(response.Body).Decode(&s)
}

// columns of the table of devices, all of the last sample.
var columns = []struct{ title, metric, format string }{
	{"util %", "gpu_utilization", "%.0f"},
	{"mem %", "memory_used_percent", "%.1f"},
	{"SM %", "sm_activity", "%.0f"},
	{"tensor %", "tensor_activity", "%.0f"},
	{"DRAM %", "dram_activity", "%.0f"},
	{"W", "power_draw", "%.0f"},
	{"°C", "temperature", "%.0f"},
	{"NVLink MB/s", "nvlink_tx_mbps", "%.0f"},
}

func devices(w io.Writer, all []gpustatus.Device) {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprint(table, "GPU\tmodel")
	for _, c := range columns {
		_, _ = fmt.Fprint(table, "\t", c.title)
	}
	_, _ = fmt.Fprintln(table)
	for _, d := range all {
		name := fmt.Sprint(d.Index)
		if d.Parent != "" {
			name = "  └ " + d.Profile
		}
		_, _ = fmt.Fprintf(table, "%s\t%s", name, d.Model)
		if d.Error != "" {
			_, _ = fmt.Fprintf(table, "\t%s\n", d.Error)
			continue
		}
		for _, c := range columns {
			cell := "-"
			if m, ok := d.Metrics[c.metric]; ok {
				cell = fmt.Sprintf(c.format, m["0s"])
			}
			_, _ = fmt.Fprint(table, "\t", cell)
		}
		_, _ = fmt.Fprintln(table)
	}
	_ = table.Flush()
}

// triggers asks what KEDA would ask for each built-in profile.
func (v *view) triggers(ctx context.Context, w io.Writer) {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(table, "profile\tmetric\tvalue\ttarget\tactive\treplicas, from 1 (AverageValue)")
	for _, name := range profiles.Builtin().Names() {
		p, _ := profiles.Builtin().Get(name)
		if terms.IsEngine(p.Metric) {
			continue // there is no engine here
		}
		ref := &pb.ScaledObjectRef{Name: "demo", Namespace: "demo", ScalerMetadata: map[string]string{"profile": name}}
		_, _ = fmt.Fprintf(table, "%s\t%s\t%s\n", name, p.Metric.Name, v.ask(ctx, ref))
	}
	_ = table.Flush()
	_, _ = fmt.Fprintln(w, "Without Kubernetes a trigger reads all GPUs of the node. In a cluster it reads its workload's, and flat memory asks for no more replicas.")
}

// ask is the rest of a row: the answers, or why there are none.
func (v *view) ask(ctx context.Context, ref *pb.ScaledObjectRef) string {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	spec, err := v.client.GetMetricSpec(ctx, ref)
	if err != nil {
		return reason(err)
	}
	target := spec.GetMetricSpecs()[0].GetTargetSizeFloat()
	metrics, err := v.client.GetMetrics(ctx, &pb.GetMetricsRequest{ScaledObjectRef: ref, MetricName: spec.GetMetricSpecs()[0].GetMetricName()})
	if err != nil {
		return reason(err)
	}
	active, err := v.client.IsActive(ctx, ref)
	if err != nil {
		return reason(err)
	}
	value := metrics.GetMetricValues()[0].GetMetricValueFloat()
	return fmt.Sprintf("%.3f\t%g\t%t\t%s", value, target, active.GetResult(), fromOne(value, target))
}

// fromOne is what the HPA makes of a value and a target of type AverageValue,
// above 0, where there is one replica, and why. KEDA's HPA has a minimum of 1;
// going to zero is KEDA's own, where the trigger is not active.
func fromOne(value, target float64) string {
	const tolerance = replicas.DefaultTolerance
	ratio := value / target
	switch asked := math.Ceil(ratio); {
	case 1-tolerance <= ratio && ratio <= 1+tolerance:
		return fmt.Sprintf("1 (%.1f is within %g %% of %g)", value, 100*tolerance, target)
	case asked < 1:
		return fmt.Sprintf("1 (the HPA's minimum; ceil(%.1f / %g) = 0)", value, target)
	default:
		return fmt.Sprintf("%.0f = ceil(%.1f / %g)", asked, value, target)
	}
}

// reason is the beginning of an error, as much as fits beside the names.
func reason(err error) string {
	const room = 75
	s := status.Convert(err)
	text := []rune(fmt.Sprintf("%s: %s", s.Code(), s.Message()))
	if len(text) > room {
		text = append(text[:room-1], '…')
	}
	return string(text)
}
