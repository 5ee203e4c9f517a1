// Package endpointslices finds the peers behind a Service, ready or not: a scaler
// without readings has something to say, too. It must not know what they say.
package endpointslices

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"

	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/rest"

	"gpuscaler/scaler/kubernetes"
)

// Finder finds the peers behind a Service.
type Finder struct {
	client                   rest.Interface
	namespace, service, port string
	log                      *slog.Logger
}

// New prepares to watch a Service's EndpointSlices. Peers listen on port. It asks
// nothing of the API server.
func New(config *rest.Config, namespace, service, port string, log *slog.Logger) (*Finder, error) {
	client, err := kubernetes.Discovery(config)
	if err != nil {
		return nil, fmt.Errorf("endpoint slices: %w", err)
	}
	return &Finder{client, namespace, service, port, log}, nil
}

// Run tells of all peers each time that they change, until ctx is done: by host and
// port the name of their node. While the API server cannot be reached those that
// were found stay.
func (f *Finder) Run(ctx context.Context, found func(peers map[string]string)) error {
	kubernetes.Watch{
		Client: f.client, Resource: "endpointslices", Namespace: f.namespace, Type: &discoveryv1.EndpointSlice{}, Strip: strip,
		Select: func(o *metav1.ListOptions) {
			o.LabelSelector = labels.Set{discoveryv1.LabelServiceName: f.service}.String()
		},
	}.Run(ctx, func(all []any) {
		addresses := f.addresses(all)
		f.log.Debug("peers found", "service", f.namespace+"/"+f.service, "peers", len(addresses))
		found(addresses)
	})
	return nil
}

// addresses are those of the pods behind the Service, one of each: an old and a new
// slice may have the same pod, and with two IP families each pod is in a slice of
// either.
func (f *Finder) addresses(all []any) map[string]string {
	addresses := map[string]string{}
	slicesOf := make([]*discoveryv1.EndpointSlice, 0, len(all))
	for _, object := range all {
		slicesOf = append(slicesOf, object.(*discoveryv1.EndpointSlice))
	}
	slices.SortFunc(slicesOf, func(a, b *discoveryv1.EndpointSlice) int {
		return cmp.Or(cmp.Compare(a.AddressType, b.AddressType), cmp.Compare(a.Name, b.Name))
	})
	seen := map[string]bool{}
	for _, s := range slicesOf {
		if s.AddressType == discoveryv1.AddressTypeFQDN {
			continue
		}
		for _, e := range s.Endpoints {
			if len(e.Addresses) == 0 {
				continue
			}
			target := net.JoinHostPort(e.Addresses[0], f.port)
			pod, name := e.Addresses[0], target
			if e.TargetRef != nil && e.TargetRef.UID != "" {
				pod = string(e.TargetRef.UID)
			}
			if e.NodeName != nil && *e.NodeName != "" {
				name = *e.NodeName
			}
			if !seen[pod] {
				seen[pod] = true
				addresses[target] = name
			}
		}
	}
	return addresses
}

// strip keeps what addresses looks at.
func strip(object any) any {
	s, ok := object.(*discoveryv1.EndpointSlice)
	if !ok {
		return object
	}
	small := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: s.Name, Namespace: s.Namespace, ResourceVersion: s.ResourceVersion},
		AddressType: s.AddressType,
	}
	for _, e := range s.Endpoints {
		small.Endpoints = append(small.Endpoints, discoveryv1.Endpoint{Addresses: e.Addresses, NodeName: e.NodeName, TargetRef: e.TargetRef})
	}
	return small
}
