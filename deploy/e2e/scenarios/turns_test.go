package scenarios

import (
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
)

// How much of the machine a story takes, as shares. Most of a story is waiting: with 10
// shares a CPU two CPUs are busy for a third of the time, at a twelfth of what kept them
// busy when each look at a replica count was a request to the API server.
const (
	sharesOfCPU = 8
	oneShare    = 1 // a node, a workload and its ScaledObject
	ofFleet     = 3 // several nodes
	ofCluster   = 4 // a whole cluster, or a real node
)

// turns gives stories their share of the machine, those that may take longest first.
var turns = queue{free: sharesOfCPU * max(2, runtime.NumCPU())}

// queue is a number of shares and who waits for some.
type queue struct {
	mu      sync.Mutex
	free    int
	waiting []*turn
}

// turn is what a story waits for.
type turn struct {
	shares int
	within time.Duration
	come   chan struct{}
}

// turn has a story run beside others, when there is room for it and until it ends with
// all that it has to tidy up.
func (q *queue) turn(t *testing.T, shares int, within time.Duration) {
	t.Helper()
	t.Parallel()
	one := &turn{shares, within, make(chan struct{})}
	q.mu.Lock()
	at, _ := slices.BinarySearchFunc(q.waiting, one, func(a, b *turn) int {
		if a.within >= b.within { // whoever came first
			return -1
		}
		return 1
	})
	q.waiting = slices.Insert(q.waiting, at, one)
	q.mu.Unlock()
	q.give(0)
	<-one.come
	t.Cleanup(func() { q.give(shares) })
}

// give takes shares back and lets the next ones go.
func (q *queue) give(shares int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.free += shares
	for len(q.waiting) > 0 && q.waiting[0].shares <= q.free {
		q.free -= q.waiting[0].shares
		close(q.waiting[0].come)
		q.waiting = q.waiting[1:]
	}
}
