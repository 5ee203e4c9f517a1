package e2e

import (
	"crypto/x509"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	pb "github.com/kedacore/keda/v2/pkg/scalers/externalscaler"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"gpuscaler/scaler/servertls/testca"
)

// peers are scalers that hear of each other: nodes that play a recording each,
// and a front that has none.
type peers struct {
	addresses []string // of KEDA's ports, the front's last
	targets   []string // of the nodes' peer ports
	nodes     []*process
	clients   []*node
}

// startPeers starts a node for each recording, and a front.
func startPeers(t *testing.T, recordings ...string) *peers {
	t.Helper()
	p := &peers{}
	for range recordings {
		p.targets = append(p.targets, freeAddress(t))
	}
	for i, recording := range recordings {
		p.nodes = append(p.nodes, nil)
		p.addresses = append(p.addresses, freeAddress(t))
		p.startNode(t, i, recording)
	}
	p.addresses = append(p.addresses, freeAddress(t))
	p.startFront(t)
	return p
}

// startFront starts the front, and a client of each replica.
func (p *peers) startFront(t *testing.T, flags ...string) {
	t.Helper()
	front := start(t, nil, bin+"/scaler", p.flags(len(p.nodes), append(flags, "--nvml-socket=", "--node-name=front")...)...)
	for i, address := range p.addresses {
		conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		require.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		n := &node{t: t, conn: conn, ExternalScalerClient: pb.NewExternalScalerClient(conn), scaler: front, sidecar: front}
		if i < len(p.nodes) {
			n.scaler = p.nodes[i]
		}
		p.clients = append(p.clients, n)
		n.eventually(10*time.Second, n.serving)
	}
}

func (p *peers) startNode(t *testing.T, i int, recording string, flags ...string) {
	t.Helper()
	p.nodes[i] = start(t, nil, bin+"/scaler", p.flags(i, append(flags,
		"--replay=../../testdata/"+recording+".csv", fmt.Sprintf("--node-name=node-%d", i), "--peer-listen="+p.targets[i])...)...)
}

func (p *peers) flags(i int, more ...string) []string {
	return append([]string{"serve", "--kubernetes=off", "--listen=" + p.addresses[i], "--http=", "--log-level=debug",
		"--stale-after=5s", "--peer-interval=200ms", "--peers=" + strings.Join(p.targets, ",")}, more...)
}

func (p *peers) front() *node { return p.clients[len(p.clients)-1] }

func cluster3(aggregation string) map[string]string {
	return map[string]string{"scope": "cluster", "window": "0s", "aggregation": aggregation}
}

// is insists on a value of scope: cluster.
func (n *node) is(aggregation string, want float64) func() error {
	return func() error {
		v, err := n.value(cluster3(aggregation))
		if err == nil && v != want {
			err = fmt.Errorf("%s is %v; want %v", aggregation, v, want)
		}
		return err
	}
}

// TestPeers: whichever replica is asked answers for all nodes. One that dies, or
// that is stopped and says nothing more, is fresh for --stale-after and then
// left out; and is there again when it is back.
func TestPeers(t *testing.T) {
	p := startPeers(t, "two-60-80", "two-60-80", "twenty-steps")
	began := time.Now()
	_, err := p.front().value(cluster3("max"))
	require.Equal(t, codes.Unavailable, status.Code(err), "it has just begun to listen: %v", err)
	p.front().eventually(3*time.Second, p.front().is("max", 100))
	t.Logf("the first complete answer after %s", time.Since(began))
	for i, n := range p.clients {
		if i < len(p.nodes) {
			_, err := n.value(cluster3("max"))
			require.Equal(t, codes.Unavailable, status.Code(err), "its own node is not all: %v", err)
		}
		n.eventually(5*time.Second, n.is("max", 100))
		n.eventually(5*time.Second, n.is("sum", 60+80+60+80+1050))
		v, err := n.value(map[string]string{"scope": "cluster", "window": "0s", "gpuIndex": "1", "aggregation": "min"})
		require.NoError(t, err)
		assert.InDelta(t, 10, v, 0, "the second GPU of each node")
	}

	stopped := time.Now()
	require.NoError(t, p.nodes[2].cmd.Process.Signal(syscall.SIGSTOP))
	p.front().eventually(10*time.Second, p.front().is("max", 80))
	assert.Greater(t, time.Since(stopped), 2*time.Second, "it was fresh for --stale-after, less the 2 s of a recording's sample")
	p.clients[0].eventually(2*time.Second, p.clients[0].is("max", 80))
	require.NoError(t, p.nodes[2].cmd.Process.Signal(syscall.SIGCONT))
	p.front().eventually(5*time.Second, p.front().is("max", 100))

	p.nodes[2].kill()
	p.front().eventually(10*time.Second, p.front().is("max", 80))
	p.nodes[1].kill()
	p.front().eventually(10*time.Second, func() error {
		_, err := p.front().value(cluster3("max"))
		if status.Code(err) != codes.Unavailable || !contains(err, "nothing is known of 2 of 3 nodes", "node node-1: ") {
			return fmt.Errorf("over half are silent, and it says %w", err)
		}
		return nil
	})
	p.startNode(t, 2, "twenty-steps")
	p.front().eventually(10*time.Second, p.front().is("max", 100))
}

// TestFrontAlone: says what it is not for, and refuses what cannot be.
func TestFrontAlone(t *testing.T) {
	p := &peers{addresses: []string{freeAddress(t)}, targets: []string{"127.0.0.1:1"}}
	p.startFront(t)
	_, err := p.front().value(map[string]string{"scope": "node"})
	require.Equal(t, codes.FailedPrecondition, status.Code(err))
	assert.True(t, contains(err, "this scaler has no node of its own"))
}

// TestPeersWithTLS: with certificates of one CA and name peers hear of each other;
// one with a certificate of another CA is neither heard nor told anything.
func TestPeersWithTLS(t *testing.T) {
	dir, ours, foreign := t.TempDir(), testca.New(t, "ours"), testca.New(t, "foreign")
	require.NoError(t, os.WriteFile(dir+"/ca.crt", ours.PEM, 0o600))
	files := func(name string, ca *testca.CA) []string {
		pair := ca.Issue(t, testca.Leaf{Name: name, DNS: []string{"gpuscaler-peers"}, Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}})
		for file, content := range map[string][]byte{name + ".crt": pair.Certificate, name + ".key": pair.Key} {
			require.NoError(t, os.WriteFile(dir+"/"+file, content, 0o600))
		}
		return []string{"--peer-tls-cert-file=" + dir + "/" + name + ".crt", "--peer-tls-private-key-file=" + dir + "/" + name + ".key", "--peer-ca-file=" + dir + "/ca.crt"}
	}
	p := &peers{targets: []string{freeAddress(t), freeAddress(t), freeAddress(t)}, addresses: []string{freeAddress(t), freeAddress(t), freeAddress(t), freeAddress(t)}, nodes: make([]*process, 3)}
	p.startNode(t, 0, "one-75", files("a", ours)...)
	p.startNode(t, 1, "two-60-80", files("b", ours)...)
	p.startNode(t, 2, "twenty-steps", files("c", foreign)...)
	p.startFront(t, files("front", ours)...)
	p.front().eventually(10*time.Second, p.front().is("max", 80))
	v, err := p.front().value(cluster3("sum"))
	require.NoError(t, err)
	assert.InDelta(t, 75+60+80, v, 0)
	p.clients[2].eventually(10*time.Second, func() error {
		_, err := p.clients[2].value(cluster3("max"))
		if !contains(err, "nothing is known of 3 of 4 nodes", "nothing heard yet from peer") { // by its address it cannot tell itself from others
			return fmt.Errorf("got %w", err)
		}
		return nil
	})
	assert.Contains(t, p.nodes[2].log(), "peer is not heard")
}
