package e2e

import (
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	pb "github.com/kedacore/keda/v2/pkg/scalers/externalscaler"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"gpuscaler/scaler/servertls"
	"gpuscaler/scaler/servertls/testca"
)

// reload is how long a test waits for a new file to be in use.
const reload = servertls.ReloadPeriod + 10*time.Second

// secured is a scaler with TLS on a recording, and the folder of its files.
type secured struct {
	t          *testing.T
	dir        string
	address    string
	ca, client *testca.CA
	process    *process
}

// startSecured starts a scaler with files as a Secret has them. files puts
// them into the folder.
func startSecured(t *testing.T, mutual bool, files func(s *secured)) *secured {
	t.Helper()
	s := &secured{t: t, dir: t.TempDir(), address: freeAddress(t), ca: testca.New(t, "server CA"), client: testca.New(t, "client CA")}
	files(s)
	flags := []string{"--tls-cert-file", s.dir + "/tls.crt", "--tls-private-key-file", s.dir + "/tls.key"}
	if mutual {
		flags = append(flags, "--client-ca-file", s.dir+"/ca.crt")
	}
	s.process = startReplay(t, nil, s.address, flags...)
	return s
}

// startReplay starts a scaler that needs no sidecar, and waits until it serves.
func startReplay(t *testing.T, environment []string, address string, flags ...string) *process {
	t.Helper()
	p := start(t, environment, bin+"/scaler", append([]string{"serve", "--replay", "../../testdata/one-75.csv", "--listen", address, "--http", ""}, flags...)...)
	waitFor(t, 15*time.Second, func() bool { return strings.Contains(p.log(), "msg=serving") })
	return p
}

// plain puts the files into the folder as they are.
func plain(s *secured) {
	s.put(s.ca.Issue(s.t, testca.Leaf{Name: "first"}))
	testca.Replace(s.t, s.dir+"/ca.crt", s.client.PEM)
}

func (s *secured) put(p testca.Pair) {
	testca.Replace(s.t, s.dir+"/tls.key", p.Key)
	testca.Replace(s.t, s.dir+"/tls.crt", p.Certificate)
}

// trusting is a client's configuration as KEDA makes it from caCert,
// tlsClientCert and tlsClientKey.
func (s *secured) trusting(certificates ...tls.Certificate) *tls.Config {
	c := &tls.Config{RootCAs: s.ca.Pool(), MinVersion: tls.VersionTLS12}
	if len(certificates) > 0 {
		// Shown whether or not the server says that it takes their CA.
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certificates[0], nil }
	}
	return c
}

// connect is a new connection; nil is one without TLS.
func (s *secured) connect(config *tls.Config) *grpc.ClientConn {
	s.t.Helper()
	c := insecure.NewCredentials()
	if config != nil {
		c = credentials.NewTLS(config)
	}
	conn, err := grpc.NewClient(s.address, grpc.WithTransportCredentials(c))
	require.NoError(s.t, err)
	s.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// ask calls the scaler once on a connection.
func ask(conn *grpc.ClientConn) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err := pb.NewExternalScalerClient(conn).GetMetricSpec(ctx, &pb.ScaledObjectRef{Name: "llm", Namespace: "default"})
	return err
}

func (s *secured) works(config *tls.Config) {
	s.t.Helper()
	require.NoError(s.t, ask(s.connect(config)))
}

// refuses insists that no call comes through, nor anything else. gRPC does not
// always say why; the connection itself does.
func (s *secured) refuses(config *tls.Config, why string) {
	s.t.Helper()
	err := ask(s.connect(config))
	assert.Equal(s.t, codes.Unavailable, status.Code(err), "%v", err)
	if config == nil {
		return
	}
	config = config.Clone()
	config.NextProtos = []string{"h2"}
	conn, err := tls.Dial("tcp", s.address, config)
	if err == nil { // with TLS 1.3 the client is told after it has ended its part
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(10 * time.Second))
		for err == nil {
			_, err = conn.Read(make([]byte, 100))
		}
	}
	assert.ErrorContains(s.t, err, why)
}

// shown is the common name of the certificate that a new connection sees.
func (s *secured) shown(certificates ...tls.Certificate) string {
	config := s.trusting(certificates...)
	config.NextProtos = []string{"h2"}
	conn, err := tls.Dial("tcp", s.address, config)
	if err != nil {
		return err.Error()
	}
	defer conn.Close()
	assert.Equal(s.t, "h2", conn.ConnectionState().NegotiatedProtocol)
	return conn.ConnectionState().PeerCertificates[0].Subject.CommonName
}

func (s *secured) becomes(want string, certificates ...tls.Certificate) {
	s.t.Helper()
	waitFor(s.t, reload, func() bool { return s.shown(certificates...) == want })
}

func TestPlaintextSaysSo(t *testing.T) {
	t.Parallel()
	address := freeAddress(t)
	p := startReplay(t, nil, address)
	conn, err := dial(address)
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, ask(conn))
	assert.Equal(t, 1, strings.Count(p.log(), "plaintext"), p.log())
	assert.Contains(t, p.log(), `level=WARN msg="KEDA's port is plaintext`)
	assert.Contains(t, p.log(), " tls=off")
}

func TestServerTLS(t *testing.T) {
	t.Parallel()
	s := startSecured(t, false, plain)
	assert.Contains(t, s.process.log(), " tls=server")
	assert.NotContains(t, s.process.log(), "plaintext")
	s.works(s.trusting())
	s.refuses(nil, "")
	s.refuses(&tls.Config{RootCAs: s.client.Pool(), MinVersion: tls.VersionTLS12}, "unknown authority")
	s.refuses(&tls.Config{RootCAs: s.ca.Pool(), MinVersion: tls.VersionTLS12, ServerName: "other"}, "match other")
	old, err := tls.Dial("tcp", s.address, &tls.Config{RootCAs: s.ca.Pool(), MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11, NextProtos: []string{"h2"}})
	if !assert.ErrorContains(t, err, "protocol version") {
		_ = old.Close()
	}
	s.works(s.trusting())
}

// The environment does what the flags do.
func TestServerTLSFromTheEnvironment(t *testing.T) {
	t.Parallel()
	s := &secured{t: t, dir: t.TempDir(), address: freeAddress(t), ca: testca.New(t, "server CA"), client: testca.New(t, "client CA")}
	plain(s)
	p := startReplay(t, []string{"GPUSCALER_TLS_CERT_FILE=" + s.dir + "/tls.crt", "GPUSCALER_TLS_PRIVATE_KEY_FILE=" + s.dir + "/tls.key",
		"GPUSCALER_CLIENT_CA_FILE=" + s.dir + "/ca.crt"}, s.address)
	assert.Contains(t, p.log(), " tls=mutual")
	s.works(s.trusting(s.client.Client(t)))
}

func TestMutualTLS(t *testing.T) {
	t.Parallel()
	s := startSecured(t, true, plain)
	assert.Contains(t, s.process.log(), " tls=mutual")
	s.works(s.trusting(s.client.Client(t)))
	s.refuses(nil, "")
	s.refuses(s.trusting(), "certificate required")
	s.refuses(s.trusting(s.ca.Client(t)), "unknown certificate authority")
	s.refuses(s.trusting(s.client.Issue(t, testca.Leaf{}).TLS(t)), "bad certificate") // a server's
	s.works(s.trusting(s.client.Client(t)))
}

// However the certificate is replaced, new connections get the new one, and
// those that are open go on.
func TestCertificateReplaced(t *testing.T) {
	for how, put := range map[string]func(s *secured, p testca.Pair){
		"by rename": func(s *secured, p testca.Pair) { s.put(p) },
		"by link": func(s *secured, p testca.Pair) {
			testca.Mount(s.t, s.dir, map[string][]byte{"tls.crt": p.Certificate, "tls.key": p.Key})
		},
	} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			s := startSecured(t, false, func(s *secured) { put(s, s.ca.Issue(t, testca.Leaf{Name: "first"})) })
			require.Equal(t, "first", s.shown())
			conn := s.connect(s.trusting())
			stream, err := healthpb.NewHealthClient(conn).Watch(t.Context(), &healthpb.HealthCheckRequest{Service: "liveness"})
			require.NoError(t, err)
			_, err = stream.Recv()
			require.NoError(t, err)
			for _, name := range []string{"second", "third"} {
				p := s.ca.Issue(t, testca.Leaf{Name: name})
				put(s, p)
				s.becomes(name)
				require.NoError(t, ask(conn), "a connection of before goes on")
				waitFor(t, reload, func() bool { return strings.Count(s.process.log(), "serial="+p.Serial+" ") == 1 })
			}
			s.works(s.trusting())
			code, _ := s.process.stop(t)
			assert.Equal(t, 0, code)
			m, err := stream.Recv()
			require.NoError(t, err, "the stream was open all the time")
			assert.Equal(t, healthpb.HealthCheckResponse_NOT_SERVING, m.GetStatus(), "liveness ends with the process")
		})
	}
}

func TestClientCAReplaced(t *testing.T) {
	t.Parallel()
	s := startSecured(t, true, plain)
	old, next := s.client.Client(t), testca.New(t, "next client CA")
	s.works(s.trusting(old))
	s.refuses(s.trusting(next.Client(t)), "unknown certificate authority")
	testca.Replace(t, s.dir+"/ca.crt", next.PEM)
	waitFor(t, reload, func() bool { return ask(s.connect(s.trusting(next.Client(t)))) == nil })
	s.refuses(s.trusting(old), "unknown certificate authority")
}

// A bad file changes nothing, is said once, and a good one heals it.
func TestBadCertificateKeepsTheLast(t *testing.T) {
	t.Parallel()
	s := startSecured(t, true, plain)
	keda := s.client.Client(t)
	next := s.ca.Issue(t, testca.Leaf{Name: "second"})
	said := func(want string) {
		t.Helper()
		waitFor(t, reload, func() bool { return strings.Contains(s.process.log(), want) })
		assert.Equal(t, "first", s.shown(keda))
		s.works(s.trusting(keda))
	}
	require.NoError(t, os.WriteFile(s.dir+"/tls.crt", next.Certificate[:200], 0o600))
	pair := "--tls-cert-file=" + s.dir + "/tls.crt --tls-private-key-file=" + s.dir + "/tls.key: "
	said(pair + "tls: failed to find any PEM data in certificate input")
	require.NoError(t, os.WriteFile(s.dir+"/tls.crt", next.Certificate, 0o600))
	said(pair + "tls: private key does not match public key")
	require.NoError(t, os.Remove(s.dir+"/ca.crt"))
	said("--client-ca-file=" + s.dir + "/ca.crt: open " + s.dir + "/ca.crt: no such file or directory")
	require.NoError(t, os.WriteFile(s.dir+"/tls.key", next.Key, 0o600))
	s.becomes("second", keda)
	time.Sleep(2 * servertls.ReloadPeriod) // were they said each time, it would show
	assert.Equal(t, 3, strings.Count(s.process.log(), "level=ERROR"), s.process.log())
	assert.NotContains(t, s.process.log(), "PRIVATE KEY")
}

func TestExpiredCertificateIsSaid(t *testing.T) {
	t.Parallel()
	s := startSecured(t, false, func(s *secured) {
		s.put(s.ca.Issue(t, testca.Leaf{Name: "old", NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(-time.Minute)}))
	})
	assert.Contains(t, s.process.log(), `level=WARN msg="TLS certificate will be refused: it has expired"`)
	s.refuses(s.trusting(), "expired")
}

// Wrong files end the process before anything is served.
func TestWrongTLSFlags(t *testing.T) {
	t.Parallel()
	dir, ca := t.TempDir(), testca.New(t, "CA")
	p, other := ca.Issue(t, testca.Leaf{}), ca.Issue(t, testca.Leaf{})
	for name, content := range map[string][]byte{"crt": p.Certificate, "key": p.Key, "other": other.Key, "ca": ca.PEM, "text": []byte("no PEM")} {
		require.NoError(t, os.WriteFile(dir+"/"+name, content, 0o600))
	}
	for _, c := range []struct{ certificate, key, ca, want string }{
		{"crt", "", "", "--tls-cert-file: DIR/crt has no key; --tls-private-key-file is needed too"},
		{"", "key", "", "--tls-private-key-file: DIR/key has no certificate; --tls-cert-file is needed too"},
		{"", "", "ca", "--client-ca-file: DIR/ca is of no use without TLS; --tls-cert-file and --tls-private-key-file are needed too"},
		{"none", "key", "", "--tls-cert-file=DIR/none --tls-private-key-file=DIR/key: open DIR/none: no such file or directory"},
		{"crt", "none", "", "--tls-cert-file=DIR/crt --tls-private-key-file=DIR/none: open DIR/none: no such file or directory"},
		{"crt", "key", "none", "--client-ca-file=DIR/none: open DIR/none: no such file or directory"},
		{"text", "key", "", "--tls-cert-file=DIR/text --tls-private-key-file=DIR/key: tls: failed to find any PEM data in certificate input"},
		{"crt", "text", "", "--tls-cert-file=DIR/crt --tls-private-key-file=DIR/text: decoded PEM is blank"},
		{"crt", "key", "text", "--client-ca-file=DIR/text: data does not contain any valid RSA or ECDSA certificates"},
		{"crt", "other", "", "--tls-cert-file=DIR/crt --tls-private-key-file=DIR/other: tls: private key does not match public key"},
	} {
		args := []string{"serve", "--nvml-socket=", "--peers=127.0.0.1:1", "--listen", "127.0.0.1:0", "--http", "", "--log-level", "error"}
		for flag, name := range map[string]string{"tls-cert-file": c.certificate, "tls-private-key-file": c.key, "client-ca-file": c.ca} {
			if name != "" {
				args = append(args, fmt.Sprintf("--%s=%s/%s", flag, dir, name))
			}
		}
		p := start(t, nil, bin+"/scaler", args...)
		select {
		case <-p.done:
		case <-time.After(30 * time.Second):
			t.Fatalf("%v: it serves", args)
		}
		assert.Equal(t, 1, p.cmd.ProcessState.ExitCode(), "%v", args)
		assert.Equal(t, "scaler: "+strings.ReplaceAll(c.want, "DIR", dir)+"\n", p.log())
	}
}
