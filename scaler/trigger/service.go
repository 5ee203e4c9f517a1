package trigger

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"gpuscaler/scaler/terms"
)

// Service says which metric of which Service a trigger with service_queue reads. It is
// comparable.
type Service struct {
	// Name is the Service's, in the ScaledObject's namespace; "" is none.
	Name string
	// Port is the number or the name of one of its ports; "" is its only one, or the one
	// that is called metrics.
	Port string
	// Path is where its pods tell their metrics.
	Path string
	// Metric is one of these, by its own name, and Labels selects its series, as they were
	// written: "a=b,c=d"; "" is all of them. See [Service.Select].
	Metric, Labels string
}

// String is the Service as the metadata has it, for people.
func (s Service) String() string {
	text := s.Name
	if s.Port != "" {
		text += ":" + s.Port
	}
	return text + s.Path
}

// Select are the labels that a series has to have.
func (s Service) Select() map[string]string {
	all, err := parseLabels(s.Labels)
	if err != nil {
		return nil // refused when it was set
	}
	return all
}

// Keys of service_queue.
const (
	keyService       = "service"
	keyServiceMetric = "serviceMetric"
	keyServiceLabels = "serviceLabels"
)

// defaultMetricsPath is where nearly everything tells its metrics.
const defaultMetricsPath = "/metrics"

func setService(t *Trigger, value string) error {
	const allowed = `allowed is NAME[:PORT][/PATH] of a Service in the ScaledObject's own namespace, like "gateway:9180/metrics"`
	refuse := func(reason string) error { return fmt.Errorf("%s %s; %s", terms.Quote(value), reason, allowed) }
	rest, path := value, defaultMetricsPath
	if i := strings.IndexByte(value, '/'); i >= 0 {
		rest, path = value[:i], value[i:]
		if err := terms.CheckPath(path); err != nil {
			return err
		}
	}
	name, port, withPort := strings.Cut(rest, ":")
	switch {
	case value == "":
		return refuse("is empty")
	case strings.Contains(value, "://"):
		return refuse("is a URL")
	case strings.Contains(name, "."):
		return refuse("has a dot in the name: other namespaces and hosts are not read")
	case !terms.IsLabel(name):
		return refuse("has no name of a Service")
	case withPort && !isPort(port):
		return refuse("has no number or name of a port after the colon")
	}
	t.Service.Name, t.Service.Port, t.Service.Path = name, port, path
	return nil
}

// isPort says whether a text is the number or the name of a Service's port.
func isPort(port string) bool {
	if n, err := strconv.Atoi(port); err == nil {
		return n >= 1 && n <= 65535 && strconv.Itoa(n) == port
	}
	return terms.IsLabel(port)
}

func setServiceMetric(t *Trigger, value string) error {
	const longest = 200
	ok := value != "" && len(value) <= longest
	for i := 0; i < len(value) && ok; i++ {
		c := value[i]
		ok = c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_' || c == ':' || i > 0 && c >= '0' && c <= '9'
	}
	t.Service.Metric = value
	switch {
	case ok:
		return nil
	case value == "":
		return fmt.Errorf(`"" is empty; allowed is the name of a metric, like "caddy_http_requests_in_flight"`)
	}
	return fmt.Errorf(`%s is no name of a metric; allowed are 1 to %d letters, digits and _ :, the first no digit; serviceLabels selects series`, terms.Quote(value), longest)
}

func setServiceLabels(t *Trigger, value string) error {
	_, err := parseLabels(value)
	t.Service.Labels = value
	return err
}

// parseLabels reads "a=b,c=d"; "" is none.
func parseLabels(text string) (map[string]string, error) {
	const most = 16
	if text == "" {
		return nil, nil
	}
	all := map[string]string{}
	for pair := range strings.SplitSeq(text, ",") {
		name, value, found := strings.Cut(pair, "=")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		_, twice := all[name]
		if !found || name == "" || strings.ContainsAny(pair, `{}"~!`) || twice || len(all) >= most {
			return nil, fmt.Errorf(`%s selects no series; allowed are up to %d labels with their values, each once, like "handler=reverse_proxy,server=srv0"`, terms.Quote(text), most)
		}
		all[name] = value
	}
	return all, nil
}

// queueOnly are the keys that mean something with service_queue only, withoutQueue those
// that mean nothing with it.
var queueOnly, withoutQueue = positions(keyService, keyServiceLabels, keyServiceMetric),
	slices.Concat(positions(keyAggregation), withoutEngine)

// queueContradiction refuses keys that would have no effect, and service_queue without a
// Service.
func queueContradiction(found *[len(table)]given, t *Trigger) error {
	refuse := func(g *given, reason string) error {
		return &Error{Key: g.key, Value: g.value, FromEnv: g.fromEnv(), Reason: fmt.Sprintf("%s %s", terms.Quote(g.value), reason)}
	}
	if !terms.IsQueue(t.Metric) {
		for _, at := range queueOnly {
			if g := &found[at]; g.key != "" {
				return refuse(g, fmt.Sprintf("has no effect on %s; it goes with metricType %s", t.Metric.Name, terms.Queue.Name))
			}
		}
		return nil
	}
	for _, key := range [...]string{keyService, keyServiceMetric} {
		if found[position[key]].key == "" {
			return &Error{Key: key, Reason: fmt.Sprintf("missing; metricType %s reads serviceMetric of the pods behind service", terms.Queue.Name)}
		}
	}
	for _, at := range withoutQueue {
		if g := &found[at]; g.key != "" {
			return refuse(g, fmt.Sprintf("has no effect on %s, which is added up over the pods of a Service", terms.Queue.Name))
		}
	}
	if t.Scope == ScopeNode || t.Scope == ScopeCluster {
		return refuse(&found[position[keyScope]], fmt.Sprintf("contradicts metricType %s, which is about a workload; allowed is %q", terms.Queue.Name, ScopeWorkload))
	}
	return nil
}
