// Package scrape gets a page of metrics from one address that is not trusted: in a
// bounded time, of a bounded size, over plain HTTP, and from nowhere else.
package scrape

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"time"

	"gpuscaler/scaler/terms"
)

// MaxBytes is how large a page may be. Engines' have some 60 KiB.
const MaxBytes = 4 << 20

const (
	// small is how large a page may be without being among the large ones, of which largeAtOnce
	// are read at the same time.
	small       = 256 << 10
	largeAtOnce = 2

	maxHeader = 16 << 10
	idle      = 30 * time.Second
	accept    = `text/plain;version=0.0.4;q=1,application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.7,*/*;q=0.1`
)

// ErrUnreachable says that nobody answers HTTP at the address.
var ErrUnreachable = errors.New("cannot be reached")

// CheckIP says why a pod's address is none that is read, or nil: it leads to no pod, or to
// the services of a cloud.
func CheckIP(ip string) error {
	parsed, err := netip.ParseAddr(ip)
	if err != nil || parsed.IsUnspecified() || parsed.IsMulticast() || parsed.IsLinkLocalUnicast() {
		return fmt.Errorf("its address %s is none that is read", strconv.Quote(ip))
	}
	return nil
}

// StatusError is an answer that is no page.
type StatusError struct {
	Status   int
	Location string // where it would lead to
}

func (e *StatusError) Error() string {
	if e.Location != "" {
		return fmt.Sprintf("HTTP status %d leads to %s, and is not followed", e.Status, terms.Quote(e.Location))
	}
	return fmt.Sprintf("HTTP status %d", e.Status)
}

// Page is an answer.
type Page struct {
	Body        []byte
	ContentType string
}

// Large bounds how many large pages are read at the same time, by all clients that share
// it: strangers' answers do not add up beyond it.
type Large chan struct{}

// NewLarge makes one.
func NewLarge() Large { return make(Large, largeAtOnce) }

// Client gets pages of one address, over one connection that it keeps. It is not for
// concurrent use.
type Client struct {
	http    *http.Client
	timeout time.Duration
	large   Large
	size    int // of the last page
}

// NewClient makes a client whose requests take no longer than timeout, body included.
func NewClient(timeout time.Duration, large Large) *Client {
	dialer := &net.Dialer{Timeout: timeout}
	return &Client{timeout: timeout, large: large, http: &http.Client{
		// No proxy of the environment, and no decompression: 4 MiB may be gigabytes.
		Transport: &http.Transport{
			DialContext: dialer.DialContext, DisableCompression: true, MaxIdleConns: 1, MaxIdleConnsPerHost: 1, MaxConnsPerHost: 1,
			IdleConnTimeout: idle, ResponseHeaderTimeout: timeout, MaxResponseHeaderBytes: maxHeader,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Close ends the connection.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Get gets a page. Errors are [ErrUnreachable], a *[StatusError], or say what is wrong
// with the answer.
func (c *Client) Get(ctx context.Context, url string) (*Page, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", accept)
	request.Header.Set("User-Agent", "gpuscaler")
	response, err := c.http.Do(request)
	if err != nil {
		return nil, c.unreachable(err)
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		_, _ = io.CopyN(io.Discard, response.Body, maxHeader) // for the connection to be used again
		e := &StatusError{Status: response.StatusCode}
		if e.Status >= 300 && e.Status < 400 {
			e.Location = response.Header.Get("Location")
		}
		return nil, e
	}
	if encoding := response.Header.Get("Content-Encoding"); encoding != "" && encoding != "identity" {
		return nil, fmt.Errorf("the answer is encoded as %s, which was not asked for", terms.Quote(encoding))
	}
	body, err := c.body(ctx, response.Body)
	if err != nil {
		return nil, err
	}
	return &Page{Body: body, ContentType: response.Header.Get("Content-Type")}, nil
}

func (c *Client) body(ctx context.Context, r io.Reader) ([]byte, error) {
	body := make([]byte, 0, min(c.size+c.size/8, small)+512)
	limited := io.LimitReader(r, MaxBytes+1)
	for large := false; ; {
		if !large && len(body) > small {
			select {
			case c.large <- struct{}{}:
				large = true
				defer func() { <-c.large }()
			case <-ctx.Done():
				return nil, fmt.Errorf("the answer has more than %d KiB, and %d such are read already for %s", small>>10, largeAtOnce, c.timeout)
			}
		}
		if len(body) == cap(body) {
			body = append(body, 0)[:len(body)]
		}
		n, err := limited.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		if len(body) > MaxBytes {
			return nil, fmt.Errorf("the answer has more than %d MiB, and is not read", MaxBytes>>20)
		}
		if errors.Is(err, io.EOF) {
			c.size = len(body)
			return body, nil
		}
		if err != nil {
			return nil, fmt.Errorf("the answer breaks off after %d bytes: %s", len(body), c.why(err))
		}
	}
}

func (c *Client) unreachable(err error) error {
	return fmt.Errorf("%w: %s", ErrUnreachable, c.why(err))
}

// why is an error of a connection without what the address says already.
func (c *Client) why(err error) string {
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.As(err, &timeout) && timeout.Timeout(), errors.Is(err, context.DeadlineExceeded):
		return fmt.Sprintf("no answer within %s (a NetworkPolicy may forbid it)", c.timeout)
	}
	text := err.Error()
	if i := strings.LastIndex(text, ": "); i >= 0 {
		text = text[i+2:]
	}
	return terms.Quote(text)
}
