package fleet

import (
	"cmp"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"gpuscaler/scaler/window"
)

const (
	// coalesce is how long changes of peers' nodes are collected before those who
	// wait for one are woken: there may be thousands a second.
	coalesce = 100 * time.Millisecond
	// handover is how much older a node's readings have to be by the peer that
	// told of it so far before another one's are taken: while a node's scaler is
	// replaced, both may speak for it.
	handover = 3 * time.Second
)

// ErrOwn says that a peer speaks for this scaler's own node.
var ErrOwn = errors.New("it is this scaler's own node")

// Fleet is what is known of all nodes: this scaler's own, if it has one, and
// those that its peers tell of. Its methods may be called concurrently.
type Fleet struct {
	own *Local // nil: it has none

	mu      sync.RWMutex
	nodes   map[string]*told
	past    map[string]*Node // by name, that were dropped within window.Longest
	sorted  []*told          // by name; replaced, never changed; nil: to be made
	peers   map[*Peer]struct{}
	waiting int // how many peers have neither been heard nor failed
	pending atomic.Bool
	updated atomic.Pointer[chan struct{}]
}

// told is a node that a peer tells of.
type told struct {
	name  string
	node  atomic.Pointer[Node]
	owner *Peer // nil when its stream has ended; guarded by Fleet.mu
	// before is the node as it was when its scaler was restarted, at that time; nil when
	// that is long ago. Guarded by Fleet.mu, as is the next.
	before    *Node
	restarted time.Time
}

// New makes a fleet of this scaler's own node, or of none. It must be called
// before the node is told of anything.
func New(own *Local) *Fleet {
	f := &Fleet{own: own, nodes: map[string]*told{}, past: map[string]*Node{}, peers: map[*Peer]struct{}{}}
	f.updated.Store(new(make(chan struct{})))
	if own != nil {
		own.changed = f.wake
	}
	return f
}

// Own is this scaler's own node; nil if it has none.
func (f *Fleet) Own() *Node {
	if f.own == nil {
		return nil
	}
	return f.own.Node()
}

// Recall hands on what a peer last received of this scaler's own node: see Local.Recall.
func (f *Fleet) Recall(devices map[string]Readings, young map[Part]Readings) {
	if f.own != nil {
		f.own.Recall(devices)
		f.own.RecallYoung(young)
	}
}

// Before is another node as it was before its scaler started with a boot number; nil
// where that is not known.
func (f *Fleet) Before(name string, boot uint64) *Node {
	f.mu.RLock()
	defer f.mu.RUnlock()
	t, last := f.nodes[name], f.past[name]
	if t != nil {
		last = t.node.Load()
	}
	if last != nil && last.Boot != boot {
		return last
	}
	if t == nil {
		return nil
	}
	return t.before
}

// Node is one by its name; nil if nothing has been heard of it.
func (f *Fleet) Node(name string) *Node {
	if f.own != nil && f.own.name == name {
		return f.own.Node()
	}
	f.mu.RLock()
	t := f.nodes[name]
	f.mu.RUnlock()
	if t == nil {
		return nil
	}
	return t.node.Load()
}

// Nodes are all that have been heard, this scaler's own first, then by name.
func (f *Fleet) Nodes() []*Node {
	f.mu.RLock()
	sorted := f.sorted
	f.mu.RUnlock()
	if sorted == nil {
		sorted = f.sort()
	}
	all := make([]*Node, 0, len(sorted)+1)
	if f.own != nil {
		all = append(all, f.own.Node())
	}
	for _, t := range sorted {
		all = append(all, t.node.Load())
	}
	return all
}

// Updated is closed at the next change: of the own node at once, of others soon.
// Take it before the nodes.
func (f *Fleet) Updated() <-chan struct{} { return *f.updated.Load() }

func (f *Fleet) wake() {
	next := make(chan struct{})
	close(*f.updated.Swap(&next))
}

// changed wakes those who wait, with what changes until then.
func (f *Fleet) changed() {
	if f.pending.CompareAndSwap(false, true) {
		time.AfterFunc(coalesce, func() {
			f.pending.Store(false)
			f.wake()
		})
	}
}

// Unheard are the peers that have not told of any node yet, sorted. One on a node
// that another tells of, because its scaler is being replaced, is not missed.
func (f *Fleet) Unheard() (names []string) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	for p := range f.peers {
		if told := f.nodes[p.name] != nil || f.own != nil && f.own.name == p.name; !p.heard && !told {
			names = append(names, p.name)
		}
	}
	slices.Sort(names)
	return names
}

// Peer is one peer, over all of its streams. Its methods must not be called
// concurrently.
type Peer struct {
	fleet *Fleet
	name  string
	node  string // that its stream speaks for, or ""
	last  string // that it spoke for last; guarded by Fleet.mu
	heard bool   // it has told of a node; guarded by Fleet.mu, as is the next
	tried bool   // it has been heard, or could not be
}

// Join adds a peer, by the name that people know it by.
func (f *Fleet) Join(name string) *Peer {
	p := &Peer{fleet: f, name: name}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.peers[p] = struct{}{}
	f.waiting++
	return p
}

// Waiting is how many peers have neither been heard nor failed to be.
func (f *Fleet) Waiting() int {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.waiting
}

// try notes that the peer has been heard, or could not be.
func (p *Peer) try() {
	if !p.tried {
		p.tried = true
		p.fleet.waiting--
	}
}

// Apply takes over what a peer tells of its node, and returns what it replaces,
// if anything. A node that has another name than before takes the place of the
// one of before. What another peer says of the node goes before, unless it is
// older: then false is returned. It completes the node's windows where its scaler was restarted.
func (p *Peer) Apply(n *Node) (before *Node, taken bool, err error) {
	f := p.fleet
	if f.own != nil && f.own.name == n.Name {
		return nil, false, ErrOwn
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if p.node != "" && p.node != n.Name { // another name is no restart: nothing is kept of it
		p.leave(func(t *told) {
			f.drop(t.name)
			delete(f.past, t.name)
		})
	}
	t := f.nodes[n.Name]
	isNew := t == nil
	switch {
	case isNew:
		t = &told{name: n.Name}
		t.node.Store(f.past[n.Name]) // its scaler may have been away for longer than it is missed
		f.nodes[n.Name] = t
		f.sorted = nil
	case t.owner != p && t.owner != nil && n.Heard.Sub(t.node.Load().Heard) < handover,
		t.owner != p && n.Heard.Before(t.node.Load().Heard): // of one who knew more
		p.heard = true
		p.try()
		return nil, false, nil
	}
	t.owner, p.node, p.last, p.heard = p, n.Name, n.Name, true
	p.try()
	t.complete(n)
	if before = t.node.Swap(n); isNew {
		before = nil
	}
	f.changed()
	return before, true, nil
}

// Silent says that there is no stream, or not any more. Its node stays, and grows old.
func (p *Peer) Silent() {
	p.fleet.mu.Lock()
	defer p.fleet.mu.Unlock()
	p.leave(func(t *told) { t.owner = nil })
	p.try()
}

// Leave says that there is no such peer any more.
func (p *Peer) Leave() {
	p.Silent()
	p.fleet.mu.Lock()
	defer p.fleet.mu.Unlock()
	delete(p.fleet.peers, p)
}

// leave does what is to be done with the node that the peer speaks for.
func (p *Peer) leave(do func(t *told)) {
	if t := p.fleet.nodes[p.node]; t != nil && t.owner == p {
		do(t)
	}
	p.node = ""
}

// Forget drops the nodes whose peers have left, if they are silent for a while:
// another peer may be about to speak for one. Who is only not heard is missed.
func (f *Fleet) Forget(now time.Time, after time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, n := range f.past {
		if now.Sub(n.Heard) > window.Longest {
			delete(f.past, name)
		}
	}
	missed := make(map[string]bool, len(f.peers))
	for p := range f.peers {
		missed[p.last] = true
	}
	for name, t := range f.nodes {
		if t.owner == nil && !missed[name] && now.Sub(t.node.Load().Heard) > after {
			f.drop(name)
		}
	}
}

func (f *Fleet) drop(name string) {
	if t := f.nodes[name]; t != nil {
		f.past[name] = t.node.Load()
	}
	delete(f.nodes, name)
	f.sorted = nil
	f.changed()
}

func (f *Fleet) sort() []*told {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sorted = make([]*told, 0, len(f.nodes))
	for _, t := range f.nodes {
		f.sorted = append(f.sorted, t)
	}
	slices.SortFunc(f.sorted, func(a, b *told) int { return cmp.Compare(a.name, b.name) })
	return f.sorted
}
