package peer

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/scaler/fleet"
	pb "gpuscaler/scaler/peer/peerpb"
	"gpuscaler/scaler/window"
)

// TestEngines: a peer knows of engines what their own node knows, in the first message and
// in those that have numbers alone.
func TestEngines(t *testing.T) {
	now := time.Now()
	a := fleet.EngineKey{UID: "a", Engine: "vllm", Port: 8000, Path: "/metrics"}
	b := fleet.EngineKey{UID: "b"}
	known := &fleet.Engine{
		Name: "vllm", Address: "10.0.0.1:8000/metrics", Heard: now, Error: "timeout", Metrics: []string{"engine_waiting", "engine_ttft_ms"},
		Readings: fleet.NewReadings([]string{"engine_waiting", "engine_ttft_ms/0.95"}, []window.Means{{1, 2, 3, 4}, {-1, 20.5, 30, 40}},
			[]window.Coverage{{0, 15 * time.Second, 20 * time.Second, 20 * time.Second}, {0, 15 * time.Second, 20 * time.Second, 20 * time.Second}}),
	}
	node := func(all map[fleet.EngineKey]*fleet.Engine) *fleet.Node {
		return (&fleet.Node{Name: "n", Heard: now}).With(fleet.NewPods(nil, nil, nil)).WithEngines(all)
	}
	e, d := &encoder{start: now}, &decoder{}
	for i, all := range []map[fleet.EngineKey]*fleet.Engine{{a: known, b: {Error: "no port"}}, {a: known, b: {Error: "no port"}}, {b: {Error: "no port"}}, nil} {
		state := e.encode(node(all), now)
		assert.Equal(t, i != 1, state.GetLayout() != nil, "message %d", i)
		got, err := d.decode(state, now)
		require.NoError(t, err)
		require.Len(t, got.Engines(), len(all))
		for key, want := range all {
			have := got.Engine(key)
			require.NotNil(t, have)
			assert.Equal(t, want.Name+want.Address+want.Error, have.Name+have.Address+have.Error)
			assert.Equal(t, want.Metrics, have.Metrics)
			assert.Equal(t, want.Heard.IsZero(), have.Heard.IsZero())
			for _, name := range []string{"engine_waiting", "engine_ttft_ms/0.95"} {
				for _, w := range window.Windows {
					v, c, ok := want.Readings.Mean(name, w)
					v2, c2, ok2 := have.Readings.Mean(name, w)
					assert.Equal(t, fmt.Sprint(v, c, ok), fmt.Sprint(v2, c2, ok2), "%s over %s", name, w)
				}
			}
		}
	}
}

// TestEnginesBad: nothing that a peer says of engines is believed.
func TestEnginesBad(t *testing.T) {
	good := func() *pb.State {
		return &pb.State{
			Layout:  &pb.Layout{Node: "n", Engines: []*pb.Engine{{Uid: "a"}}, EngineMetrics: []string{"engine_waiting"}},
			Engines: []*pb.EngineReading{{AgeUs: new(int64(0)), Means: &pb.Means{Metrics: []uint32{0}, Means: []int64{1000, 1000, 1000, 1000}}}},
		}
	}
	_, err := (&decoder{}).decode(good(), time.Now())
	require.NoError(t, err)
	for want, change := range map[string]func(*pb.State){
		"2 readings of 1 engines":    func(s *pb.State) { s.Engines = append(s.Engines, s.GetEngines()[0]) },
		"0 readings of 1 engines":    func(s *pb.State) { s.Engines = nil },
		"metric 1 of 1":              func(s *pb.State) { s.GetEngines()[0].GetMeans().GetMetrics()[0] = 1 },
		"3 means and 0 coverages":    func(s *pb.State) { s.GetEngines()[0].GetMeans().Means = s.GetEngines()[0].GetMeans().GetMeans()[:3] },
		"-1 is outside 0 to":         func(s *pb.State) { s.GetEngines()[0].GetMeans().GetMeans()[2] = -1000 },
		"an age of":                  func(s *pb.State) { s.GetEngines()[0].AgeUs = new(int64(-1)) },
		"a text of 2000 bytes":       func(s *pb.State) { s.GetLayout().GetEngines()[0].Address = strings.Repeat("a", 2000) },
		"1 engines with 300 metrics": func(s *pb.State) { s.GetLayout().EngineMetrics = make([]string, 300) },
	} {
		s := good()
		change(s)
		_, err := (&decoder{}).decode(s, time.Now())
		assert.ErrorContains(t, err, want)
	}
	newer := good()
	newer.GetLayout().EngineMetrics[0] = "engine_of_the_future"
	n, err := (&decoder{}).decode(newer, time.Now())
	require.NoError(t, err)
	assert.Zero(t, n.Engine(fleet.EngineKey{UID: "a"}).Readings.Len())

	for want, ask := range map[string]*pb.Ask{
		`path "metrics"`: {Uid: "a", Path: "metrics"}, "port 70000": {Uid: "a", Port: 70000}, "quantile 1": {Uid: "a", Quantile: 1}, "UID": {Uid: strings.Repeat("a", 300)},
	} {
		_, err := wants(&pb.Asks{Asks: []*pb.Ask{ask}})
		assert.ErrorContains(t, err, want)
	}
	_, err = wants(&pb.Asks{Asks: make([]*pb.Ask, 1000)})
	assert.ErrorContains(t, err, "1000 engines are asked for; at most 256 are allowed")
}
