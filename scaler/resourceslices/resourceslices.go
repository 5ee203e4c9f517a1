// Package resourceslices finds which devices the resource claims (DRA) of a
// node's pods are about: a claim names a device of a driver's pool, and the
// driver's ResourceSlice has its UUID. It asks only while there are claims,
// because most clusters have none.
package resourceslices

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/rest"

	"gpuscaler/scaler/attribution"
	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/kubernetes"
	"gpuscaler/shared/snapshot"
)

const (
	// look is how soon a new claim is seen, again how soon the same question is
	// put again: a dynamic MIG device, for one, never has a UUID. refresh is how
	// soon what is known is looked at again, while there are claims: a driver that
	// was restarted may give a name to another device.
	look    = time.Second
	again   = 10 * time.Second
	refresh = time.Minute
	// timeout is the longest that one request may take.
	timeout = 5 * time.Second
)

// versions of the API, in the order in which they are tried. The last nests what
// a device has.
var versions = []string{"v1", "v1beta2", "v1beta1"}

// Node is the node whose claims are looked up.
type Node interface {
	Node() *fleet.Node
	SetClaims(claims attribution.Claims, now time.Time)
}

// Finder finds devices.
type Finder struct {
	client rest.Interface
	name   string
	node   Node
	log    *slog.Logger
	failed bool // the last time; of Run alone
}

// New makes a finder for the node of a name. It asks nothing of the API server.
func New(config *rest.Config, name string, node Node, log *slog.Logger) (*Finder, error) {
	client, err := kubernetes.Raw(config)
	if err != nil {
		return nil, fmt.Errorf("resource slices: %w", err)
	}
	return &Finder{client: client, name: name, node: node, log: log}, nil
}

// Run looks for claims that are not known until ctx is done.
func (f *Finder) Run(ctx context.Context) error {
	tick := time.NewTicker(look)
	defer tick.Stop()
	var asked time.Time
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		n, age := f.node.Node(), time.Since(asked)
		if due := n.ClaimsUnknown && age >= again || n.Claims && age >= refresh; !due {
			continue
		}
		asked = time.Now()
		claims, err := f.find(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if (err != nil) != f.failed {
			f.log.Warn("reading ResourceSlices, for the GPUs of resource claims", "error", err)
		}
		if f.failed = err != nil; !f.failed {
			f.node.SetClaims(claims, time.Now())
		}
	}
}

// slice is what matters of a ResourceSlice, in all of its versions.
type slice struct {
	Spec struct {
		Driver string
		Pool   struct{ Name string }
		// Devices have their attributes beside the name, in v1beta1 in basic.
		Devices []struct {
			Name       string
			Attributes attributes
			Basic      struct{ Attributes attributes }
		}
	}
}

type attributes map[string]struct{ String string }

// uuid is the attribute of the name, in the driver's domain or any other.
func (a attributes) uuid() string {
	for name, value := range a {
		if name == "uuid" || strings.HasSuffix(name, "/uuid") {
			return value.String
		}
	}
	return ""
}

// find reads the node's slices.
func (f *Finder) find(ctx context.Context) (attribution.Claims, error) {
	var list struct{ Items []slice }
	var err error
	for _, version := range versions {
		if err = f.list(ctx, version, &list); !apierrors.IsNotFound(err) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	claims := attribution.Claims{}
	for _, s := range list.Items {
		for _, d := range s.Spec.Devices {
			id := d.Attributes.uuid() + d.Basic.Attributes.uuid()
			if id != "" {
				claims[snapshot.ClaimedDevice{Driver: s.Spec.Driver, Pool: s.Spec.Pool.Name, Device: d.Name}] = id
			}
		}
	}
	return claims, nil
}

func (f *Finder) list(ctx context.Context, version string, into any) error {
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return kubernetes.GetJSON(limited, f.client.Get().AbsPath("/apis/resource.k8s.io", version, "resourceslices").
		Param("fieldSelector", "spec.nodeName="+f.name), into)
}
