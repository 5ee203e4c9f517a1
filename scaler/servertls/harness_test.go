package servertls

import (
	"bytes"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"gpuscaler/scaler/servertls/testca"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// lines is a log that can be read while it is written.
type lines struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.Write(b)
}

// take returns the lines since it was last called, without their times.
func (l *lines) take() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := strings.TrimSuffix(l.all.String(), "\n")
	l.all.Reset()
	if text == "" {
		return nil
	}
	all := strings.Split(text, "\n")
	for i := range all {
		_, all[i], _ = strings.Cut(all[i], " ")
	}
	return all
}

// rig is a folder of files and the source of them.
type rig struct {
	t      *testing.T
	dir    string
	ca     *testca.CA // of the server
	client *testca.CA
	log    *lines
	*Source
}

func newRig(t *testing.T) *rig {
	t.Helper()
	return &rig{t: t, dir: t.TempDir(), ca: testca.New(t, "server CA"), client: testca.New(t, "client CA"), log: &lines{}}
}

func (r *rig) path(name string) string { return filepath.Join(r.dir, name) }

// files are those that are in the folder; a name of "" is not given.
func (r *rig) files(certificate, key, ca string) Files {
	f := func(flag, name string) File {
		if name == "" {
			return File{Flag: flag}
		}
		return File{Flag: flag, Path: r.path(name)}
	}
	return Files{f("cert", certificate), f("key", key), f("ca", ca)}
}

func (r *rig) write(name string, content []byte) {
	r.t.Helper()
	require.NoError(r.t, os.WriteFile(r.path(name), content, 0o600))
}

func (r *rig) put(p testca.Pair) {
	r.t.Helper()
	r.write("tls.crt", p.Certificate)
	r.write("tls.key", p.Key)
}

func (r *rig) open(files Files) {
	r.t.Helper()
	var err error
	r.Source, err = New(files, slog.New(slog.NewTextHandler(r.log, nil)))
	require.NoError(r.t, err)
}

// mutual is a source for which clients need certificates. Its first lines in
// the log are taken. It does not run: look is what it does each period.
func mutual(t *testing.T) *rig {
	t.Helper()
	r := newRig(t)
	r.put(r.ca.Issue(t, testca.Leaf{Name: "first"}))
	r.write("ca.crt", r.client.PEM)
	r.open(r.files("tls.crt", "tls.key", "ca.crt"))
	r.log.take()
	return r
}

// look looks at the files n times.
func (r *rig) look(n int) {
	for range n {
		r.refresh(time.Now())
	}
}

// trusting is a client that trusts the server's CA and shows certificates.
func (r *rig) trusting(certificates ...tls.Certificate) *tls.Config {
	return &tls.Config{RootCAs: r.ca.Pool(), ServerName: "127.0.0.1", Certificates: certificates}
}

var twelve = &tls.Config{MinVersion: tls.VersionTLS12}

// shake connects a client and returns the common name of the certificate that
// it was shown, or why one of the two refused.
func shake(server, client *tls.Config) (string, error) {
	// A real connection, because an alert has to find room while the other side
	// writes, too.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	b, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return "", err
	}
	a, err := l.Accept()
	if err != nil {
		return "", err
	}
	refused := make(chan error, 1)
	go func() {
		s := tls.Server(a, server)
		err := s.Handshake()
		if err == nil {
			_, err = s.Write([]byte("served"))
		}
		refused <- err
		_ = a.Close()
	}()
	c := tls.Client(b, client)
	served := make([]byte, len("served"))
	err = c.Handshake()
	if err == nil {
		_, err = c.Read(served)
	}
	_ = b.Close()
	if err = errors.Join(<-refused, err); err != nil {
		return "", err
	}
	return c.ConnectionState().PeerCertificates[0].Subject.CommonName, nil
}

// serves insists on the certificate that a good client is shown.
func (r *rig) serves(want string) {
	r.t.Helper()
	got, err := shake(r.Config(twelve), r.trusting(r.client.Client(r.t)))
	require.NoError(r.t, err)
	assert.Equal(r.t, want, got)
}
