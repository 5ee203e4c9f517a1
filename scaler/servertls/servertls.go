// Package servertls gives a listening port its TLS from files that are replaced
// while it serves: certificate, key, and the CA of the clients. It must not
// know what is served on the port.
//
// What is bad changes nothing: the last good version stays in use and the log
// says why, once. A handshake takes what was read last and never waits for a
// file.
package servertls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-secure-stdlib/reloadutil"
	"k8s.io/client-go/util/cert"
)

// ReloadPeriod is how often the files are looked at, and so how long a new
// certificate or CA may wait until new connections are served with it.
// Connections that are open go on with the old one.
const ReloadPeriod = 2 * time.Second

// File is one file and the flag that names it, for messages.
type File struct{ Flag, Path string }

// Files are a port's files in PEM form. All may be absent (Path ""); Certificate
// and Key need each other, ClientCA needs both. Certificate is the server's own
// and then those between it and its CA, ClientCA one or more.
type Files struct{ Certificate, Key, ClientCA File }

func (f Files) check() error {
	switch certificate, key := f.Certificate.Path != "", f.Key.Path != ""; {
	case certificate && !key:
		return fmt.Errorf("--%s: %s has no key; --%s is needed too", f.Certificate.Flag, f.Certificate.Path, f.Key.Flag)
	case key && !certificate:
		return fmt.Errorf("--%s: %s has no certificate; --%s is needed too", f.Key.Flag, f.Key.Path, f.Certificate.Flag)
	case f.ClientCA.Path != "" && !certificate:
		return fmt.Errorf("--%s: %s is of no use without TLS; --%s and --%s are needed too", f.ClientCA.Flag, f.ClientCA.Path, f.Certificate.Flag, f.Key.Flag)
	}
	return nil
}

// Source is where a port's TLS comes from. Its methods may be called from any
// goroutine, Run once.
type Source struct {
	files   Files
	log     *slog.Logger
	pair    *reloadutil.CertificateGetter // nil for plaintext
	clients atomic.Pointer[x509.CertPool]

	// The rest belongs to New and then to Run alone.
	authorities  []*x509.Certificate // in clients
	aboutPair    said
	aboutClients said
}

// said is what the log has of a part: what is wrong with its files, or "", and
// what is in use.
type said struct{ wrong, inUse string }

// New reads the files and logs what they hold. Without any of them the port is
// plaintext. An error names the flag, the file and what is wrong with it.
func New(files Files, log *slog.Logger) (*Source, error) {
	s := &Source{files: files, log: log}
	if err := files.check(); err != nil {
		return nil, err
	}
	if s.Mode() == "off" {
		return s, nil
	}
	if err := s.readClients(); err != nil {
		return nil, err
	}
	s.pair = reloadutil.NewCertificateGetter(files.Certificate.Path, files.Key.Path, "")
	if err := s.readPair(); err != nil {
		return nil, err
	}
	s.refresh(time.Now())
	return s, nil
}

// Mode is "off" (plaintext), "server" (clients may be anyone) or "mutual"
// (clients need a certificate of the client CA).
func (s *Source) Mode() string {
	switch {
	case s.files.Certificate.Path == "":
		return "off"
	case s.files.ClientCA.Path == "":
		return "server"
	default:
		return "mutual"
	}
}

// Config is base with the certificate and the client CA that are in use at each
// handshake, or nil for plaintext. What else base demands (MinVersion,
// VerifyConnection) holds for every connection.
func (s *Source) Config(base *tls.Config) *tls.Config {
	if s.Mode() == "off" {
		return nil
	}
	base = base.Clone()
	base.GetCertificate = s.pair.GetCertificate
	// A resumed session would let in a client whose CA is no longer ours. KEDA
	// keeps one connection for minutes and resumes none.
	base.SessionTicketsDisabled = true
	if s.Mode() == "server" {
		return base
	}
	base.ClientAuth = tls.RequireAndVerifyClientCert
	outer := base.Clone()
	outer.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		config := base.Clone()
		config.ClientCAs = s.clients.Load()
		return config, nil
	}
	return outer
}

// Run keeps up with the files until ctx is done. It looks at what they hold: a
// kubelet's swap of links, a rename and a write in place are all alike then.
func (s *Source) Run(ctx context.Context) error {
	if s.Mode() == "off" {
		return nil
	}
	tick := time.NewTicker(ReloadPeriod)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			s.refresh(time.Now())
		}
	}
}

// refresh takes over what is new and good, and logs every change once: of what
// is in use, of what is wrong, of what is no longer valid.
func (s *Source) refresh(now time.Time) {
	err := s.readPair()
	inUse, _ := s.pair.GetCertificate(nil) // never fails after New
	s.tell(&s.aboutPair, "certificate", s.files.Certificate.Path, []*x509.Certificate{inUse.Leaf}, err, now)
	err = s.readClients()
	s.tell(&s.aboutClients, "client CA", s.files.ClientCA.Path, s.authorities, err, now)
}

// readPair takes over certificate and key if they are good. What is wrong may
// be in either file, so an error names both.
func (s *Source) readPair() error {
	if err := s.pair.Reload(); err != nil {
		return fmt.Errorf("--%s=%s --%s=%s: %w", s.files.Certificate.Flag, s.files.Certificate.Path, s.files.Key.Flag, s.files.Key.Path, err)
	}
	return nil
}

// readClients takes over the client CA if there is one and it is good.
func (s *Source) readClients() error {
	f := s.files.ClientCA
	if f.Path == "" {
		return nil
	}
	text, err := os.ReadFile(f.Path)
	if err != nil {
		return fmt.Errorf("--%s=%s: %w", f.Flag, f.Path, err)
	}
	all, err := cert.ParseCertsPEM(text)
	if err != nil {
		return fmt.Errorf("--%s=%s: %w", f.Flag, f.Path, err)
	}
	pool := x509.NewCertPool()
	for _, c := range all {
		pool.AddCert(c)
	}
	s.authorities = all
	s.clients.Store(pool)
	return nil
}

// tell logs what has changed of a part since it was last called: err, and which
// certificates are in use. Those that the time refuses are a warning.
func (s *Source) tell(last *said, part, file string, inUse []*x509.Certificate, err error, now time.Time) {
	next := said{}
	if err != nil {
		next.wrong = err.Error()
	}
	for _, c := range inUse {
		next.inUse += string(c.Raw) + invalid(c, now)
	}
	if next.wrong != "" && next.wrong != last.wrong {
		s.log.Error("bad TLS file: its last good version stays in use", "part", part, "reason", next.wrong)
	}
	healed := last.wrong != "" && next.wrong == ""
	changed := next.inUse != last.inUse
	*last = next
	if !healed && !changed {
		return
	}
	for _, c := range inUse {
		level, message := slog.LevelInfo, "TLS "+part+" in use"
		if problem := invalid(c, now); problem != "" {
			level, message = slog.LevelWarn, "TLS "+part+" will be refused: "+problem
		}
		s.log.Log(context.Background(), level, message, "file", file, "subject", c.Subject.String(), "names", names(c),
			"serial", c.SerialNumber.Text(16), "not_before", c.NotBefore.UTC().Format(time.RFC3339), "not_after", c.NotAfter.UTC().Format(time.RFC3339))
	}
}

// invalid says why clients, or we, refuse a certificate for the time, or "".
func invalid(c *x509.Certificate, now time.Time) string {
	switch {
	case now.After(c.NotAfter):
		return "it has expired"
	case now.Before(c.NotBefore):
		return "it is not valid yet"
	}
	return ""
}

// names are those that a client may call the server by.
func names(c *x509.Certificate) string {
	all := append([]string(nil), c.DNSNames...)
	for _, ip := range c.IPAddresses {
		all = append(all, ip.String())
	}
	return strings.Join(all, ",")
}
