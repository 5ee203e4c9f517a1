package attribution

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/shared/snapshot"
)

// Two whole GPUs, whose files are numbered the other way round, and one in two
// instances.
var devices = []Device{
	{ID: "GPU-a", File: "nvidia1"},
	{ID: "GPU-b", File: "nvidia0"},
	{ID: "GPU-c", File: "nvidia2"},
	{ID: "MIG-1", File: "nvidia2", Parent: "GPU-c", Instance: 1},
	{ID: "MIG-7", File: "nvidia2", Parent: "GPU-c", Instance: 7},
	{ID: "xpu-0", File: "xpu0"},
}

func plugin(pod string, ids ...string) snapshot.Container {
	return snapshot.Container{Namespace: "ns", Pod: pod, Name: "main", Plugin: []snapshot.PluginDevices{{Resource: "nvidia.com/gpu", IDs: ids}}}
}

// second is another container of the pod.
func second(c snapshot.Container) snapshot.Container {
	c.Name = "second"
	return c
}

func match(containers ...snapshot.Container) map[Pod]Holding {
	claims := Claims{
		IDs: map[snapshot.ClaimedDevice]string{
			{Driver: "gpu.nvidia.com", Pool: "node-1", Device: "gpu-1"}:       "GPU-a",
			{Driver: "gpu.nvidia.com", Pool: "node-1", Device: "gpu-2-mig-1"}: "MIG-1",
			{Driver: "gpu.nvidia.com", Pool: "node-1", Device: "gpu-9"}:       "GPU-gone",
		},
		Admin: map[Allocated]bool{},
	}
	for name, admin := range map[string]bool{"mine": false, "monitor": true} {
		claims.Admin[Allocated{"ns", snapshot.ClaimedDevice{Driver: "gpu.nvidia.com", Pool: "node-1", Device: "gpu-1", Claim: name}}] = admin
	}
	return Match(devices, &snapshot.Allocation{Containers: containers}, &claims)
}

// TestAdminAccess: a monitor does not have the GPUs that it has for administrative access, and
// what is not known of a claim is not guessed.
func TestAdminAccess(t *testing.T) {
	by := func(pod, claim string) snapshot.Container {
		return snapshot.Container{Namespace: "ns", Pod: pod, Claimed: []snapshot.ClaimedDevice{{Driver: "gpu.nvidia.com", Pool: "node-1", Device: "gpu-1", Claim: claim}}}
	}
	all := match(by("llm", "mine"), by("dcgm", "monitor"), by("new", "unread"), by("old", ""))
	assert.NotContains(t, all, Pod{"ns", "dcgm"})
	require.Len(t, all[Pod{"ns", "llm"}].Shares, 1)
	assert.Equal(t, 2, all[Pod{"ns", "llm"}].Shares[0].Holders, "with the one whose reader gives no claim")
	assert.Empty(t, all[Pod{"ns", "new"}].Shares)
	assert.Equal(t, []string{"gpu.nvidia.com/node-1/gpu-1"}, all[Pod{"ns", "new"}].Unknown)
}

// Every form of id that device plugins and drivers have.
func TestIDs(t *testing.T) {
	for id, want := range map[string]string{
		"GPU-a":             "GPU-a",
		"GPU-a::0":          "GPU-a",
		"GPU-a::31":         "GPU-a",
		"MIG-7":             "MIG-7",
		"MIG-7::2":          "MIG-7",
		"nvidia0":           "GPU-b",
		"nvidia1":           "GPU-a",
		"nvidia1/vgpu3":     "GPU-a",
		"nvidia2/gi7":       "MIG-7",
		"nvidia2/gi7/vgpu0": "MIG-7",
		"xpu-0":             "xpu-0",
		"xpu0/vgpu1":        "xpu-0",

		"GPU-A":               "",
		"GPU-z":               "",
		"":                    "",
		"::1":                 "",
		"nvidia":              "",
		"nvidia3":             "",
		"nvidia-1":            "",
		"nvidia+1":            "",
		"nvidia1/":            "",
		"nvidia1/gi":          "",
		"nvidia2/gi2":         "",
		"nvidia1/gi7":         "",
		"nvidia2/gi7/gi7":     "",
		"nvidia1/vgpu":        "",
		"nvidia1/vgpu1/vgpu1": "",
		"nvidia99999999999":   "",
	} {
		h := match(plugin("p", id))[Pod{"ns", "p"}]
		if want == "" {
			assert.Equal(t, Holding{Unknown: []string{id}}, h, "%q", id)
			continue
		}
		require.Len(t, h.Shares, 1, "%q", id)
		assert.Equal(t, want, h.Shares[0].Device, "%q", id)
		assert.Empty(t, h.Unknown, "%q", id)
	}
}

func TestClaims(t *testing.T) {
	claimed := func(device string) snapshot.Container {
		return snapshot.Container{Namespace: "ns", Pod: "p", Claimed: []snapshot.ClaimedDevice{{Driver: "gpu.nvidia.com", Pool: "node-1", Device: device}}}
	}
	assert.Equal(t, Holding{Shares: []Share{{"GPU-a", "GPU-a", 1, 1, nil}}}, match(claimed("gpu-1"))[Pod{"ns", "p"}])
	assert.Equal(t, Holding{Shares: []Share{{"MIG-1", "GPU-c", 1, 1, nil}}}, match(claimed("gpu-2-mig-1"))[Pod{"ns", "p"}])
	for _, unknown := range []string{"gpu-9", "gpu-0"} { // its device is gone; no slice has it
		assert.Equal(t, Holding{Unknown: []string{"gpu.nvidia.com/node-1/" + unknown}}, match(claimed(unknown))[Pod{"ns", "p"}])
	}
}

func TestShares(t *testing.T) {
	got := match(
		plugin("two-replicas", "GPU-a::0", "GPU-a::1"),
		plugin("another", "GPU-a::2", "GPU-b"),
		plugin("two-containers", "MIG-1"), second(plugin("two-containers", "MIG-1", "MIG-7")),
		plugin("beside", "MIG-7::0"),
		plugin("nothing"),
	)
	first, both := []string{"main"}, []string{"main", "second"}
	assert.Equal(t, map[Pod]Holding{
		{"ns", "two-replicas"}:   {Shares: []Share{{"GPU-a", "GPU-a", 2, 2, first}}},
		{"ns", "another"}:        {Shares: []Share{{"GPU-a", "GPU-a", 2, 2, first}, {"GPU-b", "GPU-b", 1, 1, first}}},
		{"ns", "two-containers"}: {Shares: []Share{{"MIG-1", "GPU-c", 1, 2, both}, {"MIG-7", "GPU-c", 2, 2, both[1:]}}},
		{"ns", "beside"}:         {Shares: []Share{{"MIG-7", "GPU-c", 2, 2, first}}},
	}, got)
}

// The shares of whatever is held add up to the device, and to the GPU.
func TestSharesAddUp(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		var containers []snapshot.Container
		for range random.IntN(8) {
			var ids []string
			for range random.IntN(4) {
				ids = append(ids, fmt.Sprintf("%s::%d", devices[random.IntN(len(devices))].ID, random.IntN(4)))
			}
			containers = append(containers, plugin(fmt.Sprint(random.IntN(5)), ids...))
		}
		device, gpu := map[string]float64{}, map[string]float64{}
		for _, h := range match(containers...) {
			gpus := map[string]bool{}
			for _, s := range h.Shares {
				device[s.Device] += 1 / float64(s.Holders)
				if !gpus[s.GPU] {
					gpu[s.GPU] += 1 / float64(s.GPUHolders)
				}
				gpus[s.GPU] = true
			}
		}
		for _, sums := range []map[string]float64{device, gpu} {
			for id, sum := range sums {
				require.InDelta(t, 1, sum, 1e-9, "%s of %v", id, containers)
			}
		}
	}
}

// A pod with two GPU containers: each device has the containers that hold it, in the
// kubelet's order, each once; the pod is one holder of it.
func TestContainers(t *testing.T) {
	container := func(name string, ids ...string) snapshot.Container {
		c := plugin("p", ids...)
		c.Name = name
		return c
	}
	got := match(container("worker", "GPU-a::0", "GPU-a::1"), container("engine", "GPU-a::2", "GPU-b"), container("worker", "GPU-a::3"))
	assert.Equal(t, []Share{
		{"GPU-a", "GPU-a", 1, 1, []string{"worker", "engine"}},
		{"GPU-b", "GPU-b", 1, 1, []string{"engine"}},
	}, got[Pod{"ns", "p"}].Shares)
}
