package evaluate

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/shared/snapshot"
)

// What will never be read per pod is refused by the name of the sharer; what may come is
// not, and says what its reader says.
func TestUnreadableAllocations(t *testing.T) {
	const hami = "GPU-8dcd427f-483b-b48f-d7e5-75fb19a52b76-3"
	kai := llm("a")
	kai.Sharer = "KAI Scheduler"
	for name, c := range map[string]struct {
		pods   []podOn
		reader string // its error
		kind   Kind
		want   string
		notice bool
	}{
		"HAMi's ids": {[]podOn{llm("a", hami)}, "", Impossible, "ScaledObject shop/llm: pod a has " + hami + ", which is HAMi: " +
			"whole GPUs, MIG, time-slicing, MPS and resource claims of NVIDIA's own plugins can be read per pod, this cannot", true},
		"a GPU passed through to a virtual machine": {[]podOn{llm("a", "0000:65:00.0")}, "", Impossible, "ScaledObject shop/llm: pod a has 0000:65:00.0, which is PCI passthrough (KubeVirt, or a NIC): " +
			"whole GPUs, MIG, time-slicing, MPS and resource claims of NVIDIA's own plugins can be read per pod, this cannot", true},
		"a part of a GPU by KAI": {[]podOn{kai}, "", Impossible, "ScaledObject shop/llm: no GPU is allocated to its 1 pods by the kubelet: they get theirs from KAI Scheduler, " +
			"which cannot be read per pod; use scope: node or scope: cluster with gpuModel", true},
		"a driver that does not open": {[]podOn{llm("a", "GPU-z")}, "nvmlInit: NO_PERMISSION", Unavailable,
			"ScaledObject shop/llm: nothing is known of 1 of its 1 pods: pod a: holds GPU-z, which nobody reports; node node-1: nvmlsidecar: nvmlInit: NO_PERMISSION", false},
		"a device that is not reported yet": {[]podOn{llm("a", "GPU-z")}, "", Unavailable,
			"ScaledObject shop/llm: nothing is known of 1 of its 1 pods: pod a: holds GPU-z, which nobody reports", false},
	} {
		t.Run(name, func(t *testing.T) {
			s := tell(t)
			s.w.Spec, s.w.Status = 1, 1
			s.n.apply(&snapshot.Sample{Writer: "nvmlsidecar", Error: c.reader}, 0)
			s.place(c.pods...)
			s.second = 1
			d, err := s.decide(utilization(nil))
			var e *Error
			require.ErrorAs(t, err, &e)
			assert.Equal(t, Error{c.kind, c.want}, *e)
			if c.notice {
				require.Len(t, d.Notices, 1)
				assert.Equal(t, UnsupportedSharing, d.Notices[0].Reason)
			} else {
				assert.Empty(t, d.Notices)
			}
		})
	}
}

// A pod that can be read beside one that never will is answered for; the other counts as
// missing, and may be busy.
func TestSomeUnreadable(t *testing.T) {
	s := tell(t, constant(90, 0), constant(90, 0))
	s.place(llm("a", id(0)), llm("b", id(1)), llm("c", "GPU-8dcd427f-483b-b48f-d7e5-75fb19a52b76-3"))
	s.until(30)
	d := s.must(utilization(nil))
	assert.Equal(t, []int{2, 1}, []int{d.Replicas.Counting, d.Replicas.Missing})
	assert.True(t, d.Active)
}

// A metric that some models lack is refused where most pods have such a GPU, by the name
// of the model.
func TestModelsWithoutTheMetric(t *testing.T) {
	s := tell(t)
	s.second = 1
	t4 := func(i int) snapshot.Device { return gpu(i, "Tesla T4", values{"gpu_utilization": 50}) }
	h100 := gpu(2, "NVIDIA H100", values{"gpu_utilization": 50, "tensor_activity": 30})
	s.n.say("nvmlsidecar", 1, t4(0), t4(1), h100)
	s.place(llm("a", id(0)), llm("b", id(1)), llm("c", id(2)))
	s.second = 2
	md := utilization(metadata{"metricType": "tensor_activity"})
	_, err := s.decide(md)
	var e *Error
	require.ErrorAs(t, err, &e)
	assert.Equal(t, Error{Impossible, "metricType: no GPU of 2 of the 3 pods of ScaledObject shop/llm has tensor_activity: Tesla T4; they have gpu_utilization"}, *e)
	s.w.Spec = 0
	s.place(llm("a", id(0)), llm("c", id(2)))
	d := s.must(md)
	assert.Equal(t, []int{1, 1}, []int{d.Replicas.Counting, d.Replicas.Missing})
	assert.True(t, d.Active)
}
