package peer

import (
	"context"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"gpuscaler/scaler/fleet"
	"gpuscaler/shared/snapshot"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var nopLog = slog.New(slog.DiscardHandler)

// peerNode is a node with a GPU and a server that tells of it.
type peerNode struct {
	*fleet.Local
	name    string
	address string
	stop    func()
	source  *fleet.Source
}

// start serves a node on address, or on any port.
func start(t *testing.T, name, address string) *peerNode {
	t.Helper()
	n := &peerNode{Local: fleet.NewLocal(name, 10*time.Second, nopLog, time.Now()), name: name}
	f := fleet.New(n.Local)
	n.source = n.Connect()
	l, err := net.Listen("tcp", address)
	require.NoError(t, err)
	n.address = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- NewServer(f, nil, "v1", 50*time.Millisecond, nil, nopLog).Run(ctx, l) }()
	n.stop = sync.OnceFunc(func() {
		cancel()
		assert.NoError(t, <-done)
	})
	t.Cleanup(n.stop)
	return n
}

func (n *peerNode) say(t *testing.T, utilization float64) {
	t.Helper()
	require.NoError(t, n.source.Apply(&snapshot.Sample{Writer: "nvmlsidecar", Devices: []snapshot.Device{
		{ID: "GPU-" + n.name, Vendor: "nvidia", Model: "NVIDIA H200", Values: map[string]float64{"gpu_utilization": utilization}},
	}}, time.Now()))
}

// addresses is a discovery that the test changes.
type addresses chan map[string]string

func (a addresses) Run(ctx context.Context, found func(map[string]string)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case all := <-a:
			found(all)
		}
	}
}

// changesOf collects what a mesh tells of pods.
type changesOf struct {
	mu   sync.Mutex
	pods []string
}

func (c *changesOf) PodsChanged(changed []fleet.Pod) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range changed {
		c.pods = append(c.pods, p.Name)
	}
}

func (c *changesOf) take() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := c.pods
	c.pods = nil
	slices.Sort(all)
	return all
}

// listen runs a mesh that has been asked.
func listen(t *testing.T, own *fleet.Local, d Discovery, listener Listener) (*fleet.Fleet, *Mesh) {
	t.Helper()
	f := fleet.New(own)
	m := NewMesh(Options{Fleet: f, Discovery: d, Listener: listener, Name: "test", Version: "v1", Log: nopLog})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		assert.NoError(t, <-done)
		assert.Empty(t, f.Nodes(), "what peers told is forgotten with them")
	})
	return f, m
}

func eventually(t *testing.T, check func() bool, what string) {
	t.Helper()
	require.Eventually(t, check, 10*time.Second, 5*time.Millisecond, what)
}

// utilization is the newest that is known of a node, or -1.
func utilization(f *fleet.Fleet, node string) float64 {
	n := f.Node(node)
	if n == nil || len(n.Devices) == 0 {
		return -1
	}
	v, ok := n.Devices[0].Value("gpu_utilization", 0)
	if !ok {
		return -1
	}
	return v
}

func TestMesh(t *testing.T) {
	a, b := start(t, "a", "127.0.0.1:0"), start(t, "b", "127.0.0.1:0")
	a.say(t, 10)
	b.say(t, 20)
	found := make(addresses)
	pods := &changesOf{}
	f, m := listen(t, nil, found, pods)
	select {
	case found <- nil:
		t.Fatal("it looks for peers before anyone has asked")
	case <-time.After(50 * time.Millisecond):
	}
	m.Asked()
	found <- map[string]string{a.address: "a", b.address: "b"}
	eventually(t, func() bool { return utilization(f, "a") == 10 && utilization(f, "b") == 20 }, "both are heard")
	eventually(t, m.Settled, "all are heard")

	a.say(t, 30)
	eventually(t, func() bool { return utilization(f, "a") == 30 }, "it follows")

	// What pods hold follows at once, and so does that they are gone.
	a.SetPods([]fleet.Pod{{Namespace: "shop", Name: "llm-0", UID: "uid", Labels: map[string]string{"app": "llm"}, Started: time.Now()}}, time.Now())
	require.NoError(t, a.Connect().Apply(&snapshot.Sample{Writer: "podresources", Allocation: &snapshot.Allocation{Containers: []snapshot.Container{
		{Namespace: "shop", Pod: "llm-0", Plugin: []snapshot.PluginDevices{{Resource: "nvidia.com/gpu", IDs: []string{"GPU-a"}}}},
	}}}, time.Now()))
	eventually(t, func() bool { return f.Node("a").Pod("uid") != nil }, "the pod")
	pod := f.Node("a").Pod("uid")
	assert.Equal(t, "GPU-a", pod.Shares[0].Device)
	assert.Equal(t, "a", pod.Node)
	eventually(t, func() bool { return slices.Equal(pods.take(), []string{"llm-0"}) }, "the listener is told")
	a.SetPods(nil, time.Now())
	eventually(t, func() bool { return f.Node("a").Had("uid") }, "it has gone")
	eventually(t, func() bool { return slices.Equal(pods.take(), []string{"llm-0"}) }, "the listener is told")

	// A peer that goes leaves what it knew, which grows old; one that comes back goes on.
	a.stop()
	eventually(t, func() bool { return time.Since(f.Node("a").Heard) > 300*time.Millisecond }, "it grows old")
	assert.InDelta(t, 30, utilization(f, "a"), 0)
	again := start(t, "a", a.address)
	again.say(t, 40)
	eventually(t, func() bool { return utilization(f, "a") == 40 }, "it is back")

	found <- map[string]string{again.address: "a"}
	eventually(t, func() bool {
		b.say(t, 99)
		return time.Since(f.Node("b").Heard) > 300*time.Millisecond
	}, "who is no peer any more is not listened to")
}

// When nobody has asked for a while nobody is listened to, until somebody asks.
func TestIdle(t *testing.T) {
	a := start(t, "a", "127.0.0.1:0")
	a.say(t, 10)
	f := fleet.New(nil)
	m := NewMesh(Options{Fleet: f, Discovery: Static{a.address}, Log: nopLog})
	m.idle, m.sweep = 1500*time.Millisecond, 50*time.Millisecond
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	for range 2 {
		m.Asked()
		eventually(t, func() bool { return utilization(f, "a") == 10 }, "it is heard")
		eventually(t, func() bool { return len(f.Nodes()) == 0 && !m.Settled() }, "nobody asks")
	}
	cancel()
	require.NoError(t, <-done)
}

// A scaler that finds itself among its peers leaves itself out.
func TestOwnAddress(t *testing.T) {
	me := start(t, "me", "127.0.0.1:0")
	own := fleet.NewLocal("me", time.Second, nopLog, time.Now())
	f := fleet.New(own)
	m := NewMesh(Options{Fleet: f, Discovery: Static{me.address}, Log: nopLog})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	m.Asked()
	eventually(t, m.Settled, "it is not waited for")
	assert.Len(t, f.Nodes(), 1)
	assert.Empty(t, f.Unheard())
	cancel()
	require.NoError(t, <-done)
}

// Who cannot be reached is not waited for.
func TestSettledWithoutThem(t *testing.T) {
	f, m := listen(t, nil, Static{"127.0.0.1:1"}, nil)
	assert.False(t, m.Settled(), "nobody has asked")
	m.Asked()
	eventually(t, m.Settled, "it has been tried")
	assert.Equal(t, []string{"127.0.0.1:1"}, f.Unheard())
}

// Who takes connections and says nothing is waited for, for a while.
func TestNotSettled(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	_, m := listen(t, nil, Static{l.Addr().String()}, nil)
	m.Asked()
	assert.Never(t, m.Settled, 2*time.Second, 50*time.Millisecond)
}

func TestParseAddresses(t *testing.T) {
	s, err := ParseStatic("a:6001, [::1]:6002")
	require.NoError(t, err)
	assert.Equal(t, Static{"a:6001", "[::1]:6002"}, s)
	for _, bad := range []string{"", "a", "a:", ":6001", "a:1,"} {
		_, err := ParseStatic(bad)
		require.ErrorContains(t, err, "allowed is host:port", bad)
	}
	_, err = ParseDNS("peers", nopLog)
	require.ErrorContains(t, err, "allowed is host:port")
}

func TestDNS(t *testing.T) {
	d, err := ParseDNS("localhost:6001", nopLog)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	found := make(chan map[string]string)
	done := make(chan error, 1)
	go func() {
		done <- d.Run(ctx, func(all map[string]string) {
			select {
			case found <- all:
			case <-ctx.Done():
			}
		})
	}()
	assert.Equal(t, "127.0.0.1:6001", (<-found)["127.0.0.1:6001"])
	cancel()
	require.NoError(t, <-done)
}
