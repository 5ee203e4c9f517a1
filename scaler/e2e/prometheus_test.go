package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v2"
)

const (
	rules      = "../../deploy/prometheus/"
	dashboards = "../../deploy/dashboards/"
)

// installed is the path of a program of Debian's package prometheus.
func installed(t *testing.T, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil && os.Getenv("CI") == "" {
		t.Skipf("%v; it is in Debian's package prometheus", err)
	}
	require.NoError(t, err)
	return path
}

func run(t *testing.T, stdin, program string, args ...string) {
	t.Helper()
	c := exec.Command(installed(t, program), args...)
	c.Stdin = strings.NewReader(stdin)
	out, err := c.CombinedOutput()
	require.NoError(t, err, "%s", out)
}

func TestRules(t *testing.T) {
	for _, kind := range []string{"alerts", "recording"} {
		run(t, "", "promtool", "check", "rules", rules+kind+".yaml")
		run(t, "", "promtool", "test", "rules", rules+kind+"_test.yaml")
	}
	var files []ruleFile
	for _, kind := range []string{"alerts", "alerts_test"} {
		files = append(files, load(t, kind))
	}
	tested := map[string]bool{}
	for _, test := range files[1].Tests {
		for _, alert := range test.Alerts {
			tested[alert.Name] = tested[alert.Name] || len(alert.Expected) > 0
		}
	}
	for _, g := range files[0].Groups {
		for _, r := range g.Rules {
			assert.True(t, tested[r.Alert], "no test has %s", r.Alert)
		}
	}
}

// ruleFile is what these tests look at of rules and of tests of them.
type ruleFile struct {
	Groups []struct {
		Rules []struct {
			Alert, Record, Expr string
		}
	}
	Tests []struct {
		Alerts []struct {
			Name     string        `yaml:"alertname"`
			Expected []interface{} `yaml:"exp_alerts"`
		} `yaml:"alert_rule_test"`
	}
}

func load(t *testing.T, name string) (f ruleFile) {
	t.Helper()
	text, err := os.ReadFile(rules + name + ".yaml")
	require.NoError(t, err)
	require.NoError(t, yaml.Unmarshal(text, &f))
	return f
}

// healthy are GPUs with what the recording's, which are no data centre's, have not.
var healthy = []string{
	"set * ecc_corrected_errors 0", "set * ecc_uncorrected_errors 0", "set * rows_pending 0", "set * rows_failed 0",
}

// scrape starts a Prometheus that has our rules and scrapes a node by the job that we ship, as if
// it had found the pod in Kubernetes; without honor_labels, too.
func scrape(t *testing.T, n *node, honor bool) (address string) {
	t.Helper()
	text, err := os.ReadFile(rules + "scrape.yaml")
	require.NoError(t, err)
	config := map[string]any{}
	require.NoError(t, yaml.Unmarshal(text, &config))
	job := config["scrape_configs"].([]any)[0].(map[any]any)
	require.Equal(t, true, job["honor_labels"])
	job["honor_labels"] = honor
	require.Contains(t, job, "kubernetes_sd_configs")
	delete(job, "kubernetes_sd_configs") // which Debian's Prometheus lacks
	job["static_configs"] = []any{map[string]any{"targets": []string{n.http}, "labels": map[string]string{
		"__meta_kubernetes_namespace": "gpuscaler", "__meta_kubernetes_pod_name": "gpuscaler-x7k2p", "container": "scaler",
		"__meta_kubernetes_pod_label_app_kubernetes_io_name": "gpuscaler", "__meta_kubernetes_pod_container_port_name": "http",
	}}}
	config["global"] = map[string]string{"scrape_interval": "500ms", "evaluation_interval": "500ms"}
	folder, err := filepath.Abs(rules)
	require.NoError(t, err)
	config["rule_files"] = []string{folder + "/recording.yaml", folder + "/alerts.yaml"}
	text, err = yaml.Marshal(config)
	require.NoError(t, err)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(dir+"/prometheus.yaml", text, 0o600))
	address = freeAddress(t)
	start(t, nil, installed(t, "prometheus"), "--config.file="+dir+"/prometheus.yaml", "--storage.tsdb.path="+dir+"/tsdb",
		"--web.listen-address="+address, "--log.level=warn")
	return address
}

// TestPrometheus: a real Prometheus scrapes the real scaler, with the scrape job and the rules
// that we ship, and every query of every dashboard and rule returns data with the labels
// that its legend names. A second one lacks honor_labels, and comes to the same.
func TestPrometheus(t *testing.T) {
	installed(t, "prometheus")
	_, port, err := net.SplitHostPort(newInference(t, 1).Listener.Addr().String())
	require.NoError(t, err)
	n := (&cluster{engine: port}).startNode(t)
	require.NoError(t, n.control.Set(healthy...))
	address, overwriting := scrape(t, n, true), scrape(t, n, false)

	asking, stop := context.WithCancel(t.Context())
	asked := make(chan struct{})
	go func() { // as KEDA does
		defer close(asked)
		for ; asking.Err() == nil; time.Sleep(100 * time.Millisecond) {
			_, _ = n.value(map[string]string{"targetValue": "75", "window": "0s"})
			_, _ = n.value(map[string]string{"profile": "llm"})
		}
	}()
	defer func() { stop(); <-asked }()

	for _, q := range queries(t) {
		n.eventually(20*time.Second, q.on(address))
		n.eventually(20*time.Second, q.on(overwriting))
	}
	// A GPU that is in trouble is seen from the driver to the alert.
	require.NoError(t, n.control.Set(append(healthy, "xid 0 79", "set 1 ecc_uncorrected_errors 1", "set 1 clock_events 64", "set 0 rows_failed 1")...))
	for _, expr := range []string{
		`ALERTS{alertname="GpuscalerXID", alertstate="firing", gpu="0"}`,
		`ALERTS{alertname="GpuscalerUncorrectedECC", alertstate="firing", gpu="1"}`,
		`rate(gpuscaler_gpu_throttled_seconds_total{gpu="1",reason="hw_thermal"}[5s]) > 0.9 < 1.1`, // the alert's are 10 minutes
		`ALERTS{alertname="GpuscalerRowRemapFailed", gpu="0"}`,
		`gpuscaler_gpu_xids_total{xid="79"} == 1`,
	} {
		n.eventually(20*time.Second, query{where: "trouble", expr: expr}.on(address))
	}
	metrics, err := http.Get("http://" + n.http + "/metrics")
	require.NoError(t, err)
	defer metrics.Body.Close()
	text, err := io.ReadAll(metrics.Body)
	require.NoError(t, err)
	run(t, string(text), "promtool", "check", "metrics")

	// The rate of the counter is the true mean, and all energy is somebody's.
	is := func(address, expr string, want float64) {
		t.Helper()
		n.eventually(20*time.Second, func() error {
			found, err := instant(address, expr)
			if err == nil && (len(found) != 1 || found[0].value < want-0.01 || found[0].value > want+0.01) {
				err = fmt.Errorf("%s: got %v; want %v", expr, found, want)
			}
			return err
		})
	}
	for expr, want := range map[string]float64{
		`avg(rate(gpuscaler_gpu_utilization_seconds_total[10s]))`: 0.7,
		`sum(gpuscaler_gpu_energy_joules_total) + sum(gpuscaler_gone_gpu_energy_joules_total) - sum(gpuscaler_workload_energy_joules_total)
			- sum(gpuscaler_unheld_energy_joules_total) - sum(gpuscaler_unattributed_energy_joules_total) - sum(gpuscaler_expired_energy_joules_total)`: 0,
		`max(gpuscaler_trigger_replicas{scaledobject="llm"})`:                                                                2,
		`sum(workload:gpuscaler_power_watts:rate5m{namespace="default",workload_kind="Deployment",workload="llm"}) > bool 0`: 1,
		`count(count by (namespace) (workload:gpuscaler_power_watts:rate5m))`:                                                1,
		`round(sum(rate(gpuscaler_workload_generation_tokens_total[10s])), 20)`:                                              200, // of two pods
		`round(max(workload:gpuscaler_time_to_first_token_seconds:p95_5m{namespace="default",workload="llm"}), 0.05)`:        0.75,
	} {
		is(address, expr, want)
		is(overwriting, expr, want)
	}
	// The alert is due after 5 minutes.
	is(overwriting, `count(ALERTS{alertname="GpuscalerLabelsOverwritten", alertstate="pending", job="gpuscaler"})`, 1)
	is(address, `count(ALERTS{alertname="GpuscalerLabelsOverwritten"}) or vector(0)`, 0)
	is(address, `sum(gpuscaler_workload_energy_joules_total{namespace="default",workload_kind="Deployment",workload="llm"}) > bool 0`, 1)
}

// query is one of a dashboard or a rule, with the labels that its series must have.
type query struct {
	where, expr string
	labels      []string
}

var (
	legend = regexp.MustCompile(`\{\{\s*(\w+)\s*\}\}`)
	by     = regexp.MustCompile(`by \(([^)]*)\)`)
)

// queries are all of them, but for those of alerts, which return data when something is
// wrong (see TestRules).
func queries(t *testing.T) (all []query) {
	t.Helper()
	for _, g := range load(t, "recording").Groups {
		for _, r := range g.Rules {
			q := query{where: r.Record, expr: r.Record, labels: names(by.FindStringSubmatch(r.Expr))}
			q.labels = slices.DeleteFunc(q.labels, func(label string) bool { return label == "le" }) // a quantile's is used up
			all = append(all, q)
		}
	}
	files, err := filepath.Glob(dashboards + "*.json")
	require.NoError(t, err)
	require.Len(t, files, 3)
	fill := strings.NewReplacer("$__rate_interval", "10s", "$__range", "1h", "$namespace", "default", "$scaledobject", "llm", "$workload", "llm")
	for _, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		var board struct {
			Panels []struct {
				Title, Type string
				Targets     []struct{ Expr, LegendFormat string }
			}
			Templating struct {
				List []struct {
					Type, Regex string
					Query       any
				}
			}
		}
		require.NoError(t, json.Unmarshal(text, &board))
		require.NotEmpty(t, board.Panels)
		for _, p := range board.Panels {
			require.NotEmpty(t, p.Targets, "%s: %s", file, p.Title)
			for _, target := range p.Targets {
				q := query{where: filepath.Base(file) + ": " + p.Title, expr: fill.Replace(target.Expr)}
				for _, label := range legend.FindAllStringSubmatch(target.LegendFormat, -1) {
					q.labels = append(q.labels, label[1])
				}
				if p.Type == "table" {
					q.labels = names(by.FindStringSubmatch(target.Expr))
					require.NotEmpty(t, q.labels, q.where)
				}
				all = append(all, q)
			}
		}
		for _, v := range board.Templating.List {
			if text, ok := v.Query.(map[string]any); ok && v.Type == "query" {
				inner := regexp.MustCompile(`^query_result\((.*)\)$`).FindStringSubmatch(fill.Replace(fmt.Sprint(text["query"])))
				require.NotNil(t, inner, "%s: %v", file, text)
				label := regexp.MustCompile(`^/(\w+)="\(\[\^"\]\+\)"/$`).FindStringSubmatch(v.Regex)
				require.NotNil(t, label, "%s: %v", file, v.Regex)
				all = append(all, query{where: filepath.Base(file) + ": a variable", expr: inner[1], labels: label[1:]})
			}
		}
	}
	return all
}

func names(match []string) (all []string) {
	if len(match) < 2 || match[1] == "" {
		return nil
	}
	return strings.Split(strings.ReplaceAll(match[1], " ", ""), ",")
}

func (q query) on(address string) func() error { return func() error { return q.check(address) } }

func (q query) check(address string) error {
	found, err := instant(address, q.expr)
	if err != nil {
		return fmt.Errorf("%s: %w", q.where, err)
	}
	if len(found) == 0 {
		return fmt.Errorf("%s: no data: %s", q.where, q.expr)
	}
	for _, s := range found {
		for _, label := range q.labels {
			if _, ok := s.labels[label]; !ok && label != "mig_profile" { // empty is absent
				return fmt.Errorf("%s: %v has no label %s: %s", q.where, s.labels, label, q.expr)
			}
		}
	}
	return nil
}

type sample struct {
	labels map[string]string
	value  float64
}

// instant is an instant query of Prometheus.
func instant(address, expr string) (found []sample, err error) {
	r, err := http.Get("http://" + address + "/api/v1/query?query=" + url.QueryEscape(expr))
	if err != nil {
		return nil, err
	}
	defer r.Body.Close()
	var answer struct {
		Status, Error string
		Data          struct {
			Result []struct {
				Metric map[string]string
				Value  [2]any
			}
		}
	}
	if err := json.NewDecoder(r.Body).Decode(&answer); err != nil {
		return nil, err
	}
	if answer.Status != "success" {
		return nil, fmt.Errorf("%s: %s", expr, answer.Error)
	}
	for _, s := range answer.Data.Result {
		v := 0.0
		if _, err := fmt.Sscan(fmt.Sprint(s.Value[1]), &v); err != nil {
			return nil, fmt.Errorf("%s: %v: %w", expr, s.Value, err)
		}
		found = append(found, sample{s.Metric, v})
	}
	return found, nil
}
