package externalscaler

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	pb "github.com/kedacore/keda/v2/pkg/scalers/externalscaler"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// tape is the sending side of a stream: what was sent, and when.
type tape[T any] struct {
	grpc.ServerStream
	ctx   context.Context
	start time.Time
	fail  error

	mu   sync.Mutex
	sent []*T
	when []time.Duration
}

func newTape[T any](ctx context.Context) *tape[T] { return &tape[T]{ctx: ctx, start: time.Now()} }

func (s *tape[T]) Context() context.Context { return s.ctx }

func (s *tape[T]) Send(m *T) error {
	if s.fail != nil {
		return s.fail
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sent = append(s.sent, m)
	s.when = append(s.when, time.Since(s.start).Round(time.Millisecond))
	return nil
}

// activity is a tape in short: "1s true".
func activity(s *tape[pb.IsActiveResponse]) (all []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, m := range s.sent {
		state := " false"
		if m.GetResult() {
			state = " true"
		}
		all = append(all, s.when[i].String()+state)
	}
	return all
}

// bubble is a service with a stream of activity, on a clock that costs nothing.
type bubble struct {
	*node
	*tape[pb.IsActiveResponse]
	t       *testing.T
	service *Service
	shelf   *shelf
	end     chan error
}

func inBubble(t *testing.T, md metadata, first []float64, test func(b *bubble)) {
	synctest.Test(t, func(t *testing.T) {
		b := &bubble{node: newNode(10 * time.Second), tape: newTape[pb.IsActiveResponse](t.Context()), t: t, shelf: newShelf(), end: make(chan error, 1)}
		b.service = NewService(b.fleet(), b.shelf, b.staleAfter, nopLog)
		if first != nil {
			b.utilization(t, first...)
		}
		go func() { b.end <- b.service.StreamIsActive(ref(md), b.tape) }()
		synctest.Wait()
		test(b)
		select {
		case <-b.service.stopping:
		default:
			b.service.Stop()
		}
		synctest.Wait()
		assert.NoError(t, <-b.end, "it ends cleanly")
	})
}

// speak has the reader say the same each second for a while.
func (b *bubble) speak(seconds int, percent ...float64) {
	for range seconds {
		time.Sleep(time.Second)
		b.utilization(b.t, percent...)
		synctest.Wait()
	}
}

func TestStreamOnTheBeat(t *testing.T) {
	md := func(seconds string) metadata {
		return metadata{"window": "0s", "pollIntervalSeconds": seconds, "activationThreshold": "50"}
	}
	t.Run("true again at each heartbeat", func(t *testing.T) {
		inBubble(t, md("3"), []float64{80}, func(b *bubble) {
			assert.Equal(t, []string{"0s true"}, activity(b.tape), "at once")
			b.speak(10, 80)
			assert.Equal(t, []string{"0s true", "3s true", "6s true", "9s true"}, activity(b.tape))
		})
	})
	t.Run("false once", func(t *testing.T) {
		inBubble(t, md("1"), []float64{10}, func(b *bubble) {
			b.speak(10, 10)
			assert.Equal(t, []string{"0s false"}, activity(b.tape))
		})
	})
	t.Run("on every change", func(t *testing.T) {
		inBubble(t, md("3600"), []float64{10}, func(b *bubble) {
			for _, percent := range []float64{80, 90, 20, 50, 50.1} {
				b.speak(1, percent)
			}
			assert.Equal(t, []string{"0s false", "1s true", "3s false", "5s true"}, activity(b.tape))
		})
	})
	t.Run("nothing while data is missing", func(t *testing.T) {
		inBubble(t, md("4"), nil, func(b *bubble) {
			time.Sleep(30 * time.Second)
			synctest.Wait()
			assert.Empty(t, activity(b.tape), "nothing heard yet")
			b.speak(1, 80) // at 31 s
			b.speak(1, 80)
			assert.Equal(t, []string{"31s true", "32s true"}, activity(b.tape))
			time.Sleep(60 * time.Second) // stale from 42 s on
			synctest.Wait()
			assert.Equal(t, []string{"31s true", "32s true", "36s true", "40s true"}, activity(b.tape))
			b.speak(1, 20) // at 93 s
			assert.Equal(t, []string{"31s true", "32s true", "36s true", "40s true", "1m33s false"}, activity(b.tape), "what changed meanwhile is told at once")
		})
	})
	t.Run("the same state after a gap waits for the heartbeat", func(t *testing.T) {
		inBubble(t, md("60"), []float64{20}, func(b *bubble) {
			time.Sleep(30 * time.Second)
			b.speak(60, 20)
			assert.Equal(t, []string{"0s false"}, activity(b.tape))
		})
	})
	t.Run("always active", func(t *testing.T) {
		inBubble(t, metadata{"profile": "training", "pollIntervalSeconds": "10"}, nil, func(b *bubble) {
			time.Sleep(25 * time.Second)
			synctest.Wait()
			assert.Equal(t, []string{"0s true", "10s true", "20s true"}, activity(b.tape), "with no data at all")
		})
	})
}

func TestStreamEnds(t *testing.T) {
	t.Run("before the grace of an ageing connection does", func(t *testing.T) {
		for range 20 {
			synctest.Test(t, func(t *testing.T) {
				n := newNode(minute)
				begun := time.Now()
				s := NewService(n.fleet(), newShelf(), minute, nopLog)
				require.NoError(t, s.StreamIsActive(ref(nil), newTape[pb.IsActiveResponse](t.Context())), "cleanly")
				assert.Greater(t, time.Since(begun), connectionGrace/2)
				assert.Less(t, time.Since(begun), connectionGrace)
				begun = time.Now()
				require.NoError(t, s.StreamMetricSpec(ref(nil), newTape[pb.GetMetricSpecResponse](t.Context())), "cleanly")
				assert.Greater(t, time.Since(begun), connectionGrace/2)
				assert.Less(t, time.Since(begun), connectionGrace)
			})
		}
	})
	t.Run("with the client", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := NewService(newNode(minute).fleet(), newShelf(), minute, nopLog)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			assert.ErrorIs(t, s.StreamIsActive(ref(nil), newTape[pb.IsActiveResponse](ctx)), context.DeadlineExceeded)
			assert.ErrorIs(t, s.StreamMetricSpec(ref(nil), newTape[pb.GetMetricSpecResponse](ctx)), context.DeadlineExceeded)
		})
	})
	t.Run("when it cannot send", func(t *testing.T) {
		broken := errors.New("broken")
		s := NewService(newNode(minute).fleet(), newShelf(), minute, nopLog)
		active := newTape[pb.IsActiveResponse](t.Context())
		active.fail = broken
		assert.ErrorIs(t, s.StreamIsActive(ref(metadata{"profile": "training"}), active), broken)
		specs := newTape[pb.GetMetricSpecResponse](t.Context())
		specs.fail = broken
		assert.ErrorIs(t, s.StreamMetricSpec(ref(nil), specs), broken)
	})
}

// A profile that goes away makes metadata bad that was good.
func TestStreamWhoseProfileGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		shelf := newShelf()
		shelf.put(t, "ours", "gpu_utilization", "50")
		s := NewService(newNode(minute).fleet(), shelf, minute, nopLog)
		ends := make(chan error, 2)
		go func() {
			ends <- s.StreamIsActive(ref(metadata{"profile": "ours"}), newTape[pb.IsActiveResponse](t.Context()))
		}()
		go func() {
			ends <- s.StreamMetricSpec(ref(metadata{"profile": "ours"}), newTape[pb.GetMetricSpecResponse](t.Context()))
		}()
		synctest.Wait()
		require.Empty(t, ends)
		shelf.put(t, "", "", "")
		for range 2 {
			err := <-ends
			assert.Equal(t, codes.InvalidArgument, status.Code(err))
			assert.ErrorContains(t, err, `profile: "ours" is unknown`)
		}
	})
}

// The same over a real connection: what KEDA sees.
func TestStreamIsActiveOverTheWire(t *testing.T) {
	t.Parallel()
	r := serve(t, minute)
	r.utilization(t, 80)
	stream, err := r.client.StreamIsActive(t.Context(), ref(metadata{"window": "0s", "pollIntervalSeconds": "1", "activationThreshold": "50"}))
	require.NoError(t, err)
	active := receive(stream)
	assert.True(t, active.next(t, time.Second).GetResult(), "at once")
	begun := time.Now()
	for range 2 {
		assert.True(t, active.next(t, 5*time.Second).GetResult(), "again")
	}
	assert.Greater(t, time.Since(begun), 1500*time.Millisecond, "at the heartbeat, not before")
	r.utilization(t, 20)
	for active.next(t, time.Second).GetResult() { // a heartbeat may be on its way
	}
	r.stop()
	assert.EqualError(t, active.ends(t, 5*time.Second), "EOF")
	assert.Empty(t, active.messages, "false is said once")
}

func TestStreamMetricSpecOverTheWire(t *testing.T) {
	r := serve(t, minute)
	r.shelf.put(t, "ours", "gpu_utilization", "50")
	stream, err := r.client.StreamMetricSpec(t.Context(), ref(metadata{"profile": "ours"}))
	require.NoError(t, err)
	specs := receive(stream)
	target := func(want float64) {
		t.Helper()
		all := specs.next(t, 5*time.Second).GetMetricSpecs()
		require.Len(t, all, 1, "never an empty list")
		assert.Equal(t, "keda_gpu_ours", all[0].GetMetricName())
		assert.Equal(t, want, all[0].GetTargetSizeFloat())
		same, err := r.client.GetMetricSpec(t.Context(), ref(metadata{"profile": "ours"}))
		require.NoError(t, err)
		assert.Equal(t, want, same.GetMetricSpecs()[0].GetTargetSizeFloat())
	}
	target(50)
	r.shelf.put(t, "ours", "gpu_utilization", "60.5")
	target(60.5)
	r.shelf.put(t, "ours", "temperature", "60.5") // no other name, no other target
	r.shelf.put(t, "ours", "temperature", "70")
	target(70)
	r.stop()
	assert.EqualError(t, specs.ends(t, 5*time.Second), "EOF")
	assert.Empty(t, specs.messages, "what has not changed is not sent again")
}
