package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"google.golang.org/grpc/credentials"
	"k8s.io/client-go/rest"

	"gpuscaler/scaler/demand"
	"gpuscaler/scaler/endpointslices"
	"gpuscaler/scaler/externalscaler"
	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/kubernetes"
	"gpuscaler/scaler/peer"
	"gpuscaler/scaler/servertls"
	"gpuscaler/scaler/workload"
)

type peerOptions struct {
	Peers        string        `placeholder:"WHERE" help:"Scalers of other nodes: kubernetes:///SERVICE[.NAMESPACE]:PORT (those behind a headless Service), dns:///HOST:PORT (those behind a name), or HOST:PORT,... Empty: none, and this node alone is known."`
	PeerListen   string        `default:":6001" help:"Address that tells peers of this node; with --peers only."`
	PeerInterval time.Duration `default:"2s" help:"How often peers are told of this node."`
	PeerTLSCert  string        `name:"peer-tls-cert-file" placeholder:"FILE" help:"Certificate towards peers, as server and as client, in PEM form. Read again when it changes, as are the two below. Empty: plaintext."`
	PeerTLSKey   string        `name:"peer-tls-private-key-file" placeholder:"FILE" help:"Its key."`
	PeerCA       string        `name:"peer-ca-file" placeholder:"FILE" help:"CA of all peers' certificates."`
	PeerTLSName  string        `name:"peer-tls-name" placeholder:"NAME" help:"DNS name that each peer's certificate has to have. Default: the first of this one's."`
}

const (
	kubernetesPrefix = "kubernetes:///"
	dnsPrefix        = "dns:///"
)

// hasNode says whether this scaler has readings of its own; else it answers for
// others' nodes.
func (c *serveCommand) hasNode() bool { return c.NVMLSocket != "" || c.Replay != "" }

func (c *serveCommand) checkPeers() error {
	switch {
	case c.Peers == "" && c.hasNode():
		return nil
	case c.Peers == "":
		return fmt.Errorf("--nvml-socket: empty, with no --replay and no --peers: there is nothing to answer from; give one of them")
	case c.PeerInterval < 100*time.Millisecond || c.PeerInterval > c.StaleAfter/2:
		return fmt.Errorf("--peer-interval: %v is outside 100ms to %v (half of --stale-after)", c.PeerInterval, c.StaleAfter/2)
	case (c.PeerTLSCert != "") != (c.PeerTLSKey != "") || (c.PeerTLSCert != "") != (c.PeerCA != ""):
		return fmt.Errorf("--peer-tls-cert-file: needs --peer-tls-private-key-file and --peer-ca-file, and they need it: peers are both ends; give all three or none")
	case c.PeerTLSName != "" && c.PeerTLSCert == "":
		return fmt.Errorf("--peer-tls-name: %s is of no use without --peer-tls-cert-file", c.PeerTLSName)
	case c.hasNode() && c.PeerListen == "":
		return fmt.Errorf("--peer-listen: empty with --peers=%s: other nodes would not hear of this one; allowed is HOST:PORT or :PORT", c.Peers)
	}
	return nil
}

// usePeers adds what tells peers of this node and hears of theirs, if there are
// any: the mesh is nil without.
func (c *serveCommand) usePeers(api *rest.Config, nodes *fleet.Fleet, workloads *workload.Resolver, board *demand.Board, service *externalscaler.Service, log *slog.Logger) (*peer.Mesh, []func(context.Context) error, error) {
	if c.Peers == "" {
		return nil, nil, nil
	}
	discovery, err := c.discovery(api, log)
	if err != nil {
		return nil, nil, fmt.Errorf("--peers: %w", err)
	}
	secure, err := servertls.New(servertls.Files{
		Certificate: servertls.File{Flag: "peer-tls-cert-file", Path: c.PeerTLSCert},
		Key:         servertls.File{Flag: "peer-tls-private-key-file", Path: c.PeerTLSKey},
		ClientCA:    servertls.File{Flag: "peer-ca-file", Path: c.PeerCA},
	}, log)
	if err != nil {
		return nil, nil, err
	}
	var asServer, asClient credentials.TransportCredentials
	if secure.Mode() == "off" {
		log.Warn("peers talk plaintext: whoever is on the network can be one; --peer-tls-cert-file, --peer-tls-private-key-file and --peer-ca-file keep others out")
	} else {
		server, client := secure.Peers(c.PeerTLSName)
		asServer, asClient = credentials.NewTLS(server), credentials.NewTLS(client)
	}
	o := peer.Options{Fleet: nodes, Discovery: discovery, Secure: asClient, Name: c.NodeName, Version: version, Log: log}
	if workloads != nil {
		o.Listener = workloads
	}
	var asks peer.Board // not a nil *demand.Board
	if board != nil {
		asks = board
	}
	o.Board = asks
	mesh := peer.NewMesh(o)
	service.UsePeers(mesh, c.PeerInterval)
	run := []func(context.Context) error{secure.Run, mesh.Run}
	if !c.hasNode() {
		return mesh, run, nil
	}
	l, err := net.Listen("tcp", c.PeerListen)
	if err != nil {
		return nil, nil, fmt.Errorf("--peer-listen: %w", err)
	}
	log.Info("telling peers of this node", "listen", l.Addr().String(), "interval", c.PeerInterval)
	server := peer.NewServer(nodes, asks, version, c.PeerInterval, asServer, log)
	return mesh, append(run, func(ctx context.Context) error { return server.Run(ctx, l) }), nil
}

func (c *serveCommand) discovery(api *rest.Config, log *slog.Logger) (peer.Discovery, error) {
	if target, ok := strings.CutPrefix(c.Peers, dnsPrefix); ok {
		return peer.ParseDNS(target, log)
	}
	target, ok := strings.CutPrefix(c.Peers, kubernetesPrefix)
	if !ok {
		return peer.ParseStatic(c.Peers)
	}
	if api == nil {
		return nil, fmt.Errorf("%s: there is no Kubernetes API; use %sHOST:PORT", c.Peers, dnsPrefix)
	}
	host, port, err := net.SplitHostPort(target)
	name, namespace, _ := strings.Cut(host, ".")
	if err != nil || name == "" || port == "" || strings.Contains(namespace, ".") {
		return nil, fmt.Errorf("%q; allowed is %sSERVICE:PORT or %sSERVICE.NAMESPACE:PORT", c.Peers, kubernetesPrefix, kubernetesPrefix)
	}
	if namespace == "" {
		if namespace, err = kubernetes.Namespace(c.Kubeconfig); err != nil {
			return nil, err
		}
	}
	return endpointslices.New(api, namespace, name, port, log)
}
