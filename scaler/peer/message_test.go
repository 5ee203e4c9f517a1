package peer

import (
	"bytes"
	"compress/gzip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/proto"

	"gpuscaler/scaler/fleet"
	"gpuscaler/shared/fixture"
)

// BenchmarkMessage compares what a message could be, of a recorded node with 8
// GPUs: its bytes, and the time that it takes to make and to understand it.
func BenchmarkMessage(b *testing.B) {
	f, err := fixture.Load("../../testdata/h100x8-uneven.csv")
	require.NoError(b, err)
	local := fleet.NewLocal("node-1", 10*time.Second, nopLog, time.Now())
	source := local.Connect()
	start := time.Now()
	now := start
	for i := range 60 {
		s := f.At(i)
		now = start.Add(s.Elapsed)
		require.NoError(b, source.Apply(&s, now))
	}
	zip := func(text []byte) []byte {
		var out bytes.Buffer
		w := gzip.NewWriter(&out)
		_, _ = w.Write(text)
		_ = w.Close()
		return out.Bytes()
	}
	plain := func(text []byte) []byte { return text }
	for _, c := range []struct {
		name   string
		full   bool
		squash func([]byte) []byte
	}{{"full", true, plain}, {"full, gzip", true, zip}, {"numbers", false, plain}, {"numbers, gzip", false, zip}} {
		b.Run(c.name, func(b *testing.B) {
			e := &encoder{start: now}
			e.encode(local.Node(), now)
			size := 0
			for b.Loop() {
				if c.full {
					e.told = nil
				}
				text, err := proto.Marshal(e.encode(local.Node(), now))
				require.NoError(b, err)
				size = len(c.squash(text))
			}
			b.ReportMetric(float64(size), "bytes")
		})
	}
}
