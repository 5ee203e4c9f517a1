package servertls

import (
	"context"
	"crypto/tls"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/scaler/servertls/testca"
)

func TestReplacedByRename(t *testing.T) {
	r := mutual(t)
	next := r.ca.Issue(t, testca.Leaf{Name: "second"})
	testca.Replace(t, r.path("tls.key"), next.Key)
	testca.Replace(t, r.path("tls.crt"), next.Certificate)
	r.serves("first")
	r.look(20)
	r.serves("second")
	logged := r.log.take()
	require.Len(t, logged, 1, "said once")
	assert.Contains(t, logged[0], `level=INFO msg="TLS certificate in use"`)
	assert.Contains(t, logged[0], `subject="CN=second" names=127.0.0.1 serial=`+next.Serial+" not_before=")
}

// A source that runs sees what the kubelet does to a mounted Secret, and what
// it says is said once, though two look at the files.
func TestReplacedAsASecretIs(t *testing.T) {
	r := newRig(t)
	mount := func(name string) {
		p := r.ca.Issue(t, testca.Leaf{Name: name})
		testca.Mount(t, r.dir, map[string][]byte{"tls.crt": p.Certificate, "tls.key": p.Key, "ca.crt": r.client.PEM})
	}
	mount("first")
	r.open(r.files("tls.crt", "tls.key", "ca.crt"))
	r.log.take()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	for _, name := range []string{"second", "third"} {
		mount(name)
		require.Eventually(t, func() bool {
			shown, err := shake(r.Config(twelve), r.trusting(r.client.Client(t)))
			return err == nil && shown == name
		}, 5*ReloadPeriod, 50*time.Millisecond)
		require.Eventually(t, func() bool {
			logged := r.log.take()
			return assert.LessOrEqual(t, len(logged), 1) && len(logged) == 1 && strings.Contains(logged[0], `subject="CN=`+name+`"`)
		}, 5*ReloadPeriod, 50*time.Millisecond)
	}
	cancel()
	assert.NoError(t, <-done)
	assert.Empty(t, r.log.take())
}

func TestClientCAReplaced(t *testing.T) {
	r := mutual(t)
	old := r.client.Client(t)
	second := testca.New(t, "second client CA")
	r.write("ca.crt", append(append([]byte(nil), r.client.PEM...), second.PEM...))
	r.look(1)
	assert.Len(t, r.log.take(), 2, "both of the CAs that are in use now")
	for _, c := range []tls.Certificate{old, second.Client(t)} {
		_, err := shake(r.Config(twelve), r.trusting(c))
		require.NoError(t, err)
	}
	r.write("ca.crt", second.PEM)
	r.look(1)
	_, err := shake(r.Config(twelve), r.trusting(second.Client(t)))
	require.NoError(t, err)
	_, err = shake(r.Config(twelve), r.trusting(old))
	assert.Error(t, err)
}

// A client that was let in once does not come in again by its session.
func TestNoSessionOutlivesTheClientCA(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		r := mutual(t)
		client := r.trusting(r.client.Client(t))
		client.MaxVersion = version
		client.ClientSessionCache = tls.NewLRUClientSessionCache(10)
		config := r.Config(twelve)
		for range 2 {
			_, err := shake(config, client)
			require.NoError(t, err)
		}
		r.write("ca.crt", testca.New(t, "second client CA").PEM)
		r.look(1)
		_, err := shake(config, client)
		assert.Error(t, err)
	}
}

// What is bad changes nothing, and is said once however long it stays.
func TestBadReplacements(t *testing.T) {
	r := mutual(t)
	good, err := os.ReadFile(r.path("tls.crt"))
	require.NoError(t, err)
	key, err := os.ReadFile(r.path("tls.key"))
	require.NoError(t, err)
	next := r.ca.Issue(t, testca.Leaf{Name: "second"})
	const pair = "--cert=DIR/tls.crt --key=DIR/tls.key: "
	said := func(want string) {
		t.Helper()
		r.look(10)
		r.serves("first")
		if logged := r.log.take(); assert.Len(t, logged, 1) {
			assert.Contains(t, logged[0], `level=ERROR msg="bad TLS file: its last good version stays in use" part=`)
			assert.Contains(t, logged[0], strings.ReplaceAll(want, "DIR", r.dir))
		}
	}
	r.write("tls.crt", next.Certificate)
	said(pair + "tls: private key does not match public key")
	r.write("tls.crt", next.Certificate[:300])
	said(pair + "tls: failed to find any PEM data in certificate input")
	require.NoError(t, os.Remove(r.path("tls.crt")))
	said(pair + "open DIR/tls.crt: no such file or directory")
	r.write("ca.crt", []byte("no CA"))
	said("--ca=DIR/ca.crt: ")

	r.write("tls.crt", good)
	r.look(10)
	logged := r.log.take()
	require.Len(t, logged, 1)
	assert.Contains(t, logged[0], `msg="TLS certificate in use"`, "that it is well again is said, too")
	r.write("tls.crt", nil)
	said(pair + "tls: failed to find any PEM data in certificate input")

	r.write("tls.crt", next.Certificate)
	r.write("tls.key", next.Key)
	r.look(1)
	r.serves("second") // although the client CA is still bad
	r.write("ca.crt", r.client.PEM)
	r.write("tls.key", key)
	r.look(1)
	r.serves("second")
}

func TestValidity(t *testing.T) {
	r := newRig(t)
	now := time.Now()
	r.put(r.ca.Issue(t, testca.Leaf{Name: "late", NotBefore: now.Add(time.Minute), NotAfter: now.Add(time.Hour)}))
	r.write("ca.crt", r.client.PEM)
	r.open(r.files("tls.crt", "tls.key", "ca.crt"))
	// warned are the warnings of many looks after a time.
	warned := func(after time.Duration) (all []string) {
		for range 10 {
			r.refresh(now.Add(after))
		}
		for _, l := range r.log.take() {
			if strings.HasPrefix(l, "level=WARN") {
				all = append(all, l)
			}
		}
		return all
	}
	first := warned(30 * time.Second)
	require.Len(t, first, 1, "said once")
	assert.Contains(t, first[0], `msg="TLS certificate will be refused: it is not valid yet" file=`)
	assert.Empty(t, warned(59*time.Minute))
	second := warned(61 * time.Minute)
	require.Len(t, second, 1, "said once")
	assert.Contains(t, second[0], `msg="TLS certificate will be refused: it has expired" file=`)
	third := warned(4 * time.Hour)
	require.Len(t, third, 1)
	assert.Contains(t, third[0], `msg="TLS client CA will be refused: it has expired" file=`)
	r.put(r.ca.Issue(t, testca.Leaf{Name: "old", NotBefore: now.Add(-time.Hour), NotAfter: now.Add(-time.Minute)}))
	assert.Len(t, warned(4*time.Hour), 1, "in use all the same")
}
