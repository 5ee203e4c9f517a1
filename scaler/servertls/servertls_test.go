package servertls

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/scaler/servertls/testca"
)

func TestRefusedAtStart(t *testing.T) {
	r := newRig(t)
	good := r.ca.Issue(t, testca.Leaf{})
	other := r.ca.Issue(t, testca.Leaf{})
	r.put(good)
	r.write("other.key", other.Key)
	r.write("ca.crt", r.client.PEM)
	r.write("empty", nil)
	r.write("half.crt", good.Certificate[:len(good.Certificate)/2])
	r.write("broken.crt", []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	for _, c := range []struct {
		certificate, key, ca string
		want                 string
	}{
		{"tls.crt", "", "", "--cert: DIR/tls.crt has no key; --key is needed too"},
		{"tls.crt", "", "ca.crt", "--cert: DIR/tls.crt has no key; --key is needed too"},
		{"", "tls.key", "", "--key: DIR/tls.key has no certificate; --cert is needed too"},
		{"", "", "ca.crt", "--ca: DIR/ca.crt is of no use without TLS; --cert and --key are needed too"},
		{"none", "tls.key", "", "--cert=DIR/none --key=DIR/tls.key: open DIR/none: no such file or directory"},
		{"tls.crt", "none", "", "--cert=DIR/tls.crt --key=DIR/none: open DIR/none: no such file or directory"},
		{"tls.crt", "tls.key", "none", "--ca=DIR/none: open DIR/none: no such file or directory"},
		{"empty", "tls.key", "", "--cert=DIR/empty --key=DIR/tls.key: tls: failed to find any PEM data in certificate input"},
		{"tls.key", "tls.key", "", `--cert=DIR/tls.key --key=DIR/tls.key: tls: failed to find certificate PEM data in certificate input, but did find a private key; PEM inputs may have been switched`},
		{"half.crt", "tls.key", "", "--cert=DIR/half.crt --key=DIR/tls.key: tls: failed to find any PEM data in certificate input"},
		{"broken.crt", "tls.key", "", "--cert=DIR/broken.crt --key=DIR/tls.key: x509: malformed certificate"},
		{"tls.crt", "other.key", "", "--cert=DIR/tls.crt --key=DIR/other.key: tls: private key does not match public key"},
		{"tls.crt", "empty", "", "--cert=DIR/tls.crt --key=DIR/empty: decoded PEM is blank"},
		{"tls.crt", "tls.key", "empty", "--ca=DIR/empty: data does not contain any valid RSA or ECDSA certificates"},
		{"tls.crt", "tls.key", "broken.crt", "--ca=DIR/broken.crt: x509: malformed certificate"},
		{".", "tls.key", "", "--cert=DIR --key=DIR/tls.key: read DIR: is a directory"},
		{"", "", "", ""},
	} {
		s, err := New(r.files(c.certificate, c.key, c.ca), slog.New(slog.DiscardHandler))
		if c.want == "" {
			require.NoError(t, err)
			assert.Equal(t, "off", s.Mode())
			assert.Nil(t, s.Config(twelve))
			assert.NoError(t, s.Run(t.Context()))
			continue
		}
		assert.EqualError(t, err, strings.ReplaceAll(c.want, "DIR", r.dir))
	}
}

func TestServerMode(t *testing.T) {
	r := newRig(t)
	r.put(r.ca.Issue(t, testca.Leaf{Name: "gpuscaler", DNS: []string{"gpuscaler.gpuscaler.svc"}}))
	r.open(r.files("tls.crt", "tls.key", ""))
	assert.Equal(t, "server", r.Mode())
	logged := r.log.take()
	require.Len(t, logged, 1)
	assert.Regexp(t, `^level=INFO msg="TLS certificate in use" file=\S+/tls.crt subject="CN=gpuscaler" names=gpuscaler.gpuscaler.svc,127.0.0.1 serial=[0-9a-f]+ not_before=\S+ not_after=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$`, logged[0])

	name, err := shake(r.Config(twelve), r.trusting())
	require.NoError(t, err)
	assert.Equal(t, "gpuscaler", name)
	_, err = shake(r.Config(twelve), &tls.Config{RootCAs: r.ca.Pool(), ServerName: "gpuscaler.gpuscaler.svc"})
	require.NoError(t, err)
	for want, client := range map[string]*tls.Config{
		"unknown authority":   {RootCAs: r.client.Pool(), ServerName: "127.0.0.1"},
		"not gpuscaler.other": {RootCAs: r.ca.Pool(), ServerName: "gpuscaler.other"},
		"protocol version":    {RootCAs: r.ca.Pool(), ServerName: "127.0.0.1", MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10},
	} {
		_, err := shake(r.Config(twelve), client)
		assert.ErrorContains(t, err, want)
	}
}

func TestMutualMode(t *testing.T) {
	r := newRig(t)
	r.put(r.ca.Issue(t, testca.Leaf{Name: "gpuscaler"}))
	r.write("ca.crt", r.client.PEM)
	r.open(r.files("tls.crt", "tls.key", "ca.crt"))
	assert.Equal(t, "mutual", r.Mode())
	assert.Len(t, r.log.take(), 2, "certificate and client CA")
	r.serves("gpuscaler")
	hour := time.Hour
	for want, client := range map[string]*tls.Config{
		"didn't provide a certificate": r.trusting(),
		"unknown authority":            r.trusting(r.ca.Client(t)),
		"incompatible key usage":       r.trusting(r.client.Issue(t, testca.Leaf{Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}).TLS(t)),
		"expired": r.trusting(r.client.Issue(t, testca.Leaf{Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
			NotBefore: time.Now().Add(-2 * hour), NotAfter: time.Now().Add(-hour)}).TLS(t)),
	} {
		// What a client shows although the server does not ask for its CA.
		for i := range client.Certificates {
			shown := &client.Certificates[i]
			client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return shown, nil }
		}
		_, err := shake(r.Config(twelve), client)
		assert.ErrorContains(t, err, want)
	}
}

// A port with demands of its own: what it gives as base holds.
func TestConfigKeepsTheBase(t *testing.T) {
	r := newRig(t)
	r.put(r.ca.Issue(t, testca.Leaf{Name: "gpuscaler"}))
	r.write("ca.crt", r.client.PEM)
	r.open(r.files("tls.crt", "tls.key", "ca.crt"))
	base := &tls.Config{MinVersion: tls.VersionTLS13, VerifyConnection: func(c tls.ConnectionState) error {
		if name := c.PeerCertificates[0].Subject.CommonName; name != "peer" {
			return errors.New("no peer: " + name)
		}
		return nil
	}}
	_, err := shake(r.Config(base), r.trusting(r.client.Issue(t, testca.Leaf{Name: "peer", Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}).TLS(t)))
	require.NoError(t, err)
	_, err = shake(r.Config(base), r.trusting(r.client.Client(t)))
	assert.ErrorContains(t, err, "no peer: keda")
	old := r.trusting(r.client.Client(t))
	old.MaxVersion = tls.VersionTLS12
	_, err = shake(r.Config(base), old)
	assert.ErrorContains(t, err, "protocol version")
	assert.Zero(t, base.ClientAuth, "the caller's own is not changed")
}

// Handshakes go on, and each is of one piece, while the files are replaced.
func TestHandshakesWhileFilesChange(t *testing.T) {
	r := newRig(t)
	r.put(r.ca.Issue(t, testca.Leaf{Name: "gpuscaler"}))
	r.write("ca.crt", r.client.PEM)
	r.open(r.files("tls.crt", "tls.key", "ca.crt"))
	config, client := r.Config(twelve), r.trusting(r.client.Client(t))
	done := make(chan struct{})
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				_, err := shake(config, client)
				if !assert.NoError(t, err) {
					return
				}
			}
		})
	}
	for i := range 30 {
		p := r.ca.Issue(t, testca.Leaf{Name: "gpuscaler"})
		testca.Replace(t, r.path("tls.crt"), p.Certificate)
		r.look(1) // certificate and key do not fit
		testca.Replace(t, r.path("tls.key"), p.Key)
		if i%3 == 0 {
			require.NoError(t, os.Truncate(r.path("ca.crt"), 100))
		}
		r.look(1)
		testca.Replace(t, r.path("ca.crt"), r.client.PEM)
		r.look(1)
	}
	close(done)
	all.Wait()
}

// No content of a key is ever in the log or in an error.
func TestTheKeyIsNotTold(t *testing.T) {
	r := newRig(t)
	good, other := r.ca.Issue(t, testca.Leaf{}), r.ca.Issue(t, testca.Leaf{})
	r.put(good)
	r.open(r.files("tls.crt", "tls.key", ""))
	secret := strings.Split(string(other.Key), "\n")[1]
	for _, content := range [][]byte{other.Key, other.Key[:len(other.Key)-30], []byte(secret), other.Key[28:]} {
		r.write("tls.key", content)
		r.look(1)
		_, err := New(r.files("tls.crt", "tls.key", ""), slog.New(slog.DiscardHandler))
		require.Error(t, err)
		assert.NotContains(t, err.Error(), secret[:8])
	}
	logged := strings.Join(r.log.take(), "\n")
	assert.Contains(t, logged, "level=ERROR")
	assert.NotContains(t, logged, secret[:8])
	assert.NotContains(t, logged, "BEGIN PRIVATE")
}
