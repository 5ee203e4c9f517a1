// Package podresources asks the kubelet which containers hold which devices, by
// its PodResources API. It must not know what a device is, nor who wants to know.
package podresources

import (
	"context"
	"fmt"
	"path"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
	podresourcesv1 "k8s.io/kubelet/pkg/apis/podresources/v1"

	"gpuscaler/shared/snapshot"
)

const (
	// maxAnswer is more than gRPC's 4 MiB, which dense nodes pass: the answer
	// lists every container's memory and CPUs as well.
	maxAnswer = 32 << 20
	// lastRetry is the longest that a kubelet that is back goes unnoticed.
	lastRetry = 3 * time.Second
)

// Reader asks one kubelet.
type Reader struct {
	resources []string
	drivers   []string
	conn      *grpc.ClientConn
	kubelet   podresourcesv1.PodResourcesListerClient
}

// New makes a reader of the kubelet that listens on a Unix socket, which need
// not be there yet, and may be replaced at any time. It keeps the devices of
// resources that match one of the patterns of [path.Match], and those of the
// DRA drivers that do. An error names a pattern that is none.
func New(socket string, resources, drivers []string) (*Reader, error) {
	for _, pattern := range slices.Concat(resources, drivers) {
		if _, err := path.Match(pattern, ""); err != nil {
			return nil, fmt.Errorf("%q: %w", pattern, err)
		}
	}
	conn, err := grpc.NewClient("unix:"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)),
		grpc.WithNoProxy(),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: lastRetry},
			MinConnectTimeout: lastRetry,
		}),
	)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", socket, err)
	}
	return &Reader{resources, drivers, conn, podresourcesv1.NewPodResourcesListerClient(conn)}, nil
}

// Close ends the connection.
func (r *Reader) Close() error { return r.conn.Close() }

// Read asks once. Kubelets before 1.34 list pods that have ended too, and some
// versions no init containers. An error is the kubelet's, or that ctx is done.
func (r *Reader) Read(ctx context.Context) (*snapshot.Allocation, error) {
	answer, err := r.kubelet.List(ctx, &podresourcesv1.ListPodResourcesRequest{})
	if err != nil {
		return nil, fmt.Errorf("kubelet: %w", err)
	}
	a := &snapshot.Allocation{}
	for _, pod := range answer.GetPodResources() {
		for _, in := range pod.GetContainers() {
			c := snapshot.Container{Namespace: pod.GetNamespace(), Pod: pod.GetName(), Name: in.GetName()}
			c.Plugin = r.plugin(in.GetDevices())
			c.Claimed = r.claimed(in.GetDynamicResources())
			if len(c.Plugin)+len(c.Claimed) > 0 {
				a.Containers = append(a.Containers, c)
			}
		}
	}
	return a, nil
}

// plugin merges the entries of each resource: the kubelet has one for each
// device, in an order that varies.
func (r *Reader) plugin(all []*podresourcesv1.ContainerDevices) (kept []snapshot.PluginDevices) {
	for _, d := range all {
		name := d.GetResourceName()
		if len(d.GetDeviceIds()) == 0 || !matches(r.resources, name) {
			continue
		}
		i := slices.IndexFunc(kept, func(p snapshot.PluginDevices) bool { return p.Resource == name })
		if i < 0 {
			i = len(kept)
			kept = append(kept, snapshot.PluginDevices{Resource: name})
		}
		kept[i].IDs = append(kept[i].IDs, d.GetDeviceIds()...)
	}
	for i := range kept {
		slices.Sort(kept[i].IDs)
		kept[i].IDs = slices.Compact(kept[i].IDs)
	}
	return kept
}

func (r *Reader) claimed(all []*podresourcesv1.DynamicResource) (kept []snapshot.ClaimedDevice) {
	for _, claim := range all {
		for _, d := range claim.GetClaimResources() {
			device := snapshot.ClaimedDevice{Driver: d.GetDriverName(), Pool: d.GetPoolName(), Device: d.GetDeviceName(), Claim: claim.GetClaimName()}
			if device.Device != "" && matches(r.drivers, device.Driver) && !slices.Contains(kept, device) {
				kept = append(kept, device)
			}
		}
	}
	return kept
}

func matches(patterns []string, name string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		ok, _ := path.Match(pattern, name) // New has checked them
		return ok
	})
}
