package scenarios

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"gpuscaler/deploy/e2e/pki"
)

// authentication is a TriggerAuthentication from the Secret "keda-tls".
const authentication = `
apiVersion: v1
kind: Secret
metadata: {name: keda-tls}
stringData: {ca.crt: %q, tls.crt: %q, tls.key: %q}
---
apiVersion: keda.sh/v1alpha1
kind: TriggerAuthentication
metadata: {name: keda-tls}
spec:
  secretTargetRef:
`

// reference is what a trigger says to use it.
const reference = "    authenticationRef: {name: keda-tls}\n"

// TestTLS: KEDA reaches a scaler with TLS or mutual TLS through a
// TriggerAuthentication; with a wrong certificate the user is told, and nothing
// is scaled.
func TestTLS(t *testing.T) {
	t.Parallel() // with what follows, too
	ours, theirs := newCA(t, "ours"), newCA(t, "theirs")
	for name, c := range map[string]struct {
		mutual       bool
		trusts, with *pki.CA // KEDA's CA, and that of its certificate; nil is none
		refused      []string
	}{
		"server":                     {trusts: ours},
		"server-of-another-ca":       {trusts: theirs, refused: []string{"unknown authority"}},
		"mutual":                     {mutual: true, trusts: ours, with: ours},
		"mutual-without-certificate": {mutual: true, trusts: ours, refused: []string{"tls: certificate required"}},
		// KEDA keeps back a certificate that the scaler's CA has not signed.
		"mutual-certificate-of-others": {mutual: true, trusts: ours, with: theirs, refused: []string{"tls: certificate required"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			server, err := ours.Sign("gpuscaler", nil, []string{"127.0.0.1"})
			require.NoError(t, err)
			require.NoError(t, server.Write(dir, "tls"))
			require.NoError(t, os.WriteFile(filepath.Join(dir, "ca.crt"), ours.PEM, 0o644))
			flags := []string{"--tls-cert-file=" + dir + "/tls.crt", "--tls-private-key-file=" + dir + "/tls.key"}
			if c.mutual {
				flags = append(flags, "--client-ca-file="+dir+"/ca.crt")
			}
			s := begin(t, setting{name: "tls-" + name, fixture: "h200-idle", replicas: 1, node: scalerFlags(flags...)})
			s.load("set * gpu_utilization 50")
			s.authenticate(c.trusts, c.with)
			s.scaleOn("external", quick+"\nminReplicaCount: 1", reference, "enableTLS", "true", "targetValue", "25", "window", "0s")
			if c.refused == nil {
				s.eventually("2 replicas", s.replicas(2))
				return
			}
			s.eventually("not Ready", s.condition("Ready", "False"))
			s.eventually("KEDA's log says why", s.kedaLogged(c.refused...))
			s.eventually("1 replica as before", s.replicas(1)) // it may just have become ready
			s.always("1 replica as before", 5*time.Second, s.replicas(1))
		})
	}
}

func newCA(t *testing.T, name string) *pki.CA {
	t.Helper()
	ca, err := pki.NewCA(name)
	require.NoError(t, err)
	return ca
}

// authenticate creates a TriggerAuthentication that trusts a CA and shows a
// certificate of another, or none.
func (s *story) authenticate(trusts, with *pki.CA) {
	s.Helper()
	var client pki.Pair
	parameters := []string{"caCert", "ca.crt"}
	if with != nil {
		var err error
		client, err = with.Sign("keda-operator", nil, nil)
		s.must(err)
		parameters = append(parameters, "tlsClientCert", "tls.crt", "tlsClientKey", "tls.key")
	}
	text := fmt.Sprintf(authentication, trusts.PEM, client.Cert, client.Key)
	for i := 0; i < len(parameters); i += 2 {
		text += fmt.Sprintf("  - {parameter: %s, name: keda-tls, key: %s}\n", parameters[i], parameters[i+1])
	}
	s.must(s.Apply(s.ctx, text))
}

// kedaLogged checks that KEDA's operator wrote a line about the story with all
// words.
func (s *story) kedaLogged(words ...string) func() error {
	return func() error {
		text, err := os.ReadFile(filepath.Join(shared.Logs(), "keda-operator.log"))
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, fmt.Sprintf(`"namespace":%q`, s.Namespace)) && containsAll(line, words) {
				return nil
			}
		}
		return fmt.Errorf("no line about %s says %q", s.Namespace, words)
	}
}
