package terms

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestMatchModel(t *testing.T) {
	const (
		a100x40 = "NVIDIA A100-SXM4-40GB"
		a100x80 = "NVIDIA A100-SXM4-80GB"
		h100    = "NVIDIA H100 80GB HBM3"
		slice   = "NVIDIA A100-SXM4-40GB MIG 1g.5gb"
	)
	for _, c := range []struct {
		asked, name string
		memory      float64
		want        bool
	}{
		// Whole words.
		{"A10", "NVIDIA A10", 0, true}, {"A10", a100x80, 0, false}, {"A10", "NVIDIA A10G", 0, false}, {"A100", "NVIDIA A10", 0, false},
		{"L4", "NVIDIA L4", 0, true}, {"L4", "NVIDIA L40S", 0, false}, {"L40", "NVIDIA L40S", 0, false},
		{"H200", "NVIDIA H200", 0, true}, {"H200", "NVIDIA GH200 480GB", 0, false}, {"h200", "NVIDIA H200 NVL", 0, true},
		{"nvl", "NVIDIA H200 NVL", 0, true}, {"a100 80gb", a100x80, 0, true}, {"80GB a100", a100x80, 0, true},
		{"a100 80gb", a100x40, 0, false}, {"rtx_3070", "NVIDIA GeForce RTX 3070", 0, true}, {"acme flash", "Acme Flash 9", 0, true},

		// Labels of GPU feature discovery.
		{"NVIDIA-A100-SXM4-80GB", a100x80, 81920, true}, {"NVIDIA-A100-SXM4-80GB", a100x40, 40960, false},
		{"NVIDIA-A100-SXM4-80GB", "NVIDIA A100 80GB PCIe", 81920, false},
		{"NVIDIA-A100-SXM4-40GB-MIG-1g.5gb", slice, 4864, true}, {"NVIDIA-A100-SXM4-40GB-MIG-1g.5gb-SHARED", slice, 4864, true},
		{"NVIDIA-A100-SXM4-40GB-MIG-2g.10gb", slice, 4864, false}, {"NVIDIA-A100-SXM4-40GB-MIG-1g.5gb", a100x40, 40960, false},
		{"NVIDIA-A100-SXM4-40GB", slice, 4864, true}, {"1g.5gb", slice, 4864, true}, {"1g.10gb", slice, 4864, false},
		{"Tesla-T4-SHARED", "Tesla T4", 15360, true}, {"NVIDIA-L4-SHARED", "NVIDIA L40S", 0, false},

		// Labels of GKE.
		{"nvidia-l4", "NVIDIA L4", 23034, true}, {"nvidia-l4", "NVIDIA L40S", 46068, false},
		{"nvidia-tesla-a100", a100x40, 40960, true}, {"nvidia-tesla-t4", "Tesla T4", 15360, true}, {"nvidia-tesla-t4", "NVIDIA T4G", 0, false},
		{"nvidia-a100-80gb", a100x80, 81920, true}, {"nvidia-a100-80gb", "NVIDIA A100 80GB PCIe", 81920, true}, {"nvidia-a100-80gb", a100x40, 40960, false},
		{"nvidia-h100-80gb", h100, 81559, true}, {"nvidia-h100-mega-80gb", h100, 81559, true},
		{"nvidia-h200-141gb", "NVIDIA H200", 143771, true}, {"nvidia-h200-141gb", "NVIDIA H200", 0, true},
		{"nvidia-h200-141gb", "NVIDIA GH200 480GB", 97871, false}, {"nvidia-h200-141gb", "NVIDIA H200", 97871, false},
		{"nvidia-h200-141gb", "NVIDIA H200 MIG 1g.18gb", 16384, false}, // the name has another size

		// Sizes that the name does not have, in GiB and GB.
		{"h100 80gb", "NVIDIA H100 PCIe", 81559, true}, {"h100 80gb", "NVIDIA H100 NVL", 95830, false}, {"h100 94gb", "NVIDIA H100 NVL", 95830, true},
		{"t4 16gb", "Tesla T4", 15360, true}, {"l4 24gb", "NVIDIA L4", 23034, true}, {"t4 24gb", "Tesla T4", 15360, false},
		{"100gb", "A", 100 * 1024 * 1.1, true}, {"100gb", "A", 100 * 1024 * 1.11, false},
		{"gb", "NVIDIA H200", 143771, false}, {"1x41gb", "NVIDIA H200", 0, false},

		// Brands select nothing beside other words, and stand for themselves alone.
		{"tesla", "Tesla T4", 0, true}, {"tesla", "NVIDIA L4", 0, false}, {"NVIDIA", "NVIDIA L4", 0, true}, {"nvidia", "Tesla T4", 0, false},
		{"shared", "Tesla T4", 0, false}, {"nvidia shared", "NVIDIA L4", 0, false},
		{"", "NVIDIA L4", 0, false}, {"--", "NVIDIA L4", 0, false}, {"L4", "", 0, false},
	} {
		assert.Equal(t, c.want, MatchModel(c.asked, c.name, c.memory), "%q of %q with %v MiB", c.asked, c.name, c.memory)
	}
}

func TestMatchModelDoesNotAllocate(t *testing.T) {
	assert.Zero(t, testing.AllocsPerRun(100, func() { MatchModel("nvidia-h200-141gb", "NVIDIA H200", 143771) }))
}

func TestHasWord(t *testing.T) {
	for name, want := range map[string]bool{"H200": true, "-4-": true, "": false, "-_./": false} {
		assert.Equal(t, want, HasWord(name), name)
	}
}
