package attribution

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"gpuscaler/shared/snapshot"
)

const aUUID = "0c6a1b1e-5d5a-4b1f-9d6e-2f0f5f3f9a10"

func TestUnsupported(t *testing.T) {
	const gpu, passthrough = "nvidia.com/gpu", "PCI passthrough (KubeVirt, or a NIC)"
	for name, c := range map[string]struct{ namespace, resource, id, want string }{
		"HAMi":                             {"shop", gpu, "GPU-" + aUUID + "-0", "HAMi"},
		"HAMi, many parts":                 {"shop", gpu, "GPU-" + aUUID + "-127", "HAMi"},
		"HAMi, a resource of one's own":    {"shop", "example.com/vgpu", "GPU-" + aUUID + "-3", "HAMi"},
		"Volcano":                          {"shop", "volcano.sh/vgpu-number", "GPU-" + aUUID + "-3", "Volcano vGPU"},
		"HAMi, its resource not at hand":   {"shop", "", "GPU-" + aUUID + "-3", "HAMi"},
		"Volcano, memory":                  {"shop", "volcano.sh/vgpu-memory", "GPU-" + aUUID + "-memory-3", "Volcano vGPU"},
		"a vGPU, its resource not at hand": {"vms", "", aUUID, "KubeVirt vGPU"},
		"Alibaba Cloud":                    {"shop", "aliyun.com/gpu-mem", "GPU-" + aUUID + "-_-7", "Alibaba Cloud GPU Share"},
		"a GPU for KubeVirt":               {"vms", "nvidia.com/TU104GL_Tesla_T4", "0000:65:00.0", passthrough},
		"a NIC":                            {"shop", "nvidia.com/hostdev", "0000:c1:00.1", passthrough},
		"a NIC's virtual function":         {"shop", "nvidia.com/mlnxnics", "0008:3B:1f.7", passthrough},
		"an address in NVML's form":        {"shop", gpu, "00000000:65:00.0", passthrough},
		"a vGPU for KubeVirt":              {"vms", "nvidia.com/GRID_T4-1Q", "a297db4a-f4c2-11e6-90f6-d3b88d6c9525", "KubeVirt vGPU"},
		"KAI's reservation":                {"kai-resource-reservation", gpu, "GPU-" + aUUID, "KAI Scheduler"},
		"KAI's reservation before v0.6.0":  {"runai-reservation", gpu, "GPU-" + aUUID, "KAI Scheduler"},

		"a GPU":                         {"shop", gpu, "GPU-" + aUUID, ""},
		"time-slicing":                  {"shop", gpu, "GPU-" + aUUID + "::3", ""},
		"MIG":                           {"shop", "nvidia.com/mig-1g.18gb", "MIG-" + aUUID, ""},
		"MIG before driver 470":         {"shop", gpu, "MIG-GPU-" + aUUID + "/1/0", ""},
		"GKE":                           {"shop", gpu, "nvidia0/gi1/vgpu2", ""},
		"a UUID of another vendor":      {"shop", "example.com/npu", aUUID, ""},
		"no number":                     {"shop", gpu, "GPU-" + aUUID + "-", ""},
		"no UUID":                       {"shop", gpu, "GPU-1-0", ""},
		"more than an address":          {"shop", gpu, "0000:65:00.0/1", ""},
		"less than an address":          {"shop", gpu, "65:00.0", ""},
		"a function that none has":      {"shop", gpu, "0000:65:00.8", ""},
		"a namespace that begins alike": {"kai-resource-reservation-2", gpu, "GPU-" + aUUID, ""},
		"a DRA claim":                   {"shop", "", "gpu.nvidia.com/node-1/gpu-9", ""},
		"nothing":                       {"", "", "", ""},
	} {
		sharer, ok := Unsupported(c.namespace, c.resource, c.id)
		assert.Equal(t, c.want, sharer, name)
		assert.Equal(t, c.want != "", ok, name)
	}
}

// What is explained is no device to Match: else a pod would have a value, and a
// reason for having none.
func TestUnsupportedIDsAreUnknown(t *testing.T) {
	all := []Device{{ID: "GPU-" + aUUID, File: "nvidia0"}}
	for _, id := range []string{"GPU-" + aUUID + "-0", "GPU-" + aUUID + "-_-7", "0000:65:00.0", aUUID} {
		h := Match(all, &snapshot.Allocation{Containers: []snapshot.Container{plugin("p", id)}}, nil)[Pod{"ns", "p"}]
		assert.Equal(t, Holding{Unknown: []string{id}}, h, id)
	}
}

// A NIC beside a GPU is no device that lacks.
func TestNICBesideGPU(t *testing.T) {
	all := []Device{{ID: "GPU-" + aUUID, File: "nvidia0"}}
	h := Match(all, &snapshot.Allocation{Containers: []snapshot.Container{plugin("p", "0000:3b:00.2", "GPU-"+aUUID)}}, nil)[Pod{"ns", "p"}]
	assert.Len(t, h.Shares, 1)
	assert.Empty(t, h.Unknown)
}

func TestUnsupportedPod(t *testing.T) {
	for name, c := range map[string]struct {
		labels map[string]string
		want   string
	}{
		"a part of a GPU":            {map[string]string{"app": "llm", "runai-gpu-group": "d0f3"}, "KAI Scheduler"},
		"parts of several GPUs":      {map[string]string{"runai-gpu-group/d0f3": "d0f3", "runai-gpu-group/a1": "a1"}, "KAI Scheduler"},
		"a reservation":              {map[string]string{"app": "kai-resource-reservation", "runai-gpu-group": "d0f3"}, "KAI Scheduler"},
		"a whole GPU in KAI's queue": {map[string]string{"kai.scheduler/queue": "team"}, ""},
		"a label that begins alike":  {map[string]string{"runai-gpu-group-of": "x"}, ""},
		"none":                       {nil, ""},
	} {
		sharer, ok := UnsupportedPod(c.labels)
		assert.Equal(t, c.want, sharer, name)
		assert.Equal(t, c.want != "", ok, name)
	}
}
