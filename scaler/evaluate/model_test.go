package evaluate

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/shared/snapshot"
)

// Five GPUs on a node, with names of which one is in another.
func TestModelsOfOneNode(t *testing.T) {
	a100 := gpu(1, "NVIDIA A100-SXM4-80GB", values{"gpu_utilization": 100})
	gh200 := gpu(3, "NVIDIA GH200 480GB", values{"gpu_utilization": 70})
	a100.MemoryTotalMiB, gh200.MemoryTotalMiB = 81920, 97871
	n := newNode(t)
	n.say("w", 1, []snapshot.Device{gpu(0, "NVIDIA A10", values{"gpu_utilization": 10}), a100, gpu(2, "NVIDIA L40S", values{"gpu_utilization": 90}),
		gh200, gpu(4, "NVIDIA L4", values{"gpu_utilization": 20})}...)
	for model, want := range map[string]float64{"A10": 10, "nvidia-l4": 20, "L40S": 90, "A100": 100, "NVIDIA-A100-SXM4-80GB": 100,
		"nvidia-tesla-a100": 100, "nvidia-a100-80gb": 100, "GH200": 70, "NVIDIA-L4-SHARED": 20} {
		d, err := Evaluate(parse(t, metadata{"gpuModel": model}), n.Node(), at(1), staleAfter)
		require.NoError(t, err, model)
		assert.Equal(t, want, d.Value, model)
	}
	_, err := Evaluate(parse(t, metadata{"gpuModel": "H200"}), n.Node(), at(1), staleAfter)
	assert.EqualError(t, err, `gpuModel: no GPU in scope on node node-1 has "H200" in its name; there are NVIDIA A10, NVIDIA A100-SXM4-80GB, NVIDIA L40S, NVIDIA GH200 480GB, NVIDIA L4`)
}
