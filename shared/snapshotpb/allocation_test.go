package snapshotpb

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"

	"gpuscaler/shared/snapshot"
)

func TestAllocationRoundTrip(t *testing.T) {
	for name, a := range map[string]*snapshot.Allocation{
		"none":  nil,
		"empty": {Containers: []snapshot.Container{}},
		"full": {Containers: []snapshot.Container{
			{
				Namespace: "shop", Pod: "llm-0", Name: "engine",
				Plugin:  []snapshot.PluginDevices{{Resource: "nvidia.com/gpu", IDs: []string{"GPU-a", "GPU-b::1"}}, {Resource: "nvidia.com/mig-1g.18gb", IDs: []string{"MIG-a"}}},
				Claimed: []snapshot.ClaimedDevice{{Driver: "gpu.nvidia.com", Pool: "node-1", Device: "gpu-0", Claim: "llm-0-gpu"}},
			},
			{Namespace: "shop", Pod: "llm-0"},
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := &snapshot.Sample{Writer: "podresources", Devices: []snapshot.Device{}, Allocation: a}
			got, err := read(frame(t, s))
			require.NoError(t, err)
			assert.Equal(t, s, got)
		})
	}
}

// A frame of two bytes for each thing is refused before it is unpacked, also when
// it is spread over several allocations, which are merged.
func TestAllocationIsCountedBeforeItTakesMemory(t *testing.T) {
	field := func(n protowire.Number, body []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(nil, n, protowire.BytesType), body)
	}
	repeat := func(n int, part []byte) (all []byte) {
		for range n {
			all = append(all, part...)
		}
		return all
	}
	ids := func(n int) []byte { return field(fieldContainers, field(fieldPlugin, repeat(n, field(fieldIDs, nil)))) }
	for name, c := range map[string]struct {
		frame []byte
		want  string
	}{
		"containers":            {field(fieldAllocation, repeat(snapshot.MaxContainers+1, field(fieldContainers, nil))), "more than 1024 containers"},
		"ids":                   {field(fieldAllocation, ids(snapshot.MaxHeld)), "more than 4096 devices and resources held"}, // and their resource
		"resources":             {field(fieldAllocation, field(fieldContainers, repeat(snapshot.MaxHeld+1, field(fieldPlugin, nil)))), "more than 4096 devices and resources held"},
		"claimed":               {field(fieldAllocation, field(fieldContainers, repeat(snapshot.MaxHeld+1, field(fieldClaimed, nil)))), "more than 4096 devices and resources held"},
		"in several containers": {field(fieldAllocation, repeat(3, ids(snapshot.MaxHeld/2))), "more than 4096 devices and resources held"},
		"several allocations":   {repeat(3, field(fieldAllocation, ids(snapshot.MaxHeld/2))), "more than 4096 devices and resources held"},
	} {
		t.Run(name, func(t *testing.T) {
			var err error
			got := allocated(func() { _, err = read(delimited(c.frame)) })
			require.EqualError(t, err, c.want)
			assert.Less(t, got, uint64(3*len(c.frame)+32<<10))
		})
	}
	_, err := read(delimited(field(fieldAllocation, ids(snapshot.MaxHeld-1))))
	require.EqualError(t, err, `container 0 (""): namespace and pod must not be empty`, "as many as are allowed get to the next check")
}

func TestAllocationIsValidated(t *testing.T) {
	good := func() *snapshot.Sample {
		return &snapshot.Sample{Allocation: &snapshot.Allocation{Containers: []snapshot.Container{{
			Namespace: "ns", Pod: "p", Name: "c", Plugin: []snapshot.PluginDevices{{Resource: "r", IDs: []string{"i"}}},
			Claimed: []snapshot.ClaimedDevice{{Driver: "d", Pool: "p", Device: "x"}},
		}}}}
	}
	require.NoError(t, good().Validate())
	for want, spoil := range map[string]func(s *snapshot.Sample, c *snapshot.Container){
		"a sample with an error (down) cannot have devices or an allocation": func(s *snapshot.Sample, _ *snapshot.Container) { s.Error = "down" },
		`container 0 ("c"): namespace and pod must not be empty`:             func(_ *snapshot.Sample, c *snapshot.Container) { c.Pod = "" },
		`container 0 ("c"): "\n" has a control character or invalid UTF-8`:   func(_ *snapshot.Sample, c *snapshot.Container) { c.Plugin[0].IDs[0] = "\n" },
		`container 0 ("c"): "\a" has a control character or invalid UTF-8`:   func(_ *snapshot.Sample, c *snapshot.Container) { c.Plugin[0].Resource = "\a" },
		`container 0 ("c"): "\b" has a control character or invalid UTF-8`:   func(_ *snapshot.Sample, c *snapshot.Container) { c.Claimed[0].Pool = "\b" },
		"1025 containers, at most 1024 are allowed": func(s *snapshot.Sample, c *snapshot.Container) {
			for range snapshot.MaxContainers {
				s.Allocation.Containers = append(s.Allocation.Containers, *c)
			}
		},
		"4097 devices and resources held, at most 4096 are allowed": func(_ *snapshot.Sample, c *snapshot.Container) {
			for i := range snapshot.MaxHeld - 2 {
				c.Plugin[0].IDs = append(c.Plugin[0].IDs, fmt.Sprint(i))
			}
		},
	} {
		s := good()
		spoil(s, &s.Allocation.Containers[0])
		assert.EqualError(t, s.Validate(), want)
	}
}
