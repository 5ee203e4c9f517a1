package ingest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protodelim"

	"gpuscaler/shared/snapshot"
	"gpuscaler/shared/snapshotpb"
)

func prefix(size uint64) []byte { return binary.AppendUvarint(nil, size) }

// repeat is a frame of n times the same bytes.
func repeat(part string, n int) []byte {
	body := bytes.Repeat([]byte(part), n)
	return append(prefix(uint64(len(body))), body...)
}

// Nothing of this is heard; each ends its connection with the reason in the
// log; and the next good writer is served.
func TestHostileFrames(t *testing.T) {
	random := make([]byte, 4096)
	source := rand.NewChaCha8([32]byte{1})
	_, _ = source.Read(random)
	unchecked := func(m *snapshotpb.Sample) []byte { // what our own codec refuses to write
		var b bytes.Buffer
		_, err := protodelim.MarshalTo(&b, m)
		require.NoError(t, err)
		return b.Bytes()
	}
	with := func(change func(*snapshotpb.Sample)) []byte {
		m := snapshotpb.ToProto(sample("hostile"))
		change(m)
		return unchecked(m)
	}
	for name, c := range map[string]struct {
		bytes []byte
		want  string
	}{
		"garbage":            {random, "writer dropped"},
		"text":               {[]byte("GET / HTTP/1.1\r\n\r\nHost: x\r\n\r\n" + string(random)), "writer dropped"},
		"4 GiB":              {prefix(4 << 30), "message of 4294967296 bytes, at most 262144 are allowed"},
		"2^64-1":             {prefix(math.MaxUint64), "message of 18446744073709551615 bytes, at most 262144 are allowed"},
		"an endless length":  {bytes.Repeat([]byte{0xff}, 64), "overflows a 64-bit integer"},
		"1e6 devices":        {repeat("\x2a\x00", 1e6), "message of 2000000 bytes, at most 262144 are allowed"},
		"131,072 in a frame": {repeat("\x2a\x00", 131072), "more than 256 devices"},
		"NaN":                {with(func(m *snapshotpb.Sample) { m.Devices[0].Values["temperature"] = math.NaN() }), "temperature: NaN is outside"},
		"NaN of its own":     {with(func(m *snapshotpb.Sample) { m.Devices[0].Values["x_y"] = math.NaN() }), "x_y: NaN is outside"},
		"infinity":           {with(func(m *snapshotpb.Sample) { m.Devices[0].Counters = map[string]float64{"c": math.Inf(1)} }), "counter c: +Inf is outside"},
		"101 %":              {with(func(m *snapshotpb.Sample) { m.Devices[0].Values["gpu_utilization"] = 101 }), "gpu_utilization: 101 is outside 0 to 100"},
		"an id twice":        {with(func(m *snapshotpb.Sample) { m.Devices = append(m.Devices, m.Devices[0]) }), "appears twice"},
		"a newline":          {with(func(m *snapshotpb.Sample) { m.Writer = "a\nlevel=INFO msg=forged" }), "control character"},
		"time going back":    {with(func(m *snapshotpb.Sample) { m.Elapsed.Seconds = -1 }), "cannot be negative"},
	} {
		t.Run(name, func(t *testing.T) {
			r, path := listen(t)
			good := served(t, r, path, "good")
			bad := dial(t, path)
			_, _ = bad.Write(c.bytes)
			dropped(t, bad)
			eventually(t, "a line with "+c.want, func() bool { return r.logged(c.want) == 1 })
			assert.Equal(t, 1, r.logged("level=WARN"), r.lines())
			assert.Zero(t, r.logged("\nlevel=INFO msg=forged"))
			assert.Zero(t, r.heard("hostile"))

			_, err := good.Write(frame(t, sample("good")))
			require.NoError(t, err)
			eventually(t, "the writer beside it goes on", func() bool { return r.heard("good") == 2 })
			served(t, r, path, "next")
		})
	}
}

func TestTruncatedFrame(t *testing.T) {
	r, path := listen(t)
	c := dial(t, path)
	whole := frame(t, sample("truncated"))
	_, err := c.Write(whole[:len(whole)-1])
	require.NoError(t, err)
	require.NoError(t, c.Close())
	eventually(t, "log", func() bool { return r.logged("unexpected EOF") == 1 })
	assert.Zero(t, r.heard("truncated"))
	served(t, r, path, "next")
}

func TestSampleThatTheFleetRefuses(t *testing.T) {
	r, path := listen(t)
	r.mu.Lock()
	r.refuse = errors.New("not yours")
	r.mu.Unlock()
	c := dial(t, path)
	_, _ = c.Write(frame(t, sample("x")))
	dropped(t, c)
	eventually(t, "log", func() bool { return r.logged(`error="not yours"`) == 1 })
}

// drip writes a byte at a time, each on its own.
func drip(c *net.UnixConn, all []byte, every time.Duration) error {
	pace := time.NewTicker(every)
	defer pace.Stop()
	for i := range all {
		if _, err := c.Write(all[i : i+1]); err != nil {
			return err
		}
		<-pace.C
	}
	return nil
}

func TestByteAtATime(t *testing.T) {
	t.Run("within the time", func(t *testing.T) {
		r, path := listen(t)
		require.NoError(t, drip(dial(t, path), frame(t, sample("slow")), time.Millisecond))
		eventually(t, "it is heard", func() bool { return r.heard("slow") == 1 })
	})
	t.Run("too late", func(t *testing.T) {
		r, path := listen(t, func(o *Options) { o.FrameTimeout = 200 * time.Millisecond })
		s := sample("slow")
		s.Version = string(bytes.Repeat([]byte{'x'}, snapshot.MaxText))
		assert.Error(t, drip(dial(t, path), frame(t, s), 5*time.Millisecond), "bytes buy no time")
		eventually(t, "log", func() bool { return r.logged("no whole message in time") == 1 })
		assert.Zero(t, r.heard("slow"))
		served(t, r, path, "next")
	})
	t.Run("empty frames", func(t *testing.T) {
		r, path := listen(t, func(o *Options) { o.FrameTimeout = 200 * time.Millisecond })
		assert.Error(t, drip(dial(t, path), make([]byte, 1000), 5*time.Millisecond), "they buy none either")
		eventually(t, "log", func() bool { return r.logged("no whole message in time") == 1 })
	})
}

func TestSilenceIsDropped(t *testing.T) {
	r, path := listen(t, func(o *Options) { o.FrameTimeout = 100 * time.Millisecond })
	c := served(t, r, path, "good")
	eventually(t, "log", func() bool { return r.logged("no whole message in time") == 1 })
	dropped(t, c)
}

// Connections that never speak do not keep good writers out, and those who
// spoke stay.
func TestFlood(t *testing.T) {
	r, path := listen(t)
	first := served(t, r, path, "first")
	flood := func() {
		for range 200 {
			dial(t, path)
		}
	}
	flood()
	second := served(t, r, path, "second")
	flood()
	for _, c := range []*net.UnixConn{first, second} {
		_, err := c.Write(frame(t, sample("again")))
		require.NoError(t, err)
	}
	eventually(t, "both are still heard", func() bool { return r.heard("again") == 2 })
	eventually(t, "the flood is bounded", func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.open-r.closed <= maxConnections
	})

	// A good writer that comes in the middle of a flood has the time in which
	// the others come to speak: it is the oldest idle one that goes.
	third := dial(t, path)
	for range maxConnections - 3 {
		dial(t, path)
	}
	_, err := third.Write(frame(t, sample("third")))
	require.NoError(t, err)
	eventually(t, "the third is heard", func() bool { return r.heard("third") == 1 })
}

// Frames that are as large as allowed and never end cost no more than their
// size for each connection that there may be.
func TestMemory(t *testing.T) {
	r, path := listen(t)
	served(t, r, path, "good")
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	unfinished := append(prefix(snapshotpb.MaxFrame), make([]byte, snapshotpb.MaxFrame-1)...)
	for range 8 * maxConnections {
		c := dial(t, path)
		require.NoError(t, c.SetWriteDeadline(time.Now().Add(10*time.Second)))
		_, _ = c.Write(unfinished) // may be closed for the sake of others
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	grown := int64(after.HeapAlloc) - int64(before.HeapAlloc)
	assert.Less(t, grown, int64((maxConnections+8)*snapshotpb.MaxFrame))
	served(t, r, path, "next")
}
