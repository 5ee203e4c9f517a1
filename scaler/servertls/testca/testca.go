// Package testca makes certificates for tests, and puts files in their place
// the ways that others do. Nothing but tests may import it.
package testca

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// CA signs certificates.
type CA struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	PEM         []byte
}

// Leaf is what a certificate says. Zero values: for servers, valid now.
type Leaf struct {
	Name      string // the subject's
	DNS       []string
	Usages    []x509.ExtKeyUsage
	NotBefore time.Time
	NotAfter  time.Time
}

// Pair is a certificate and its key in PEM form.
type Pair struct {
	Certificate, Key []byte
	Serial           string // as the log has it
}

var serial atomic.Int64

// New makes a CA.
func New(t testing.TB, name string) *CA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial.Add(1)), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(3 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	certificate, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return &CA{certificate: certificate, key: key, PEM: block("CERTIFICATE", der)}
}

// Pool trusts this CA alone.
func (ca *CA) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(ca.certificate)
	return pool
}

// Issue makes a certificate with a key of its own. It is good for 127.0.0.1
// beside the names of leaf.
func (ca *CA) Issue(t testing.TB, leaf Leaf) Pair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial.Add(1)), Subject: pkix.Name{CommonName: leaf.Name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(3 * time.Hour),
		DNSNames: leaf.DNS, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if !leaf.NotBefore.IsZero() {
		template.NotBefore = leaf.NotBefore
	}
	if !leaf.NotAfter.IsZero() {
		template.NotAfter = leaf.NotAfter
	}
	if len(leaf.Usages) > 0 {
		template.ExtKeyUsage = leaf.Usages
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.certificate, key.Public(), ca.key)
	require.NoError(t, err)
	private, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	return Pair{block("CERTIFICATE", der), block("PRIVATE KEY", private), template.SerialNumber.Text(16)}
}

// Client is a certificate that a client shows.
func (ca *CA) Client(t testing.TB) tls.Certificate {
	t.Helper()
	return ca.Issue(t, Leaf{Name: "keda", Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}).TLS(t)
}

// TLS is the pair as crypto/tls takes it.
func (p Pair) TLS(t testing.TB) tls.Certificate {
	t.Helper()
	c, err := tls.X509KeyPair(p.Certificate, p.Key)
	require.NoError(t, err)
	return c
}

func block(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// Replace puts a file in the place of another by a rename.
func Replace(t testing.TB, path string, content []byte) {
	t.Helper()
	require.NoError(t, os.WriteFile(path+".new", content, 0o600))
	require.NoError(t, os.Rename(path+".new", path))
}

// Mount writes files into dir as the kubelet mounts a Secret: each name is a
// link into ..data, which is a link to a folder, and is replaced by a rename
// when the Secret changes, for all files at once.
func Mount(t testing.TB, dir string, files map[string][]byte) {
	t.Helper()
	version := fmt.Sprint("..v", serial.Add(1))
	require.NoError(t, os.Mkdir(filepath.Join(dir, version), 0o700))
	for name, content := range files {
		require.NoError(t, os.WriteFile(filepath.Join(dir, version, name), content, 0o600))
	}
	old, _ := os.Readlink(filepath.Join(dir, "..data"))
	require.NoError(t, os.Symlink(version, filepath.Join(dir, "..data_tmp")))
	require.NoError(t, os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")))
	for name := range files {
		if _, err := os.Lstat(filepath.Join(dir, name)); err != nil {
			require.NoError(t, os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)))
		}
	}
	if old != "" {
		require.NoError(t, os.RemoveAll(filepath.Join(dir, old)))
	}
}
