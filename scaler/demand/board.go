package demand

import (
	"maps"
	"slices"
	"sync"
	"time"
)

const (
	// wanted is for how long engines are read after somebody asked.
	wanted = 5 * time.Minute
	// mostWants bounds what is remembered of names that anyone can make up.
	mostWants = 2048
	// MostAsks is how many engines of one node one scaler may ask for.
	MostAsks = 256
)

// Want is that a trigger is about engines: those of a ScaledObject's workload. It is
// comparable.
type Want struct {
	Namespace, Name, PodSelector string
	// How the engine of each pod is read; without a UID.
	How Ask
}

// Board is where it is known which engines are wanted: by this scaler's own triggers, of
// any node, and by its peers, of this node. Its methods may be called concurrently, and
// do not wait.
type Board struct {
	own string // the name of this scaler's node, or ""

	mu      sync.Mutex
	wants   map[Want]time.Time // when each was asked last
	places  map[string][]Ask   // by node
	peers   map[*Peer]struct{}
	updated chan struct{}
}

// NewBoard makes a board of the scaler of a node; "" where it has none.
func NewBoard(own string) *Board {
	return &Board{own: own, wants: map[Want]time.Time{}, places: map[string][]Ask{}, peers: map[*Peer]struct{}{}, updated: make(chan struct{})}
}

// Want says that a trigger asks for engines, now. With too many different ones, those
// beyond are not read.
func (b *Board) Want(w Want, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	last, known := b.wants[w]
	switch {
	case known && now.Sub(last) < time.Second: // mostly
	case known:
		b.wants[w] = now
	case len(b.wants) < mostWants:
		b.wants[w] = now
		b.wake() // it is placed at once
	}
}

// Wants are those that somebody asked for a short time ago.
func (b *Board) Wants(now time.Time) []Want {
	b.mu.Lock()
	defer b.mu.Unlock()
	maps.DeleteFunc(b.wants, func(_ Want, at time.Time) bool { return now.Sub(at) >= wanted })
	return slices.Collect(maps.Keys(b.wants))
}

// Place takes over which engines of which nodes the wants are about. It sorts the asks.
func (b *Board) Place(byNode map[string][]Ask) {
	for node, asks := range byNode {
		slices.SortFunc(asks, compare)
		asks = slices.Compact(asks)
		byNode[node] = asks[:min(len(asks), MostAsks)]
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if maps.EqualFunc(b.places, byNode, slices.Equal) {
		return
	}
	b.places = byNode
	b.wake()
}

// Of are the engines of a node that this scaler's triggers want. Read-only.
func (b *Board) Of(node string) []Ask {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.places[node]
}

// Updated is closed at the next change of Of, or when something new is wanted.
func (b *Board) Updated() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.updated
}

func (b *Board) wake() {
	close(b.updated)
	b.updated = make(chan struct{})
}

// Here are the engines of this scaler's own node that anyone wants.
func (b *Board) Here() []Ask {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := map[Ask]struct{}{}
	if b.own != "" {
		for _, ask := range b.places[b.own] {
			all[ask] = struct{}{}
		}
	}
	for p := range b.peers {
		for _, ask := range p.asks {
			all[ask] = struct{}{}
		}
	}
	return slices.Collect(maps.Keys(all))
}

// Peer is another scaler that wants engines of this one's node.
type Peer struct {
	b    *Board
	asks []Ask
}

// Join takes in a peer, which asks for nothing yet.
func (b *Board) Join() *Peer {
	p := &Peer{b: b}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.peers[p] = struct{}{}
	return p
}

// Ask takes over all that the peer wants.
func (p *Peer) Ask(asks []Ask) {
	p.b.mu.Lock()
	defer p.b.mu.Unlock()
	p.asks = asks
}

// Leave forgets what the peer wanted.
func (p *Peer) Leave() {
	p.b.mu.Lock()
	defer p.b.mu.Unlock()
	delete(p.b.peers, p)
}
