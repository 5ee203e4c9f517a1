package externalscaler

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "github.com/kedacore/keda/v2/pkg/scalers/externalscaler"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// feed has the reader speak until stop is called, above 75 % every other time.
func (r *rig) feed(t testing.TB, every time.Duration) (stop func()) {
	done := make(chan struct{})
	var feeder sync.WaitGroup
	feeder.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for i := 0; ; i++ {
			select {
			case <-done:
				return
			case <-tick.C:
				r.utilization(t, float64(i%2*100), 50)
			}
		}
	})
	return func() {
		close(done)
		feeder.Wait()
	}
}

// goroutinesReturn insists that there are as many as at the start again.
func goroutinesReturn(t testing.TB, start int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d goroutines again", start), func() bool { return runtime.NumGoroutine() <= start })
}

// A thousand streams and 64 callers at once, while samples arrive.
func TestManyStreamsAndCallers(t *testing.T) {
	const streams, callers, callsEach = 1000, 64, 20
	begin := runtime.NumGoroutine()
	t.Run("load", func(t *testing.T) {
		r := serve(t, minute)
		r.utilization(t, 50, 50)
		stopFeeding := r.feed(t, 100*time.Millisecond)

		var all sync.WaitGroup
		var slowest atomic.Int64
		var opened, ended sync.WaitGroup
		opened.Add(streams)
		ended.Add(streams)
		// Half of them see a change with every sample; the others would be sent
		// nothing for a minute, were it not at once.
		kinds := []metadata{
			{"window": "0s", "activationThreshold": "75", "pollIntervalSeconds": "1"},
			{"window": "0s", "pollIntervalSeconds": "60"},
		}
		for i := range streams {
			go func() {
				defer ended.Done()
				begun := time.Now()
				stream, err := r.client.StreamIsActive(t.Context(), ref(kinds[i%2]))
				if !assert.NoError(t, err) {
					opened.Done()
					return
				}
				_, err = stream.Recv()
				assert.NoError(t, err)
				for took := int64(time.Since(begun)); ; {
					if old := slowest.Load(); took <= old || slowest.CompareAndSwap(old, took) {
						break
					}
				}
				opened.Done()
				for err == nil {
					_, err = stream.Recv()
				}
				assert.EqualError(t, err, "EOF", "the server ends it, cleanly")
			}()
		}
		for range callers {
			all.Go(func() {
				for range callsEach {
					v, err := r.get(metadata{"aggregation": "avg"})
					if assert.NoError(t, err) {
						assert.GreaterOrEqual(t, v.GetMetricValueFloat(), 25.0)
						assert.LessOrEqual(t, v.GetMetricValueFloat(), 75.0)
					}
				}
			})
		}
		all.Wait()
		opened.Wait()
		t.Logf("slowest first message of %d streams: %v", streams, time.Duration(slowest.Load()))
		assert.Less(t, time.Duration(slowest.Load()), firstMessage)
		stopFeeding()
		r.stop()
		ended.Wait()
	})
	goroutinesReturn(t, begin)
}

// firstMessage bounds how long any of a thousand streams, opened at once, may
// wait for its first message. It takes 0.3 s with the race detector; the rest is
// for a machine that is busy with other tests.
const firstMessage = 10 * time.Second

// Clients that go away without a word leave nothing behind.
func TestClientsThatGo(t *testing.T) {
	begin := runtime.NumGoroutine()
	t.Run("load", func(t *testing.T) {
		r := serve(t, minute)
		r.utilization(t, 50)
		server := runtime.NumGoroutine()
		for range 200 {
			stream, err := r.client.StreamIsActive(t.Context(), ref(nil))
			require.NoError(t, err)
			_, err = stream.Recv()
			require.NoError(t, err)
		}
		assert.Greater(t, runtime.NumGoroutine(), server+200)
		require.NoError(t, r.conn.Close())
		goroutinesReturn(t, server)
		r.stop()
	})
	goroutinesReturn(t, begin)
}

// An answer never waits for a sample, nor a sample for an answer.
func TestAnswersFromMemory(t *testing.T) {
	r := serve(t, minute)
	r.utilization(t, 75)
	service := NewService(r.fleet(), r.shelf, minute, nopLog)
	allocations := testing.AllocsPerRun(200, func() {
		_, err := service.GetMetrics(t.Context(), &pb.GetMetricsRequest{ScaledObjectRef: ref(nil)})
		assert.NoError(t, err)
	})
	assert.Less(t, allocations, 40.0)
}
