// Package resourceslices finds which devices the resource claims (DRA) of a
// node's pods are about: a claim names a device of a driver's pool, and the
// driver's ResourceSlice has its UUID. The claim itself says whether the device is for
// administrative access, which allocates it to nobody. The API server is asked only
// while there are claims, because most clusters have none.
package resourceslices

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
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

	// Of Run alone.
	failed bool // the last time
	claims attribution.Claims
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
		if due := n.ClaimsUnknown && age >= again || len(n.Claims) > 0 && age >= refresh; !due {
			continue
		}
		asked = time.Now()
		err := f.find(ctx, n.Claims)
		if ctx.Err() != nil {
			return nil
		}
		if (err != nil) != f.failed {
			f.log.Warn("reading ResourceSlices and ResourceClaims, for the GPUs of resource claims", "error", err)
		}
		if f.failed = err != nil; !f.failed {
			f.node.SetClaims(f.claims, time.Now())
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

// find reads the node's slices, and the claims that have not been read.
func (f *Finder) find(ctx context.Context, claims []fleet.Claim) error {
	var list struct{ Items []slice }
	var err error
	version := ""
	for _, version = range versions {
		if err = f.list(ctx, version, &list); !apierrors.IsNotFound(err) {
			break
		}
	}
	if err != nil {
		return err
	}
	next := attribution.Claims{IDs: map[snapshot.ClaimedDevice]string{}, Admin: map[attribution.Allocated]bool{}}
	for held, admin := range f.claims.Admin {
		if slices.ContainsFunc(claims, func(c fleet.Claim) bool { return c.Namespace == held.Namespace && c.Name == held.Device.Claim }) {
			next.Admin[held] = admin
		}
	}
	for _, c := range claims {
		if !c.Unread {
			continue
		}
		err := f.read(ctx, version, c, next.Admin)
		switch {
		case apierrors.IsForbidden(err):
			next.Unreadable = true
			if !f.claims.Unreadable {
				f.log.Warn("ResourceClaims may not be read: devices for administrative access count as allocated", "error", err)
			}
		case err != nil && !apierrors.IsNotFound(err): // its pod is about to be gone
			return err
		}
	}
	for _, s := range list.Items {
		for _, d := range s.Spec.Devices {
			id := d.Attributes.uuid() + d.Basic.Attributes.uuid()
			if id != "" {
				next.IDs[snapshot.ClaimedDevice{Driver: s.Spec.Driver, Pool: s.Spec.Pool.Name, Device: d.Name}] = id
			}
		}
	}
	f.claims = next
	return nil
}

// resourceClaim is what matters of a ResourceClaim, in all versions.
type resourceClaim struct {
	Status struct {
		Allocation struct {
			Devices struct {
				Results []struct {
					Driver, Pool, Device string
					AdminAccess          bool
				}
			}
		}
	}
}

// read reads which of a claim's devices are for administrative access.
func (f *Finder) read(ctx context.Context, version string, c fleet.Claim, into map[attribution.Allocated]bool) error {
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var of resourceClaim
	err := kubernetes.GetJSON(limited, f.client.Get().AbsPath("/apis/resource.k8s.io", version, "namespaces", c.Namespace, "resourceclaims", c.Name), &of)
	if err != nil {
		return err
	}
	// A device may be there twice, of one request for itself and of one for administration.
	for _, d := range of.Status.Allocation.Devices.Results {
		held := attribution.Allocated{Namespace: c.Namespace, Device: snapshot.ClaimedDevice{Driver: d.Driver, Pool: d.Pool, Device: d.Device, Claim: c.Name}}
		admin, have := into[held]
		into[held] = d.AdminAccess && (!have || admin)
	}
	return nil
}

func (f *Finder) list(ctx context.Context, version string, into any) error {
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	return kubernetes.GetJSON(limited, f.client.Get().AbsPath("/apis/resource.k8s.io", version, "resourceslices").
		Param("fieldSelector", "spec.nodeName="+f.name), into)
}
