package peer

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"gpuscaler/scaler/fleet"
	pb "gpuscaler/scaler/peer/peerpb"
	"gpuscaler/scaler/terms"
	"gpuscaler/scaler/window"
)

const (
	// mostEngines is how many engines a peer may tell of, mostEngineMetrics how many
	// names of readings.
	mostEngines       = 1024
	mostEngineMetrics = 256
	// mostText is how long a text about an engine may be, in bytes.
	mostText = 1024
)

// engines are those of a node, in a fixed order.
func engines(n *fleet.Node) (keys []fleet.EngineKey) {
	if len(n.Engines()) == 0 { // mostly
		return nil
	}
	for key := range n.Engines() {
		keys = append(keys, key)
	}
	slices.SortFunc(keys, fleet.EngineKey.Compare)
	return keys[:min(len(keys), mostEngines)]
}

// layoutEngines adds the engines to a layout.
func layoutEngines(n *fleet.Node, l *pb.Layout) {
	for _, key := range engines(n) {
		e := n.Engine(key)
		l.Engines = append(l.Engines, &pb.Engine{
			Uid: key.UID, Engine: key.Engine, Port: uint32(key.Port), Path: key.Path, //nolint:gosec // a port
			Name: e.Name, Address: e.Address, Metrics: e.Metrics,
		})
		for name := range e.Readings.All() {
			if !slices.Contains(l.GetEngineMetrics(), name) && len(l.GetEngineMetrics()) < mostEngineMetrics {
				l.EngineMetrics = append(l.EngineMetrics, name)
			}
		}
	}
	slices.Sort(l.GetEngineMetrics())
}

// engineReadings are those of the layout's engines.
func engineReadings(n *fleet.Node, l *pb.Layout, now time.Time) (all []*pb.EngineReading) {
	for _, in := range l.GetEngines() {
		e := n.Engine(engineKey(in))
		r := &pb.EngineReading{Error: cut(e.Error), Means: means(e.Readings, l.GetEngineMetrics())}
		if !e.Heard.IsZero() {
			r.AgeUs = new(age(now, e.Heard))
		}
		all = append(all, r)
	}
	return all
}

func cut(text string) string {
	if len(text) <= mostText {
		return text
	}
	return strings.ToValidUTF8(text[:mostText], "")
}

func engineKey(in *pb.Engine) fleet.EngineKey {
	return fleet.EngineKey{UID: in.GetUid(), Engine: in.GetEngine(), Port: int(in.GetPort()), Path: in.GetPath()}
}

// enginesOf are the engines of a layout, as far as the layout says.
type enginesOf struct {
	keys    []fleet.EngineKey
	engines []fleet.Engine
	names   []string // of readings by position; "" is none that this version has
	metrics []bounds
}

// bounds are those of a reading's values.
type bounds struct{ least, most float64 }

func arrangeEngines(l *pb.Layout) (of enginesOf, err error) {
	if len(l.GetEngines()) > mostEngines || len(l.GetEngineMetrics()) > mostEngineMetrics {
		return of, fmt.Errorf("%d engines with %d metrics; at most %d with %d are allowed", len(l.GetEngines()), len(l.GetEngineMetrics()), mostEngines, mostEngineMetrics)
	}
	for _, in := range l.GetEngines() {
		for _, text := range []string{in.GetUid(), in.GetEngine(), in.GetPath(), in.GetName(), in.GetAddress()} {
			if len(text) > mostText {
				return of, fmt.Errorf("a text of %d bytes about an engine; at most %d are allowed", len(text), mostText)
			}
		}
		of.keys = append(of.keys, engineKey(in))
		e := fleet.Engine{Name: in.GetName(), Address: in.GetAddress()}
		for _, name := range in.GetMetrics() {
			if m, ok := terms.LookupMetric(name); ok && terms.IsEngine(m) {
				e.Metrics = append(e.Metrics, m.Name)
			}
		}
		of.engines = append(of.engines, e)
	}
	for _, name := range l.GetEngineMetrics() {
		metric, quantile, _ := strings.Cut(name, "/")
		m, ok := terms.LookupMetric(metric)
		if !ok || !terms.IsEngine(m) || len(quantile) > 32 {
			name = "" // a newer peer's
		}
		of.names, of.metrics = append(of.names, strings.Clone(name)), append(of.metrics, bounds{m.Min, m.Max})
	}
	return of, nil
}

// decodeEngines are the engines that a message tells of.
func (d *decoder) decodeEngines(all []*pb.EngineReading, sent time.Time) (map[fleet.EngineKey]*fleet.Engine, error) {
	of := &d.engines
	if len(all) != len(of.keys) {
		return nil, fmt.Errorf("%d readings of %d engines", len(all), len(of.keys))
	}
	if len(all) == 0 {
		return nil, nil
	}
	engines := make(map[fleet.EngineKey]*fleet.Engine, len(all))
	for i, in := range all {
		e := of.engines[i]
		e.Error = cut(in.GetError())
		var err error
		if e.Heard, err = before(sent, in.AgeUs); err != nil { //nolint:protogetter // absent is not 0
			return nil, err
		}
		if e.Readings, err = d.engineReadings(in.GetMeans()); err != nil {
			return nil, fmt.Errorf("engine of pod %s: %w", terms.Quote(of.keys[i].UID), err)
		}
		engines[of.keys[i]] = &e
	}
	return engines, nil
}

func (d *decoder) engineReadings(in *pb.Means) (r fleet.Readings, err error) {
	at, values, coverage := in.GetMetrics(), in.GetMeans(), in.GetCoverage()
	if len(at) > len(d.engines.names) || len(values) != len(at)*d.of || len(coverage) != 0 && len(coverage) != len(values) {
		return r, fmt.Errorf("%d means and %d coverages of %d metrics and %d windows", len(values), len(coverage), len(at), d.of)
	}
	var names []string
	var means []window.Means
	var covered []window.Coverage
	for k, i := range at {
		if int(i) >= len(d.engines.names) {
			return r, fmt.Errorf("metric %d of %d", i, len(d.engines.names))
		}
		name, limits := d.engines.names[i], d.engines.metrics[i]
		if name == "" {
			continue
		}
		var m window.Means
		c := window.Whole
		for w, position := range d.windows {
			m[w] = float64(values[k*d.of+position]) / 1000
			if math.IsNaN(m[w]) || m[w] < limits.least || m[w] > limits.most {
				return r, fmt.Errorf("%s: %v is outside %v to %v", name, m[w], limits.least, limits.most)
			}
			if len(coverage) > 0 {
				c[w] = min(window.Windows[w], time.Duration(coverage[k*d.of+position])*time.Second)
			}
		}
		names, means, covered = append(names, name), append(means, m), append(covered, c)
	}
	if len(coverage) == 0 {
		covered = nil
	}
	return fleet.NewReadings(names, means, covered), nil
}
