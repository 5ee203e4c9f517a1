package fleet

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/scaler/window"
)

// heard is a node whose readings are from s seconds after the start.
func heard(name string, s float64) *Node { return &Node{Name: name, Heard: at(s)} }

func names(nodes []*Node) (names []string) {
	for _, n := range nodes {
		names = append(names, n.Name)
	}
	return names
}

// tell insists on whether what a peer tells is taken over.
func tell(t *testing.T, p *Peer, n *Node, want bool) {
	t.Helper()
	_, taken, err := p.Apply(n)
	require.NoError(t, err)
	assert.Equal(t, want, taken)
}

func TestFleet(t *testing.T) {
	f := New(newLocal())
	own := f.Own().Name
	b, a := f.Join("10.0.0.2:6001"), f.Join("10.0.0.1:6001")
	assert.Equal(t, []string{"10.0.0.1:6001", "10.0.0.2:6001"}, f.Unheard())
	tell(t, b, heard("b", 1), true)
	assert.Equal(t, 1, f.Waiting())
	a.Silent()
	assert.Equal(t, 0, f.Waiting(), "it could not be heard")
	assert.Equal(t, []string{"10.0.0.1:6001"}, f.Unheard())
	tell(t, a, heard("a", 1), true)
	next := f.Join("a")
	assert.Empty(t, f.Unheard(), "the one that replaces it is not missed")
	next.Leave()
	assert.Equal(t, []string{own, "a", "b"}, names(f.Nodes()))
	assert.Equal(t, at(1), f.Node("b").Heard)
	assert.Same(t, f.Own(), f.Node(own))
	assert.Nil(t, f.Node("c"))

	before, taken, err := b.Apply(heard("b", 3))
	require.NoError(t, err)
	assert.True(t, taken)
	assert.Equal(t, at(1), before.Heard)

	_, _, err = a.Apply(heard(own, 3))
	require.ErrorIs(t, err, ErrOwn)

	tell(t, b, heard("c", 4), true)
	assert.Equal(t, []string{own, "a", "c"}, names(f.Nodes()), "it has another name now")

	front := New(nil)
	assert.Nil(t, front.Own())
	assert.Empty(t, front.Nodes())
}

// While a node's scaler is replaced two may speak for it: one at a time is
// believed, and nothing ever gets older.
func TestSameNodeTwice(t *testing.T) {
	f := New(nil)
	old, next := f.Join("old"), f.Join("next")
	tell(t, old, heard("n", 10), true)
	tell(t, next, heard("n", 10.5), false)
	tell(t, old, heard("n", 11), true)
	tell(t, next, heard("n", 13.9), false)
	tell(t, next, heard("n", 14), true)
	tell(t, old, heard("n", 11), false)
	next.Silent()
	tell(t, old, heard("n", 12), false)
	assert.Equal(t, at(14), f.Node("n").Heard, "it stays, and grows old")
	tell(t, old, heard("n", 15), true)
	next.Silent() // what it spoke for is another's now
	tell(t, f.Join("third"), heard("n", 15.5), false)
	old.Leave()
	tell(t, f.Join("fourth"), heard("n", 15.5), true)
}

func TestForget(t *testing.T) {
	f := New(nil)
	p, q := f.Join("p"), f.Join("q")
	tell(t, p, heard("p", 0), true)
	tell(t, q, heard("q", 0), true)
	p.Silent()
	f.Forget(at(100), 10*time.Second)
	assert.Len(t, f.Nodes(), 2, "it is missed as long as it is a peer")
	p.Leave()
	f.Forget(at(10), 10*time.Second)
	assert.Len(t, f.Nodes(), 2, "another may be about to speak for it")
	f.Forget(at(11), 10*time.Second)
	assert.Equal(t, []string{"q"}, names(f.Nodes()))
	q.Leave()
	f.Forget(at(11), 0)
	assert.Empty(t, f.Nodes())
	assert.Empty(t, f.peers)
	assert.Zero(t, f.Waiting())
}

// A node whose scaler is away for longer than the node is missed, as in an update that
// pulls an image, still has its windows completed.
func TestAwayForLong(t *testing.T) {
	node := func(boot uint64, s, mean float64, covered time.Duration) *Node {
		n := heard("n", s)
		n.Boot = boot
		n.Devices = []*Device{Device{ID: "GPU-0"}.Describe(NewReadings([]string{"gpu_utilization"},
			[]window.Means{{mean, mean, mean, mean}}, []window.Coverage{{0, covered, covered, covered}}), nil)}
		return n
	}
	f := New(nil)
	old := f.Join("old")
	tell(t, old, node(1, 0, 50, window.Longest), true)
	old.Leave()
	f.Forget(at(40), 30*time.Second)
	require.Nil(t, f.Node("n"), "it is not missed any more")
	require.NotNil(t, f.Before("n", 2))
	next := f.Join("new")
	before, taken, err := next.Apply(node(2, 60, 100, 30*time.Second))
	require.NoError(t, err)
	assert.True(t, taken)
	assert.Nil(t, before, "all of its pods are news")
	v, covered, _ := f.Node("n").Devices[0].Readings().Mean("gpu_utilization", window.Longest)
	assert.InDelta(t, (30*100+240*50)/270.0, v, 0.01, "of the minute in between nothing is known")
	assert.Equal(t, 270*time.Second, covered)

	next.Leave()
	f.Forget(at(100), 30*time.Second)
	f.Forget(at(361), 30*time.Second)
	assert.Nil(t, f.Before("n", 3), "longer ago than any window")
	assert.Empty(t, f.past)
}

// Thousands of updates a second wake those who wait a few times.
func TestPeersWakeTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := New(nil)
		p := f.Join("p")
		updated := f.Updated()
		for i := range 100 {
			tell(t, p, heard("p", float64(i)), true)
		}
		assert.Equal(t, updated, f.Updated(), "not yet")
		time.Sleep(coalesce)
		synctest.Wait()
		<-updated
		updated = f.Updated()
		tell(t, p, heard("p", 1000), true)
		time.Sleep(coalesce)
		synctest.Wait()
		<-updated
	})
}
