package peer

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/profiles"
	"gpuscaler/scaler/evaluate"
	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/trigger"
	"gpuscaler/shared/snapshot"
)

// An hour, fifty times as fast: peers tell each 40 ms instead of 2 s, and are
// stale after 200 ms instead of 10 s.
const (
	fast       = 50
	churnFor   = time.Hour / fast
	churnEvery = interval / fast
	churnStale = 10 * time.Second / fast
	interval   = 2 * time.Second
	// late is how long the fastest message of a stream may be under way on a busy
	// machine: by so much a reading may be older than it is taken for.
	late = 100 * time.Millisecond
)

// restless is a node that comes, goes, and stalls.
type restless struct {
	name    string
	address string
	stop    func()
	mu      sync.Mutex
	stalled time.Time // until then
}

// startRestless starts a node whose only reading is when it was taken, in
// milliseconds since began.
func startRestless(t *testing.T, name string, began time.Time) *restless {
	t.Helper()
	n := &restless{name: name}
	local := fleet.NewLocal(name, churnStale, nopLog, time.Now())
	f := fleet.New(local)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	n.address = l.Addr().String()
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { assert.NoError(t, NewServer(f, nil, "v1", churnEvery, nil, nopLog).Run(ctx, l)) })
	running.Go(func() {
		source := local.Connect()
		for ctx.Err() == nil {
			n.mu.Lock()
			stalled := time.Now().Before(n.stalled)
			n.mu.Unlock()
			if !stalled {
				now := time.Now()
				assert.NoError(t, source.Apply(&snapshot.Sample{Writer: "test", Devices: []snapshot.Device{
					{ID: "GPU-" + name, Vendor: "nvidia", Values: map[string]float64{"x_taken": float64(now.Sub(began).Milliseconds())}},
				}}, now))
			}
			time.Sleep(churnEvery / 2)
		}
	})
	n.stop = func() { cancel(); running.Wait() }
	return n
}

func (n *restless) stall(d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.stalled = time.Now().Add(d)
}

// TestChurn: while nodes come, go and stall at random, no answer has a reading
// that is older than --stale-after, and each is of as many nodes as it says. When
// all is over nothing is left.
func TestChurn(t *testing.T) {
	if testing.Short() {
		t.Skip("an hour takes more than a minute")
	}
	t.Parallel()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	parsed, err := trigger.Parse(map[string]string{"metricType": "x_taken", "targetValue": "1", "scope": "cluster", "aggregation": "min", "window": "0s"}, profiles.Builtin())
	require.NoError(t, err)

	f := fleet.New(nil)
	found := make(addresses)
	m := NewMesh(Options{Fleet: f, Discovery: found, Log: nopLog})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	m.Asked()
	found <- nil
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	goroutines := runtime.NumGoroutine()

	began := time.Now()
	nodes := map[string]*restless{}
	tell := func() {
		all := map[string]string{}
		for _, n := range nodes {
			all[n.address] = n.name
		}
		found <- all
	}
	answers, refusals, gaps, names := 0, 0, 0, 0
	next := time.Now()
	for time.Since(began) < churnFor {
		if now := time.Now(); now.After(next) {
			next = now.Add(rand.N(25 * churnEvery))
			switch i := random.IntN(10); {
			case len(nodes) < 5 || (i < 3 && len(nodes) < 25):
				names++
				n := startRestless(t, fmt.Sprint("n", names), began)
				nodes[n.name] = n
				tell()
			case i < 5: // it is gone before anyone says so
				n := anyOf(nodes)
				n.stop()
				delete(nodes, n.name)
				if random.IntN(2) == 0 {
					tell()
				}
			default:
				anyOf(nodes).stall(time.Duration(random.Int64N(int64(3 * churnStale))))
			}
		}
		now := time.Now()
		f.Forget(now, departed/fast)
		d, err := evaluate.ForCluster(&parsed, f, now, churnStale)
		if err != nil {
			refusals++
		} else {
			answers++
			if d.Silent > 0 {
				gaps++
			}
			oldest := now.Sub(began.Add(time.Duration(d.Value) * time.Millisecond))
			require.LessOrEqual(t, oldest, churnStale+late, "a reading that is too old")
			require.Len(t, d.Used, d.Nodes-d.Silent, "not of as many nodes as it says")
		}
		time.Sleep(2 * time.Millisecond)
	}
	t.Logf("%d answers, %d of them with silent nodes, %d refusals, %d nodes", answers, gaps, refusals, names)
	assert.Positive(t, gaps)
	assert.Greater(t, answers, refusals)

	for _, n := range nodes {
		n.stop()
	}
	nodes = nil
	tell()
	eventually(t, func() bool {
		f.Forget(time.Now(), departed/fast)
		return runtime.NumGoroutine() <= goroutines+5 && len(f.Nodes()) == 0
	}, "goroutines have ended, nodes are forgotten")
	assert.Empty(t, f.Unheard())
	runtime.GC()
	runtime.ReadMemStats(&after)
	assert.Less(t, float64(after.HeapAlloc), float64(before.HeapAlloc)+4<<20, "memory has been given back")
	cancel()
	require.NoError(t, <-done)
}

func anyOf(nodes map[string]*restless) *restless {
	for _, n := range nodes {
		return n
	}
	return nil
}
