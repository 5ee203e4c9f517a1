package scenarios

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestEditedTrigger: ten replicas at their target stay ten when the kind of their target
// is edited, to and fro; and an edited target leads to the replicas that it asks for, and
// to no more on the way.
func TestEditedTrigger(t *testing.T) {
	s := begin(t, setting{name: "edited", fixture: "twenty-steps", replicas: 10, node: ofWorkloads()})
	s.eventually("10 pods have GPUs", s.gpus(10))
	s.loads(map[*story]float64{s: 80})
	edit := func(kind, target string) {
		s.Helper()
		s.scaleOn("external", holding, "    metricType: "+kind+"\n", "targetValue", target, "window", "0s")
	}
	edit("AverageValue", "80")
	s.eventually("the HPA shows 80", s.hpaValue(80))
	for i := range 4 {
		for _, kind := range []string{"Value", "AverageValue"} {
			edit(kind, "80")
			// KEDA and the HPA look each second, at different moments each time; there is no
			// number for the first four or so.
			s.always(fmt.Sprintf("10 replicas with a target of %s", kind), 6*time.Second+time.Duration(i)*230*time.Millisecond, s.replicas(10))
		}
	}
	edit("Value", "75") // both at once, and still within the tolerance
	s.always("10 replicas with another kind and another target", 7*time.Second, s.replicas(10))

	most := 0
	edit("AverageValue", "50")
	var end time.Time // some looks of the HPA after the first change
	for ; end.IsZero() || time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		wanted, _, err := s.Replicas(s.ctx) // fails when the story takes too long
		s.must(err)
		if most = max(most, wanted); most > 10 && end.IsZero() {
			end = time.Now().Add(5 * time.Second)
		}
		require.GreaterOrEqual(t, wanted, 10)
	}
	require.Equal(t, 16, most, "the most replicas: 10 x 80 / 50")
	s.eventually("16 replicas", s.replicas(16))
}
