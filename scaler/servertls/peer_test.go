package servertls

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/scaler/servertls/testca"
)

const peerName = "gpuscaler-peers"

func peerLeaf(names ...string) testca.Leaf {
	return testca.Leaf{Name: "peer", DNS: names, Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
}

// peer is a source with a certificate of a CA, and a trust in one.
func peer(t *testing.T, from, trusts *testca.CA, leaf testca.Leaf) *rig {
	t.Helper()
	r := &rig{t: t, dir: t.TempDir(), log: &lines{}}
	p := from.Issue(t, leaf)
	testca.Replace(t, r.path("crt"), p.Certificate)
	testca.Replace(t, r.path("key"), p.Key)
	testca.Replace(t, r.path("ca"), trusts.PEM)
	r.open(r.files("crt", "key", "ca"))
	return r
}

// handshake connects one to another, and says what each end has to say of it.
func handshake(t *testing.T, server, client *tls.Config) (serverErr, clientErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	done := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			done <- err
			return
		}
		defer conn.Close()
		done <- tls.Server(conn, server).Handshake()
	}()
	conn, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(10*time.Second)))
	clientErr = tls.Client(conn, client).Handshake()
	if clientErr != nil {
		_ = conn.Close()
	}
	return <-done, clientErr
}

func TestPeers(t *testing.T) {
	ours, foreign := testca.New(t, "ours"), testca.New(t, "foreign")
	good := peerLeaf(peerName, "other")
	for name, c := range map[string]struct {
		server, client *rig
		name           string
		serverSays     string // "": all is well
		clientSays     string
	}{
		"good":                        {server: peer(t, ours, ours, good), client: peer(t, ours, ours, good)},
		"good by a name":              {server: peer(t, ours, ours, good), client: peer(t, ours, ours, good), name: "other"},
		"a client of another CA":      {server: peer(t, ours, ours, good), client: peer(t, foreign, ours, good), serverSays: "unknown authority"},
		"a server of another CA":      {server: peer(t, foreign, ours, good), client: peer(t, ours, ours, good), clientSays: "unknown authority"},
		"a client of another name":    {server: peer(t, ours, ours, good), client: peer(t, ours, ours, peerLeaf("web")), name: peerName, serverSays: "not gpuscaler-peers"},
		"a server of another name":    {server: peer(t, ours, ours, peerLeaf("web")), client: peer(t, ours, ours, good), name: peerName, clientSays: "not gpuscaler-peers"},
		"a certificate for servers":   {server: peer(t, ours, ours, good), client: peer(t, ours, ours, testca.Leaf{DNS: []string{peerName}}), serverSays: "incompatible key usage"},
		"a client with an old one":    {server: peer(t, ours, ours, good), client: peer(t, ours, ours, func() testca.Leaf { l := good; l.NotAfter = time.Now().Add(-time.Minute); return l }()), serverSays: "expired"},
		"an own one without any name": {server: peer(t, ours, ours, good), client: peer(t, ours, ours, peerLeaf()), clientSays: "has no DNS name"},
	} {
		t.Run(name, func(t *testing.T) {
			server, _ := c.server.Peers(c.name)
			_, client := c.client.Peers(c.name)
			serverErr, clientErr := handshake(t, server, client)
			if c.serverSays == "" && c.clientSays == "" {
				require.NoError(t, serverErr)
				require.NoError(t, clientErr)
			}
			if c.serverSays != "" {
				require.ErrorContains(t, serverErr, c.serverSays)
			}
			if c.clientSays != "" {
				require.ErrorContains(t, clientErr, c.clientSays)
			}
		})
	}

	server, client := peer(t, ours, ours, good).Peers("")
	assert.Equal(t, uint16(tls.VersionTLS13), server.MinVersion)
	old := client.Clone()
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	_, err := handshake(t, server, old)
	require.ErrorContains(t, err, "protocol version")
	nobody := client.Clone()
	nobody.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &tls.Certificate{}, nil }
	err, _ = handshake(t, server, nobody)
	require.ErrorContains(t, err, "didn't provide a certificate")
}

// A new CA and new certificates are in use at the next handshake, on both ends.
func TestPeersReload(t *testing.T) {
	before, after := testca.New(t, "before"), testca.New(t, "after")
	a, b := peer(t, before, before, peerLeaf(peerName)), peer(t, before, before, peerLeaf(peerName))
	server, _ := a.Peers("")
	_, client := b.Peers("")
	serverErr, clientErr := handshake(t, server, client)
	require.NoError(t, serverErr)
	require.NoError(t, clientErr)
	replace := func(r *rig) {
		p := after.Issue(t, peerLeaf(peerName))
		testca.Replace(t, r.path("crt"), p.Certificate)
		testca.Replace(t, r.path("key"), p.Key)
		testca.Replace(t, r.path("ca"), after.PEM)
		r.refresh(time.Now())
	}
	replace(a)
	_, clientErr = handshake(t, server, client)
	require.ErrorContains(t, clientErr, "unknown authority", "only one end has it")
	replace(b)
	serverErr, clientErr = handshake(t, server, client)
	require.NoError(t, serverErr)
	require.NoError(t, clientErr)
}
