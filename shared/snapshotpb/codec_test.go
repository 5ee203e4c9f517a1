package snapshotpb

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"gpuscaler/shared/snapshot"
)

// full uses every field of the wire form.
func full() *snapshot.Sample {
	return &snapshot.Sample{
		Writer: "nvmlsidecar", Version: "v1.2.3", Elapsed: 90*time.Second + 7, Refused: 2,
		Devices: []snapshot.Device{
			{
				ID: "GPU-a", Vendor: "nvidia", Model: "NVIDIA H200", File: "nvidia2", Index: 3,
				MemoryTotalMiB: 143771, MemoryReservedMiB: 624.5,
				Values:    map[string]float64{"temperature": -3, "x_wear_percent": 12.25},
				Counters:  map[string]float64{"energy_joules": 123456.789},
				Failed:    map[string]string{"power_draw": "UNKNOWN"},
				Processes: []snapshot.Process{{PID: 4711, UsedMiB: 70000}, {PID: math.MaxUint32, UsedMiB: 0.5}},
			},
			{ID: "MIG-a", Vendor: "nvidia", Index: 3, Parent: "GPU-a", Instance: 9, Profile: "1g.18gb"},
			{ID: "GPU-b", Vendor: "nvidia", Error: "GPU_IS_LOST"},
		},
	}
}

func frame(t testing.TB, s *snapshot.Sample) []byte {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, Write(&b, s))
	return b.Bytes()
}

// delimited puts a length in front of a message that Write would refuse.
func delimited(message []byte) []byte {
	return append(binary.AppendUvarint(nil, uint64(len(message))), message...)
}

func marshal(t *testing.T, m *Sample) []byte {
	t.Helper()
	b, err := proto.Marshal(m)
	require.NoError(t, err)
	return delimited(b)
}

func read(b []byte) (*snapshot.Sample, error) {
	return Read(bufio.NewReader(bytes.NewReader(b)))
}

func TestRoundTrip(t *testing.T) {
	samples := map[string]*snapshot.Sample{
		"everything": full(),
		"no devices": {Writer: "w", Devices: []snapshot.Device{}},
		"an error":   {Writer: "w", Error: "ERROR_LIBRARY_NOT_FOUND", Devices: []snapshot.Device{}},
	}
	for name, s := range samples {
		t.Run(name, func(t *testing.T) {
			got, err := read(frame(t, s))
			require.NoError(t, err)
			assert.Equal(t, s, got)
		})
	}
}

func TestReadOneAfterAnotherSkippingEmptyFrames(t *testing.T) {
	first, second := full(), full()
	second.Elapsed++
	stream := append([]byte{0, 0}, frame(t, first)...)
	stream = append(stream, 0, 0x80, 0) // 0x80 0x00 is a zero of two bytes
	stream = append(stream, frame(t, second)...)
	stream = append(stream, 0)
	readers := map[string]io.Reader{
		"at once":          bytes.NewReader(stream),
		"a byte at a time": iotest.OneByteReader(bytes.NewReader(stream)),
		"in halves":        iotest.HalfReader(bytes.NewReader(stream)),
		"data with EOF":    iotest.DataErrReader(bytes.NewReader(stream)),
	}
	for name, reader := range readers {
		t.Run(name, func(t *testing.T) {
			r := bufio.NewReaderSize(reader, 16)
			got, err := Read(r)
			require.NoError(t, err)
			assert.Equal(t, first, got)
			got, err = Read(r)
			require.NoError(t, err)
			assert.Equal(t, second, got)
			_, err = Read(r)
			assert.Equal(t, io.EOF, err)
		})
	}
}

// Every place at which a stream can break off is an error, and only the one
// between two frames is io.EOF.
func TestReadTruncated(t *testing.T) {
	b := frame(t, full())
	require.Greater(t, len(b), 128, "the length has to take two bytes")
	_, err := read(nil)
	assert.Equal(t, io.EOF, err)
	for n := 1; n < len(b); n++ {
		_, err := read(b[:n])
		require.Equal(t, io.ErrUnexpectedEOF, err, "after %d of %d bytes", n, len(b))
	}
}

func TestReadPassesOnTheReadersError(t *testing.T) {
	broken := errors.New("connection reset")
	b := frame(t, full())
	for _, n := range []int{0, 1, 2, len(b) - 1} {
		r := io.MultiReader(bytes.NewReader(b[:n]), iotest.ErrReader(broken))
		_, err := Read(bufio.NewReader(r))
		require.ErrorIs(t, err, broken, "after %d bytes", n)
	}
}

func TestReadRejects(t *testing.T) {
	device := func(d *Device) *Sample { return &Sample{Devices: []*Device{d}} }
	tests := []struct {
		name  string
		bytes []byte
		want  string
	}{
		{"NaN", marshal(t, device(&Device{Id: "a", Vendor: "v", Values: map[string]float64{"temperature": math.NaN()}})),
			`device 0 ("a"): temperature: NaN is outside -100 to 300 °C`},
		{"infinity in a custom metric", marshal(t, device(&Device{Id: "a", Vendor: "v", Values: map[string]float64{"x_w": math.Inf(1)}})),
			`device 0 ("a"): x_w: +Inf is outside -1e+15 to 1e+15 `},
		{"NaN counter", marshal(t, device(&Device{Id: "a", Vendor: "v", Counters: map[string]float64{"c": math.NaN()}})),
			`device 0 ("a"): counter c: NaN is outside 0 to 4.611686018427388e+18`},
		{"largest index", marshal(t, device(&Device{Id: "a", Vendor: "v", Index: math.MaxUint32})),
			`device 0 ("a"): index 4294967295 is outside 0 to 65535`},
		{"largest instance", marshal(t, device(&Device{Id: "a", Vendor: "v", Instance: math.MaxUint32})),
			`device 0 ("a"): instance 4294967295 is outside 0 to 65535`},
		{"negative elapsed", marshal(t, &Sample{Elapsed: durationpb.New(-time.Second)}), "elapsed is -1s, it cannot be negative"},
		{"malformed elapsed", marshal(t, &Sample{Elapsed: &durationpb.Duration{Seconds: 1, Nanos: -1}}), "has seconds and nanos with different signs"},
		{"elapsed beyond all time", marshal(t, &Sample{Elapsed: &durationpb.Duration{Seconds: math.MaxInt64}}), "exceeds +10000 years"},
		{"invalid UTF-8", delimited([]byte{1<<3 | 2, 1, 0xff}), "invalid UTF-8"},
		{"HTTP", []byte("GET / HTTP/1.1\r\nHost: localhost\r\nAccept: text/html,application/xhtml+xml;q=0.9\r\n\r\n"), ""},
		{"group that does not end", delimited([]byte{1<<3 | 3}), "unexpected EOF"},
		{"field number 0", delimited([]byte{0, 0}), "invalid field number"},
		{"length without end", bytes.Repeat([]byte{0xff}, 11), "overflows"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := read(tt.bytes)
			require.ErrorContains(t, err, tt.want)
			assert.Nil(t, got)
		})
	}
}

// allocated is how many bytes of memory f takes, freed or not.
func allocated(f func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	f()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

func TestReadChecksTheLengthBeforeTakingMemory(t *testing.T) {
	for _, size := range []uint64{MaxFrame + 1, 4<<30 - 1, 4 << 30, math.MaxUint64} {
		in := append(binary.AppendUvarint(nil, size), make([]byte, 64)...)
		r := bufio.NewReader(bytes.NewReader(in))
		var err error
		got := allocated(func() { _, err = Read(r) })
		require.EqualError(t, err, fmt.Sprintf("message of %d bytes, at most 262144 are allowed", size))
		assert.Less(t, got, uint64(16<<10), "a length of %d", size)
	}
}

func TestReadTakesTheLargestFrame(t *testing.T) {
	// An unknown field fills the frame exactly: it costs nothing but its bytes.
	filler := protowire.AppendTag(nil, 1000, protowire.BytesType)
	n := MaxFrame - len(filler) - 3
	filler = protowire.AppendBytes(filler, make([]byte, n))
	require.Len(t, filler, MaxFrame)
	_, err := read(delimited(filler))
	require.NoError(t, err)
	_, err = read(delimited(append(filler, 0)))
	require.EqualError(t, err, "message of 262145 bytes, at most 262144 are allowed")
}

func TestReadCountsDevicesBeforeUnpackingThem(t *testing.T) {
	empty := protowire.AppendBytes(protowire.AppendTag(nil, 5, protowire.BytesType), nil)
	// A million do not even fit; as many as fit would take some 25 MB unpacked.
	_, err := read(delimited(bytes.Repeat(empty, 1_000_000)))
	require.EqualError(t, err, "message of 2000000 bytes, at most 262144 are allowed")

	in := delimited(bytes.Repeat(empty, MaxFrame/len(empty)))
	got := allocated(func() { _, err = read(in) })
	require.EqualError(t, err, "more than 256 devices")
	assert.Less(t, got, uint64(2*MaxFrame), "not much more than the frame itself")

	_, err = read(delimited(bytes.Repeat(empty, snapshot.MaxDevices+1)))
	require.EqualError(t, err, "more than 256 devices")
	_, err = read(delimited(bytes.Repeat(empty, snapshot.MaxDevices)))
	require.EqualError(t, err, `device 0 (""): id and vendor must not be empty`)
}

// The worst a frame can do is to be full of the smallest parts there are.
func TestReadOfAnyFrameTakesBoundedMemory(t *testing.T) {
	inDevice := func(field protowire.Number) []byte {
		part := protowire.AppendBytes(protowire.AppendTag(nil, field, protowire.BytesType), nil)
		body := bytes.Repeat(part, (MaxFrame-16)/len(part))
		return delimited(protowire.AppendBytes(protowire.AppendTag(nil, 5, protowire.BytesType), body))
	}
	distinct := func() []byte { // map entries with keys of their own
		var body []byte
		for i := 0; len(body) < MaxFrame-32; i++ {
			entry := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), fmt.Sprintf("%x", i))
			body = protowire.AppendBytes(protowire.AppendTag(body, 10, protowire.BytesType), entry)
		}
		return delimited(protowire.AppendBytes(protowire.AppendTag(nil, 5, protowire.BytesType), body))
	}
	for name, in := range map[string][]byte{
		"processes": inDevice(14), "values": inDevice(10), "failures": inDevice(12), "distinct values": distinct(),
	} {
		var err error
		got := allocated(func() { _, err = read(in) })
		require.Error(t, err, name)
		t.Logf("%s: %d KiB", name, got>>10)
		assert.Less(t, got, uint64(2*MaxFrame), name)
	}
}

func TestWriteRefusesWhatReadWouldReject(t *testing.T) {
	bad := full()
	bad.Devices[0].Values["temperature"] = math.NaN()
	large := &snapshot.Sample{}
	for i := range snapshot.MaxDevices {
		failed := map[string]string{}
		for j := range 8 {
			failed[fmt.Sprint("x_", j)] = strings.Repeat("r", snapshot.MaxText)
		}
		large.Devices = append(large.Devices, snapshot.Device{ID: fmt.Sprint(i), Vendor: "v", Failed: failed})
	}
	for want, s := range map[string]*snapshot.Sample{
		`device 0 ("GPU-a"): temperature: NaN is outside`: bad,
		"bytes, at most 262144 are allowed":               large,
	} {
		var out bytes.Buffer
		require.ErrorContains(t, Write(&out, s), want)
		assert.Zero(t, out.Len(), "nothing may have been written")
	}
}

func TestWritePassesOnTheWritersError(t *testing.T) {
	r, w := io.Pipe()
	require.NoError(t, r.CloseWithError(io.ErrClosedPipe))
	require.ErrorIs(t, Write(w, full()), io.ErrClosedPipe)
}

// Whatever arrives, Read must not panic, and what it accepts is a sample that
// can be sent on and arrives the same.
func FuzzRead(f *testing.F) {
	good := frame(f, full())
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add(append([]byte{0, 0}, good...))
	f.Add(append(bytes.Clone(good), good...))
	f.Add(frame(f, &snapshot.Sample{Error: "no driver"}))
	f.Add(binary.AppendUvarint(nil, 4<<30))
	f.Add(delimited([]byte{5<<3 | 2, 0, 5<<3 | 2, 0}))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bufio.NewReader(bytes.NewReader(b))
		for {
			s, err := Read(r)
			if err != nil {
				require.Nil(t, s)
				return
			}
			if proto.Size(ToProto(s)) > MaxFrame {
				continue // defaults that the writer left out can make it longer
			}
			again, err := read(frame(t, s))
			require.NoError(t, err)
			// As messages, because a map may be empty or not there at all.
			require.True(t, proto.Equal(ToProto(s), ToProto(again)), "%v became %v", s, again)
		}
	})
}
