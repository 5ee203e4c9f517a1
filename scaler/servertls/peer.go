package servertls

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
)

// Peers are the configurations of both ends of connections between programs that
// have their certificates from one CA: TLS 1.3, and either end has to have a
// certificate of that CA for a name. Name is "" for the first of the own
// certificate's. Both take what is in use at each handshake. The source has to be
// mutual.
func (s *Source) Peers(name string) (server, client *tls.Config) {
	server = s.Config(&tls.Config{MinVersion: tls.VersionTLS13, VerifyConnection: func(state tls.ConnectionState) error {
		return s.verify(state, name, x509.ExtKeyUsageClientAuth)
	}})
	client = &tls.Config{
		MinVersion: tls.VersionTLS13,
		// The CA may be another at the next handshake, which RootCAs cannot be:
		// VerifyConnection does all that is skipped here.
		InsecureSkipVerify: true, //nolint:gosec // as it says above
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return s.pair.GetCertificate(nil)
		},
		VerifyConnection: func(state tls.ConnectionState) error {
			return s.verify(state, name, x509.ExtKeyUsageServerAuth)
		},
	}
	return server, client
}

// verify checks the other end's certificate.
func (s *Source) verify(state tls.ConnectionState, name string, usage x509.ExtKeyUsage) error {
	if len(state.PeerCertificates) == 0 {
		return errors.New("no certificate")
	}
	if name == "" {
		own, err := s.pair.GetCertificate(nil)
		if err != nil {
			return err
		}
		if len(own.Leaf.DNSNames) == 0 {
			return fmt.Errorf("--%s: %s has no DNS name, so that others' cannot be checked", s.files.Certificate.Flag, s.files.Certificate.Path)
		}
		name = own.Leaf.DNSNames[0]
	}
	between := x509.NewCertPool()
	for _, c := range state.PeerCertificates[1:] {
		between.AddCert(c)
	}
	_, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{
		Roots: s.clients.Load(), Intermediates: between, DNSName: name, KeyUsages: []x509.ExtKeyUsage{usage},
	})
	return err
}
