package peer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"
)

const (
	// lookup is how often names are looked up again.
	lookup        = 5 * time.Second
	lookupTimeout = 5 * time.Second
)

// Static is peers that never change, by host and port.
type Static []string

// ParseStatic reads hosts and ports, separated by commas.
func ParseStatic(list string) (s Static, err error) {
	for _, target := range strings.Split(list, ",") {
		target = strings.TrimSpace(target)
		if err := checkTarget(target); err != nil {
			return nil, err
		}
		s = append(s, target)
	}
	return s, nil
}

func checkTarget(target string) error {
	host, port, err := net.SplitHostPort(target)
	if err == nil && (host == "" || port == "") {
		err = fmt.Errorf("host or port is missing")
	}
	if err != nil {
		return fmt.Errorf("%q: %w; allowed is host:port", target, err)
	}
	return nil
}

// Run tells of them once.
func (s Static) Run(ctx context.Context, found func(peers map[string]string)) error {
	all := map[string]string{}
	for _, target := range s {
		all[target] = target
	}
	found(all)
	<-ctx.Done()
	return nil
}

// DNS is a name with an address of each peer, as a headless Service has it.
type DNS struct {
	Host, Port string
	Log        *slog.Logger
}

// ParseDNS reads host and port.
func ParseDNS(target string, log *slog.Logger) (*DNS, error) {
	if err := checkTarget(target); err != nil {
		return nil, err
	}
	host, port, _ := net.SplitHostPort(target)
	return &DNS{host, port, log}, nil
}

// Run looks the name up every few seconds. While it cannot be looked up, what was
// found stays.
func (d *DNS) Run(ctx context.Context, found func(peers map[string]string)) error {
	tick := time.NewTicker(lookup)
	defer tick.Stop()
	failed := false
	for {
		all, err := d.find(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if (err != nil) != failed {
			d.Log.Warn("looking up peers", "host", d.Host, "error", err)
		}
		if failed = err != nil; !failed {
			found(all)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func (d *DNS) find(ctx context.Context) (all map[string]string, err error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	hosts, err := net.DefaultResolver.LookupHost(ctx, d.Host)
	if none := (*net.DNSError)(nil); errors.As(err, &none) && none.IsNotFound {
		err = nil // a headless Service with nobody behind it
	}
	all = make(map[string]string, len(hosts))
	for _, host := range hosts {
		target := net.JoinHostPort(host, d.Port)
		all[target] = target
	}
	return all, err
}
