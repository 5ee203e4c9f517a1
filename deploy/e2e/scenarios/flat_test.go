package scenarios

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// fiveMinutes is for stories on what five minutes of readings show.
const fiveMinutes = 8 * time.Minute

// reserved is 90 % of an H100's memory, as vLLM has it by default.
const reserved = "set * memory_used_mib 73403"

// TestFlatMemory: engines reserve 90 % of the memory, with a target of 80. None of them
// ever gets a replica more; once five minutes show that the memory does not move, those
// without work go to their minimum or to zero, and those that work keep what they have.
func TestFlatMemory(t *testing.T) {
	s := begin(t, setting{name: "flat", fixture: "h100x8-uneven", replicas: 3, node: ofWorkloads(), within: fiveMinutes})
	kept, busy := s.beside("kept", 2), s.beside("busy", 2)
	for of, n := range map[*story]int{s: 3, kept: 2, busy: 2} {
		s.eventually(fmt.Sprintf("%d pods of %s have GPUs", n, of.name), of.gpus(n))
	}
	known := time.Now().Add(270 * time.Second) // until then at least five minutes are not; a slow machine is active late
	s.loads(map[*story]float64{busy: 60}, reserved)
	s.scale(quick, "profile", "vllm-inference")
	kept.scale(holding, "profile", "vllm-inference")
	busy.scale(quick, "profile", "vllm-inference")
	s.eventually("active", s.condition("Active", "True"))
	s.always("3, 2 and 2 replicas until five minutes are known", time.Until(known).Round(time.Second), func() error {
		for of, n := range map[*story]int{s: 3, kept: 2, busy: 2} {
			if err := of.replicas(n)(); err != nil {
				return fmt.Errorf("%s: %w", of.name, err)
			}
		}
		return nil
	})
	s.eventually("0 replicas", s.replicas(0))
	kept.eventually("1 replica, the minimum", kept.replicas(1))
	s.eventually("the user is told", s.said("FlatSignal", "memory_used_percent", "does not follow"))
	// The Event says how many there were when it was made: the pods' five minutes need not be known at once.
	busy.eventually("the user is told of those that work", busy.said("FlatSignal", "of 2 pods"))
	busy.eventually("Prometheus is told", busy.exported(2, "gpuscaler_trigger_flat_pods", fmt.Sprintf("scaledobject=%q", busy.name)))
	busy.always("2 replicas of those that work", 10*time.Second, busy.replicas(2))
}

// TestMemoryThatMoves: an engine whose memory goes up and down with its requests scales
// on it, and a new replica, whose memory is not known to move, does not ask for more.
func TestMemoryThatMoves(t *testing.T) {
	s := begin(t, setting{name: "moving", fixture: "h100x8-uneven", replicas: 1, node: ofWorkloads(), within: fiveMinutes})
	s.eventually("its pod has a GPU", s.gpus(1))
	known := time.Now().Add(270 * time.Second)
	ids, err := s.Devices(s.ctx, s.node)
	s.must(err)
	stop := s.waves(ids[0], 40, 60)
	s.scale(holding, "profile", "vllm-inference")
	s.eventually("active", s.condition("Active", "True"))
	s.always("1 replica until five minutes are known", time.Until(known).Round(time.Second), s.replicas(1))
	s.eventually("its memory counts", s.hpaBelow(65))
	stop()
	s.waves(ids[0], 90, 96)
	s.eventually("2 replicas", s.replicas(2)) // and the mean of 93 and the target of 80 is within the tolerance
	s.always("2 replicas", 25*time.Second, s.replicas(2))
}

// waves has the memory of a GPU go up and down between two percentages of an H100's,
// until stop is called or the story ends. All else is idle.
func (s *story) waves(id string, low, high float64) (stop func()) {
	s.Helper()
	ctx, cancel := context.WithCancel(s.ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for i := 0; ctx.Err() == nil; i++ {
			percent := []float64{low, high}[i%2]
			_ = s.node.Driver("set * gpu_utilization 0", fmt.Sprintf("set %s gpu_utilization 50", id),
				"set * memory_used_mib 800", fmt.Sprintf("set %s memory_used_mib %.0f", id, 815.59*percent)) // what fails comes again
			select {
			case <-ctx.Done():
			case <-time.After(5 * time.Second):
			}
		}
	}()
	stop = func() { cancel(); <-ended }
	s.Cleanup(stop)
	return stop
}

// hpaBelow checks that the value per replica that the HPA shows is below a limit.
func (s *story) hpaBelow(limit float64) func() error {
	return func() error {
		got, err := s.shown()
		if err == nil && got >= limit {
			err = fmt.Errorf("the HPA shows %v; want less than %v", got, limit)
		}
		return err
	}
}

// exported checks what the node's scaler exports: the one series of a name that has
// all words among its labels.
func (s *story) exported(want float64, name string, words ...string) func() error {
	return func() error {
		request, err := http.NewRequestWithContext(s.ctx, http.MethodGet, "http://"+s.node.HTTP+"/metrics", nil)
		require.NoError(s, err)
		response, err := http.DefaultClient.Do(request)
		if err != nil {
			return err
		}
		defer func() { _ = response.Body.Close() }()
		text, err := io.ReadAll(response.Body)
		if err != nil {
			return err
		}
		lines := slices.DeleteFunc(strings.Split(string(text), "\n"), func(line string) bool {
			return !strings.HasPrefix(line, name+"{") || !containsAll(line, words)
		})
		if len(lines) != 1 || !strings.HasSuffix(lines[0], fmt.Sprintf(" %g", want)) {
			return fmt.Errorf("%s of %q is %q; want %g", name, words, lines, want)
		}
		return nil
	}
}
