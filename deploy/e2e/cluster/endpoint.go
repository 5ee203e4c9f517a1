package cluster

import (
	"errors"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
)

// endpoint is an address on loopback.
type endpoint struct{ port string }

func (e endpoint) String() string { return "127.0.0.1:" + e.port }

// Ports are taken from below those that the kernel gives to clients and to
// listeners that ask for any (32768 and up): a program that is killed finds its
// own free when it returns.
const (
	firstPort = 20000
	lastPort  = 29999
)

// given are the ports of this process.
var given struct {
	sync.Mutex
	ports map[int]bool
}

// FreePorts finds n ports of loopback that nobody listens on.
func FreePorts(n int) (ports []string, err error) {
	found, err := freeEndpoints(n)
	for _, e := range found {
		ports = append(ports, e.port)
	}
	return ports, err
}

// freeEndpoints finds n addresses that nobody listens on, and gives none of them
// again.
func freeEndpoints(n int) (found []endpoint, err error) {
	given.Lock()
	defer given.Unlock()
	if given.ports == nil {
		given.ports = make(map[int]bool)
	}
	for range lastPort - firstPort {
		if len(found) == n {
			return found, nil
		}
		port := firstPort + rand.IntN(lastPort-firstPort+1)
		e := endpoint{strconv.Itoa(port)}
		if given.ports[port] {
			continue
		}
		l, err := net.Listen("tcp", e.String())
		if err != nil {
			continue // taken, mostly
		}
		_ = l.Close()
		given.ports[port] = true
		found = append(found, e)
	}
	return nil, errors.New("too few free ports on loopback from 20000 to 29999")
}
