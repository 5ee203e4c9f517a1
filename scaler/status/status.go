// Package status serves the plain HTTP port: liveness, readiness and the state
// of the node as JSON, for people and probes.
package status

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"slices"
	"time"

	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/window"
)

// Handler serves /healthz (200 while the process works), /readyz (503 with the
// reason while ready returns one), /state, and /metrics by a handler of its own.
func Handler(nodes *fleet.Fleet, ready func(now time.Time) error, metrics http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := ready(time.Now()); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /state", func(w http.ResponseWriter, _ *http.Request) {
		now := time.Now()
		state := Describe(nodes, now)
		if err := ready(now); err != nil {
			state.NotReady = err.Error()
		}
		w.Header().Set("Content-Type", "application/json")
		out := json.NewEncoder(w)
		out.SetIndent("", "  ")
		_ = out.Encode(state)
	})
	return mux
}

// State is the answer of /state.
type State struct {
	// Node is this scaler's own; absent where it has none.
	Node string `json:"node,omitempty"`
	// NotReady is why the node's data cannot be used, if it cannot.
	NotReady string   `json:"notReady,omitempty"`
	Writers  []Writer `json:"writers"`
	Devices  []Device `json:"devices"`
	// Pods are those that hold devices; absent where that is not known.
	Pods []Pod `json:"pods,omitempty"`
	// Engines are the inference engines in the node's pods that are read.
	Engines []Engine `json:"engines,omitempty"`
	// KubeletAgeSeconds is how long ago the kubelet said what they hold.
	KubeletAgeSeconds *float64 `json:"kubeletAgeSeconds,omitempty"`
	// LeftOut counts the readings that could not be used since the start.
	LeftOut uint64 `json:"leftOutTotal"`
	// Peers are other nodes that have been heard, Unheard the peers that have not
	// told of any.
	Peers   []Peer   `json:"peers,omitempty"`
	Unheard []string `json:"unheard,omitempty"`
}

// Peer is another node, of which its scaler tells.
type Peer struct {
	Node string `json:"node"`
	// AgeSeconds is how old its newest reading is; absent: it has none.
	AgeSeconds *float64 `json:"ageSeconds,omitempty"`
	Devices    int      `json:"devices"`
	Pods       int      `json:"pods"`
}

// Writer is one connected reader.
type Writer struct {
	Name       string  `json:"name"`
	Version    string  `json:"version,omitempty"`
	AgeSeconds float64 `json:"ageSeconds"`
	Error      string  `json:"error,omitempty"`
	// Refused is how many devices it may not open.
	Refused int `json:"refusedDevices,omitempty"`
}

// Device is one device with the means of its metrics.
type Device struct {
	ID             string  `json:"id"`
	Vendor         string  `json:"vendor"`
	Index          int     `json:"index"`
	Model          string  `json:"model"`
	Parent         string  `json:"parent,omitempty"`
	Instance       int     `json:"instance,omitempty"`
	Profile        string  `json:"profile,omitempty"`
	MemoryTotalMiB float64 `json:"memoryTotalMiB,omitempty"`
	AgeSeconds     float64 `json:"ageSeconds"`
	Error          string  `json:"error,omitempty"`
	// States are the conditions that hold, as throttled_hw_thermal; Errors are
	// counted by name, as xid_79.
	States []string           `json:"states,omitempty"`
	Errors map[string]float64 `json:"errors,omitempty"`
	// Metrics are by name, then by window.
	Metrics map[string]map[string]float64 `json:"metrics"`
}

// Pod is one pod with what it holds.
type Pod struct {
	Namespace string   `json:"namespace"`
	Name      string   `json:"name"`
	Ready     bool     `json:"ready"`
	Holds     []Holds  `json:"holds"`
	Unknown   []string `json:"unknown,omitempty"`
}

// Engine is the inference engine of a pod.
type Engine struct {
	Namespace string `json:"namespace"`
	Pod       string `json:"pod"`
	// Engine is which one it is, Address where it is read; absent: not known yet.
	Engine  string `json:"engine,omitempty"`
	Address string `json:"address,omitempty"`
	// AgeSeconds is how old its newest answer is; absent: there was none.
	AgeSeconds *float64 `json:"ageSeconds,omitempty"`
	Error      string   `json:"error,omitempty"`
	// From are the names of its own metrics that are used.
	From []string `json:"from,omitempty"`
	// Metrics are by name, a latency's with its quantile, then by window. A latency of -1
	// is none: no request says anything of it.
	Metrics map[string]map[string]float64 `json:"metrics"`
}

// Holds is a device that a pod shares with others: with itself, there are so many
// holders.
type Holds struct {
	Device  string `json:"device"`
	Holders int    `json:"holders"`
}

// health has of a device what holds and what is not 0.
func health(d *fleet.Device) (states []string, counted map[string]float64) {
	if d.Health == nil {
		return nil, nil
	}
	for state, holds := range d.Health.States {
		if holds {
			states = append(states, state)
		}
	}
	slices.Sort(states)
	counted = maps.Clone(d.Health.Errors)
	maps.DeleteFunc(counted, func(_ string, n float64) bool { return n == 0 })
	return states, counted
}

// Describe renders a fleet for JSON: its own node whole, of others how old they are.
func Describe(f *fleet.Fleet, now time.Time) State {
	own := f.Own()
	s := State{Writers: []Writer{}, Devices: []Device{}, Unheard: f.Unheard()}
	if own != nil {
		s.describe(own, now)
	}
	for _, n := range f.Nodes() {
		if n == own {
			continue
		}
		p := Peer{Node: n.Name, Devices: len(n.Devices), Pods: len(n.Pods)}
		if !n.Heard.IsZero() {
			p.AgeSeconds = new(now.Sub(n.Heard).Seconds())
		}
		s.Peers = append(s.Peers, p)
	}
	return s
}

func (s *State) describe(n *fleet.Node, now time.Time) {
	s.Node, s.LeftOut = n.Name, n.LeftOut
	for _, w := range n.Writers {
		s.Writers = append(s.Writers, Writer{w.Name, w.Version, now.Sub(w.Heard).Seconds(), w.Error, w.Refused})
	}
	for _, d := range n.Devices {
		metrics := byWindow(d.Means())
		states, counted := health(d)
		s.Devices = append(s.Devices, Device{
			ID: d.ID, Vendor: d.Vendor, Index: d.Index, Model: d.Model, Parent: d.Parent, Instance: d.Instance,
			Profile: d.Profile, MemoryTotalMiB: d.MemoryTotalMiB, AgeSeconds: now.Sub(d.Heard).Seconds(),
			Error: d.Error, States: states, Errors: counted, Metrics: metrics,
		})
	}
	s.Engines = engines(n, now)
	if !n.Allocated.IsZero() {
		s.KubeletAgeSeconds = new(now.Sub(n.Allocated).Seconds())
	}
	for _, p := range n.Pods {
		if len(p.Shares)+len(p.Unknown) == 0 {
			continue
		}
		pod := Pod{Namespace: p.Namespace, Name: p.Name, Ready: p.Ready, Holds: []Holds{}, Unknown: p.Unknown}
		for _, share := range p.Shares {
			pod.Holds = append(pod.Holds, Holds{share.Device, share.Holders})
		}
		s.Pods = append(s.Pods, pod)
	}
}

// engines are those of the node's pods, in the order of the pods.
func engines(n *fleet.Node, now time.Time) (all []Engine) {
	for _, key := range slices.SortedFunc(maps.Keys(n.Engines()), fleet.EngineKey.Compare) {
		pod, e := n.Pod(key.UID), n.Engine(key)
		if pod == nil {
			continue // it has just gone
		}
		out := Engine{Namespace: pod.Namespace, Pod: pod.Name, Engine: e.Name, Address: e.Address, Error: e.Error, From: e.From, Metrics: byWindow(e.Readings)}
		if !e.Heard.IsZero() {
			out.AgeSeconds = new(now.Sub(e.Heard).Seconds())
		}
		all = append(all, out)
	}
	return all
}

func byWindow(r fleet.Readings) map[string]map[string]float64 {
	metrics := make(map[string]map[string]float64, r.Len())
	for name, means := range r.All() {
		metrics[name] = make(map[string]float64, len(means))
		for i, span := range window.Windows {
			metrics[name][label(span)] = means[i]
		}
	}
	return metrics
}

// label is the window as triggers name it.
func label(span time.Duration) string {
	if span >= time.Minute {
		return fmt.Sprintf("%dm", span/time.Minute)
	}
	return fmt.Sprintf("%ds", span/time.Second)
}

// Run serves h on l until ctx is done, and then lets requests finish for a
// second. It closes l.
func Run(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	server := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      10 * time.Second,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	done := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(done)
		late, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if server.Shutdown(late) != nil {
			_ = server.Close()
		}
	})
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serving HTTP: %w", err)
	}
	<-done // Serve returns when Shutdown begins
	return nil
}
