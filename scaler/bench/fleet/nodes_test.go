package fleet

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"gpuscaler/scaler/attribution"
	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/peer"
	"gpuscaler/scaler/window"
	"gpuscaler/shared/snapshot"
)

const (
	// gpus are in each node, each held by a pod of its own.
	gpus = 8
	// interval is that of peers' updates.
	interval = 2 * time.Second
	// nodesVar makes the test binary a process that plays so many nodes.
	nodesVar = "GPUSCALER_BENCH_NODES"
	// port is where all of them listen, each at an address of its own.
	port = "26001"
)

// address is a node's, in 127.0.0.0/8, which is all of this host.
func address(node int) string { return fmt.Sprintf("127.1.%d.%d", node/250, node%250+1) }

func nodeName(node int) string { return fmt.Sprintf("node-%d", node) }

func podName(node, gpu int) string { return fmt.Sprintf("pod-%d-%d", node, gpu) }

// workloads is how many there are: 200 in a large fleet, of some pods each in a
// small one.
func workloads(nodes int) int { return min(200, nodes*gpus/4) }

// workloadOf spreads each workload's pods over all nodes.
func workloadOf(node, gpu, nodes int) int { return (node*gpus + gpu) % workloads(nodes) }

// node is one that is played: it has new readings whenever it is looked at.
type node struct {
	name string
	pods *fleet.Pods
	ids  [gpus]string
}

func newNode(i, nodes int) *node {
	n := &node{name: nodeName(i)}
	var pods []*fleet.Pod
	for g := range gpus {
		n.ids[g] = fmt.Sprintf("GPU-%08x-0000-0000-0000-%012x", i, g)
		pods = append(pods, &fleet.Pod{
			Namespace: "bench", Name: podName(i, g), UID: podName(i, g), Node: n.name,
			Labels: map[string]string{"app": fmt.Sprintf("w-%d", workloadOf(i, g, nodes)), "pod-template-hash": "5d8f6b7c9"},
			Ready:  true, WasReady: true, Created: time.Now().Add(-time.Hour), Started: time.Now().Add(-time.Hour),
			Holding: attribution.Holding{Shares: []attribution.Share{{Device: n.ids[g], GPU: n.ids[g], Holders: 1, GPUHolders: 1}}},
		})
	}
	n.pods = fleet.NewPods(pods, nil, nil)
	return n
}

var names = snapshot.MetricNames()

// Before implements peer.Own: no node was restarted.
func (n *node) Before(string, uint64) *fleet.Node { return nil }

// Updated never is: each interval is enough.
func (n *node) Updated() <-chan struct{} { return nil }

// Own is the node with readings of the last second.
func (n *node) Own() *fleet.Node {
	heard := time.Now().Add(-rand.N(time.Second))
	out := fleet.Node{Name: n.name, Boot: 1, Heard: heard, Allocated: heard, PodsKnown: true}
	for g, id := range n.ids {
		means := make([]window.Means, len(snapshot.Metrics))
		for i := range means {
			for w := range means[i] {
				means[i][w] = 40 + 20*rand.Float64()
			}
		}
		d := fleet.Device{ID: id, Vendor: "nvidia", Model: "NVIDIA H100 80GB HBM3", Index: g, MemoryTotalMiB: 81559, Heard: heard,
			Motion: fleet.Motion{Known: true, WorkKnown: true, Worked: true}}
		out.Devices = append(out.Devices, d.Describe(fleet.NewReadings(names, means, nil), nil))
	}
	return out.With(n.pods)
}

// counted counts what is written to connections.
type counted struct {
	net.Listener
	bytes *atomic.Int64
}

func (c counted) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return countedConn{conn, c.bytes}, nil
}

type countedConn struct {
	net.Conn
	bytes *atomic.Int64
}

func (c countedConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.bytes.Add(int64(n))
	return n, err
}

// playNodes is the process that plays the nodes, until its input ends. It says
// how many bytes they have sent, each second.
func playNodes(nodes int) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var bytes atomic.Int64
	failed := make(chan error, nodes)
	for i := range nodes {
		l, err := net.Listen("tcp", net.JoinHostPort(address(i), port))
		if err != nil {
			return err
		}
		s := peer.NewServer(newNode(i, nodes), nil, "bench", interval, nil, slog.New(slog.DiscardHandler))
		go func() { failed <- s.Run(ctx, counted{l, &bytes}) }()
	}
	go func() {
		_, _ = os.Stdin.Read(make([]byte, 1)) // until the one who asked has gone
		failed <- nil
	}()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	fmt.Println(0)
	for {
		select {
		case err := <-failed:
			return err
		case <-tick.C:
			fmt.Println(bytes.Load())
		}
	}
}

// fleetOf is a running process that plays nodes.
type fleetOf struct{ bytes atomic.Int64 }

// startNodes starts it, and waits until all listen.
func startNodes(b *testing.B, nodes int) *fleetOf {
	b.Helper()
	f := &fleetOf{}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), nodesVar+"="+strconv.Itoa(nodes))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	must(b, err)
	out, err := cmd.StdoutPipe()
	must(b, err)
	must(b, cmd.Start())
	ready, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		text, first := make([]byte, 4096), true
		for {
			n, err := out.Read(text)
			if err != nil {
				return
			}
			lines := strings.Fields(string(text[:n]))
			if v, err := strconv.ParseInt(lines[len(lines)-1], 10, 64); err == nil {
				f.bytes.Store(v)
			}
			if first {
				close(ready)
				first = false
			}
		}
	}()
	b.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Process.Kill()
		<-ended
		_ = cmd.Wait()
	})
	select {
	case <-ready:
	case <-ended:
		b.Fatal("the process that plays the nodes has ended")
	}
	return f
}

func must(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}
