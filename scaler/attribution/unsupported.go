package attribution

import (
	"regexp"
	"slices"
	"strings"
)

const uuid = `[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`

// The forms of ids that are no reader's, and where they come from.
var (
	// HAMi, GetPluginDevices in pkg/device-plugin/nvidiadevice/nvinternal/rm/devices.go:
	// fmt.Sprintf("%v-%v", dev.ID, i). The UUID in the id need not be that of the pod's
	// GPU: Allocate in plugin/server.go takes the GPU from the pod's annotations, which
	// HAMi's scheduler writes. Instances of MIG that the plugin lists keep their ids.
	// volcano-vgpu-device-plugin, pkg/plugin/server.go, does the same for
	// volcano.sh/vgpu-number, and has "-core-" and "-memory-" for its other resources.
	hamiID = regexp.MustCompile(`^GPU-` + uuid + `-((core|memory)-)?[0-9]+$`)
	// gpushare-device-plugin of Alibaba Cloud, pkg/gpu/nvidia/nvidia.go:
	// fmt.Sprintf("%s-_-%d", realID, fakeCounter), one for each GiB or MiB.
	aliyunID = regexp.MustCompile(`^GPU-` + uuid + `-_-[0-9]+$`)
	// kubevirt-gpu-device-plugin, pkg/device_plugin/device_plugin.go: a GPU has its PCI
	// address, and vfio-pci as its driver, so NVML does not have it. The SR-IOV network
	// device plugin has the same for NICs (pkg/devices/host.go, pkg/accelerator).
	pciID = regexp.MustCompile(`^[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[01][0-9a-fA-F]\.[0-7]$`)
	// createVgpuIDMap of kubevirt-gpu-device-plugin: a vGPU has the name of its folder in
	// /sys/bus/mdev/devices.
	mdevID = regexp.MustCompile(`^` + uuid + `$`)
)

// kai is KAI Scheduler's name.
const kai = "KAI Scheduler"

// reservations are the namespaces of KAI Scheduler's reservation pods by default:
// DefaultResourceReservationName in pkg/common/constants/constants.go, and the one
// before v0.6.0 (docs/migrationguides/v0.6.0). An administrator may choose another:
// the pods' labels say more (see UnsupportedPod).
var reservations = []string{"kai-resource-reservation", "runai-reservation"}

// Unsupported names what shares a device out in a way that the kubelet's answer
// does not show, from what it lists of a pod: the pod's namespace, and an id that no
// reader reports with its resource, "" if that is not at hand. A reservation pod of
// KAI Scheduler is found by its namespace alone: its id is a GPU's, which it holds in
// the place of the pods that use it. ok is false for any other id: its device may be
// removed, or not be reported yet.
func Unsupported(namespace, resource, id string) (sharer string, ok bool) {
	switch {
	case slices.Contains(reservations, namespace):
		return kai, true
	case hamiID.MatchString(id) && strings.HasPrefix(resource, "volcano.sh/"):
		return "Volcano vGPU", true
	case hamiID.MatchString(id):
		return "HAMi", true
	case aliyunID.MatchString(id):
		return "Alibaba Cloud GPU Share", true
	case pciID.MatchString(id):
		return "PCI passthrough (KubeVirt, or a NIC)", true
	case mdevID.MatchString(id) && (resource == "" || strings.HasPrefix(resource, "nvidia.com/")):
		return "KubeVirt vGPU", true
	}
	return "", false
}

// UnsupportedPod names what gives a pod a part of a GPU although the kubelet lists
// none for it, from the pod's labels. KAI Scheduler puts a label on such pods and on
// its reservation pods: runai-gpu-group, or one that begins with runai-gpu-group/ for
// parts of several GPUs (updatePodGPUGroup in
// pkg/binder/binding/resourcereservation/resource_reservation.go).
func UnsupportedPod(labels map[string]string) (sharer string, ok bool) {
	const group = "runai-gpu-group"
	for name := range labels {
		if name == group || strings.HasPrefix(name, group+"/") {
			return kai, true
		}
	}
	return "", false
}
