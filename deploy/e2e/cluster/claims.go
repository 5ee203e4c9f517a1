package cluster

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	podresourcesv1 "k8s.io/kubelet/pkg/apis/podresources/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// draDriver is the name of NVIDIA's.
const draDriver = "gpu.nvidia.com"

// deviceName is what the driver calls the node's devices, with a number.
const deviceName = "gpu-"

// deviceClass is what claims ask for.
const deviceClass = `
apiVersion: resource.k8s.io/v1
kind: DeviceClass
metadata: {name: gpu.nvidia.com}
spec: {selectors: [{cel: {expression: "device.driver == 'gpu.nvidia.com'"}}]}
`

// claimTemplate is what each pod's claim is made from.
func (w *Workload) claimTemplate() string {
	more := ""
	if w.Monitors {
		more = ", allocationMode: All, adminAccess: true"
	}
	return fmt.Sprintf(`
apiVersion: resource.k8s.io/v1
kind: ResourceClaimTemplate
metadata: {name: gpu}
spec: {spec: {devices: {requests: [{name: gpu, exactly: {deviceClassName: gpu.nvidia.com%s}}]}}}
`, more)
}

// labels are those of the workload's namespace: without this one no claim in it may ask for
// administrative access.
func (w *Workload) labels() map[string]string {
	if !w.Monitors {
		return nil
	}
	return map[string]string{resourcev1.DRAAdminNamespaceLabelKey: "true"}
}

// Publish tells the scheduler of the node's devices as NVIDIA's driver for dynamic
// resource allocation does, so that claims may be about them.
func (n *GPUNode) Publish(ctx context.Context) error {
	if err := n.c.Apply(ctx, deviceClass); err != nil {
		return err
	}
	slice := &resourcev1.ResourceSlice{
		ObjectMeta: metav1.ObjectMeta{Name: n.Name + "-" + draDriver},
		Spec: resourcev1.ResourceSliceSpec{
			Driver: draDriver, NodeName: &n.Name, Pool: resourcev1.ResourcePool{Name: n.Name, ResourceSliceCount: 1},
		},
	}
	for i, id := range n.Kubelet.ids {
		slice.Spec.Devices = append(slice.Spec.Devices, resourcev1.Device{
			Name:       deviceName + strconv.Itoa(i),
			Attributes: map[resourcev1.QualifiedName]resourcev1.DeviceAttribute{"uuid": {StringValue: &id}},
		})
	}
	return n.c.Client.Create(ctx, slice)
}

// claimed is what the scheduler gave a pod's claims; it notes the devices as the
// pod's.
func (k *Kubelet) claimed(ctx context.Context, pod *corev1.Pod) (all []*podresourcesv1.DynamicResource, err error) {
	var ids []string
	for _, s := range pod.Status.ResourceClaimStatuses {
		if s.ResourceClaimName == nil {
			continue
		}
		claim := &resourcev1.ResourceClaim{}
		if err := k.c.Client.Get(ctx, client.ObjectKey{Namespace: pod.Namespace, Name: *s.ResourceClaimName}, claim); err != nil {
			return nil, err
		}
		if claim.Status.Allocation == nil {
			continue
		}
		d := &podresourcesv1.DynamicResource{ClaimName: claim.Name, ClaimNamespace: claim.Namespace}
		for _, r := range claim.Status.Allocation.Devices.Results {
			i, err := strconv.Atoi(strings.TrimPrefix(r.Device, deviceName))
			if err != nil || i >= len(k.ids) {
				return nil, fmt.Errorf("claim %s has device %q, which node %s does not have", claim.Name, r.Device, k.node)
			}
			if r.AdminAccess == nil || !*r.AdminAccess {
				ids = append(ids, k.ids[i])
			}
			d.ClaimResources = append(d.ClaimResources, &podresourcesv1.ClaimResource{DriverName: r.Driver, PoolName: r.Pool, DeviceName: r.Device})
		}
		all = append(all, d)
	}
	if len(all) > 0 {
		k.given[string(pod.UID)] = ids
	}
	return all, nil
}
