package snapshot

import (
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// good is a sample with everything in it that a sample can have.
func good() *Sample {
	return &Sample{
		Writer: "nvmlsidecar", Version: "v1.2.3", Elapsed: 90 * time.Second,
		Devices: []Device{
			{
				ID: "GPU-a", Vendor: "nvidia", Model: "NVIDIA H200", MemoryTotalMiB: 143771, MemoryReservedMiB: 624,
				Values:    map[string]float64{"temperature": 41, "x_wear_percent": 3, "from_a_newer_writer": -5},
				Counters:  map[string]float64{"energy_joules": 123456.789},
				Failed:    map[string]string{"power_draw": "UNKNOWN"},
				Processes: []Process{{PID: 4711, UsedMiB: 70000}},
			},
			{ID: "MIG-a", Vendor: "nvidia", Parent: "GPU-a", Instance: 9, Profile: "1g.18gb"},
			{ID: "GPU-b", Vendor: "nvidia", Index: 1, Error: "GPU_IS_LOST"},
		},
	}
}

func TestValidateAcceptsWhatAWriterSends(t *testing.T) {
	require.NoError(t, good().Validate())
	require.NoError(t, (&Sample{}).Validate(), "a node without devices")
	require.NoError(t, (&Sample{Error: "no driver"}).Validate())
}

func TestValidateRejects(t *testing.T) {
	tests := []struct {
		name  string
		spoil func(s *Sample)
		want  string
	}{
		{"negative elapsed", func(s *Sample) { s.Elapsed = -1 }, "elapsed is -1ns, it cannot be negative"},
		{"error with devices", func(s *Sample) { s.Error = "no driver" }, "a sample with an error (no driver) cannot have devices or an allocation"},
		{"writer with control character", func(s *Sample) { s.Writer = "a\x1b[2J" }, `"a\x1b[2J" has a control character or invalid UTF-8`},
		{"version of invalid UTF-8", func(s *Sample) { s.Version = "\xff" }, `"\xff" has a control character or invalid UTF-8`},
		{"DEL", func(s *Sample) { s.Writer = "\x7f" }, `"\x7f" has a control character or invalid UTF-8`},
		{"no id", func(s *Sample) { s.Devices[0].ID = "" }, `device 0 (""): id and vendor must not be empty`},
		{"no vendor", func(s *Sample) { s.Devices[1].Vendor = "" }, `device 1 ("MIG-a"): id and vendor must not be empty`},
		{"id twice", func(s *Sample) { s.Devices[2].ID = "GPU-a" }, `device 2: id "GPU-a" appears twice`},
		{"parent not there", func(s *Sample) { s.Devices[1].Parent = "GPU-z" }, `device 1 ("MIG-a"): parent "GPU-z" is no physical device of this sample`},
		{"own parent", func(s *Sample) { s.Devices[2].Parent = "GPU-b" }, `device 2 ("GPU-b"): parent "GPU-b" is no physical device of this sample`},
		{"parent is an instance", func(s *Sample) { s.Devices[2].Parent = "MIG-a" }, `device 2 ("GPU-b"): parent "MIG-a" is no physical device of this sample`},
		{"negative index", func(s *Sample) { s.Devices[0].Index = -1 }, `device 0 ("GPU-a"): index -1 is outside 0 to 65535`},
		{"index too large", func(s *Sample) { s.Devices[0].Index = 65536 }, `device 0 ("GPU-a"): index 65536 is outside 0 to 65535`},
		{"negative instance", func(s *Sample) { s.Devices[1].Instance = -1 }, `device 1 ("MIG-a"): instance -1 is outside 0 to 65535`},
		{"instance too large", func(s *Sample) { s.Devices[1].Instance = 65536 }, `device 1 ("MIG-a"): instance 65536 is outside 0 to 65535`},
		{"error with values", func(s *Sample) { s.Devices[0].Error = "GPU_IS_LOST" }, `device 0 ("GPU-a"): a device with an error (GPU_IS_LOST) cannot have values or states`},
		{"error with counters", func(s *Sample) { s.Devices[2].Counters = map[string]float64{"energy_joules": 1} }, `device 2 ("GPU-b"): a device with an error (GPU_IS_LOST) cannot have the counter energy_joules`},
		{"error with states", func(s *Sample) { s.Devices[2].States = map[string]bool{RowRemapFailed: false} }, `device 2 ("GPU-b"): a device with an error (GPU_IS_LOST) cannot have values or states`},
		{"negative memory", func(s *Sample) { s.Devices[0].MemoryTotalMiB = -1 }, `device 0 ("GPU-a"): memory of -1 MiB is outside 0 to 1e9`},
		{"NaN memory", func(s *Sample) { s.Devices[0].MemoryReservedMiB = math.NaN() }, `device 0 ("GPU-a"): memory of NaN MiB is outside 0 to 1e9`},
		{"too much memory", func(s *Sample) { s.Devices[0].MemoryTotalMiB = 1e9 + 1 }, `device 0 ("GPU-a"): memory of 1.000000001e+09 MiB is outside 0 to 1e9`},
		{"value out of range", func(s *Sample) { s.Devices[0].Values["temperature"] = 301 }, `device 0 ("GPU-a"): temperature: 301 is outside -100 to 300 °C`},
		{"NaN", func(s *Sample) { s.Devices[0].Values["temperature"] = math.NaN() }, `device 0 ("GPU-a"): temperature: NaN is outside -100 to 300 °C`},
		{"custom out of range", func(s *Sample) { s.Devices[0].Values["x_wear_percent"] = math.Inf(1) }, `device 0 ("GPU-a"): x_wear_percent: +Inf is outside -1e+15 to 1e+15 `},
		{"unknown metric NaN", func(s *Sample) { s.Devices[0].Values["newer"] = math.NaN() }, `device 0 ("GPU-a"): newer: NaN is not a finite number`},
		{"unknown metric infinite", func(s *Sample) { s.Devices[0].Values["newer"] = math.Inf(-1) }, `device 0 ("GPU-a"): newer: -Inf is not a finite number`},
		{"metric name with control character", func(s *Sample) { s.Devices[0].Values["a\nb"] = 1 }, `device 0 ("GPU-a"): "a\nb" has a control character or invalid UTF-8`},
		{"negative counter", func(s *Sample) { s.Devices[0].Counters["energy_joules"] = -1 }, `device 0 ("GPU-a"): counter energy_joules: -1 is outside 0 to 4.611686018427388e+18`},
		{"NaN counter", func(s *Sample) { s.Devices[0].Counters["energy_joules"] = math.NaN() }, `device 0 ("GPU-a"): counter energy_joules: NaN is outside 0 to 4.611686018427388e+18`},
		{"infinite counter", func(s *Sample) { s.Devices[0].Counters["energy_joules"] = math.Inf(1) }, `device 0 ("GPU-a"): counter energy_joules: +Inf is outside 0 to 4.611686018427388e+18`},
		{"counter name with control character", func(s *Sample) { s.Devices[0].Counters["\x00"] = 1 }, `device 0 ("GPU-a"): "\x00" has a control character or invalid UTF-8`},
		{"reason with control character", func(s *Sample) { s.Devices[0].Failed["power_draw"] = "\r" }, `device 0 ("GPU-a"): "\r" has a control character or invalid UTF-8`},
		{"value and failure", func(s *Sample) { s.Devices[0].Failed["temperature"] = "UNKNOWN" }, `device 0 ("GPU-a"): temperature has a value and a failure`},
		{"negative process memory", func(s *Sample) { s.Devices[0].Processes[0].UsedMiB = -1 }, `device 0 ("GPU-a"): process 4711: -1 MiB is outside 0 to 1e9`},
		{"NaN process memory", func(s *Sample) { s.Devices[0].Processes[0].UsedMiB = math.NaN() }, `device 0 ("GPU-a"): process 4711: NaN MiB is outside 0 to 1e9`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := good()
			tt.spoil(s)
			assert.EqualError(t, s.Validate(), tt.want)
		})
	}
}

// Every limit is tried at its value, which passes, and one beyond.
func TestValidateLimits(t *testing.T) {
	many := func(n int) map[string]float64 {
		m := make(map[string]float64, n)
		for i := range n {
			m[fmt.Sprintf("x_%d", i)] = 1
		}
		return m
	}
	text := func(n int) string { return strings.Repeat("a", n) }
	tooLong := `text of 257 bytes ("` + text(32) + `"...), at most 256 are allowed`
	inDevice := `device 0 ("GPU-a"): `
	tests := []struct {
		name  string
		limit int
		set   func(s *Sample, n int)
		want  string
	}{
		{"devices", MaxDevices, func(s *Sample, n int) {
			s.Devices = make([]Device, n)
			for i := range s.Devices {
				s.Devices[i] = Device{ID: fmt.Sprint("GPU-", i), Vendor: "nvidia"}
			}
		}, "257 devices, at most 256 are allowed"},
		{"values", MaxMetrics, func(s *Sample, n int) { s.Devices[0].Values = many(n) },
			inDevice + "65 values, 1 counters, 1 failures, at most 64 each are allowed"},
		{"counters", MaxMetrics, func(s *Sample, n int) { s.Devices[0].Counters = many(n) },
			inDevice + "3 values, 65 counters, 1 failures, at most 64 each are allowed"},
		{"failures", MaxMetrics, func(s *Sample, n int) {
			s.Devices[0].Values, s.Devices[0].Failed = nil, map[string]string{}
			for name := range many(n) {
				s.Devices[0].Failed[name] = "UNKNOWN"
			}
		}, inDevice + "0 values, 1 counters, 65 failures, at most 64 each are allowed"},
		{"processes", MaxProcesses, func(s *Sample, n int) { s.Devices[0].Processes = make([]Process, n) },
			inDevice + "1025 processes, at most 1024 are allowed"},
		{"writer", MaxText, func(s *Sample, n int) { s.Writer = text(n) }, tooLong},
		{"version", MaxText, func(s *Sample, n int) { s.Version = text(n) }, tooLong},
		{"error", MaxText, func(s *Sample, n int) { s.Devices, s.Error = nil, text(n) }, tooLong},
		{"model", MaxText, func(s *Sample, n int) { s.Devices[0].Model = text(n) }, inDevice + tooLong},
		{"profile", MaxText, func(s *Sample, n int) { s.Devices[0].Profile = text(n) }, inDevice + tooLong},
		{"vendor", MaxText, func(s *Sample, n int) { s.Devices[0].Vendor = text(n) }, inDevice + tooLong},
		{"device error", MaxText, func(s *Sample, n int) { s.Devices[2].Error = text(n) }, `device 2 ("GPU-b"): ` + tooLong},
		{"metric name", MaxText, func(s *Sample, n int) { s.Devices[0].Values[text(n)] = 1 }, inDevice + tooLong},
		{"counter name", MaxText, func(s *Sample, n int) { s.Devices[0].Counters[text(n)] = 1 }, inDevice + tooLong},
		{"failed name", MaxText, func(s *Sample, n int) { s.Devices[0].Failed[text(n)] = "UNKNOWN" }, inDevice + tooLong},
		{"reason", MaxText, func(s *Sample, n int) { s.Devices[0].Failed["power_draw"] = text(n) }, inDevice + tooLong},
		{"index", math.MaxUint16, func(s *Sample, n int) { s.Devices[0].Index = n }, inDevice + "index 65536 is outside 0 to 65535"},
		{"instance", math.MaxUint16, func(s *Sample, n int) { s.Devices[0].Instance = n }, inDevice + "instance 65536 is outside 0 to 65535"},
		{"memory", 1e9, func(s *Sample, n int) { s.Devices[0].MemoryTotalMiB = float64(n) }, inDevice + "memory of 1.000000001e+09 MiB is outside 0 to 1e9"},
		{"process memory", 1e9, func(s *Sample, n int) { s.Devices[0].Processes[0].UsedMiB = float64(n) },
			inDevice + "process 4711: 1.000000001e+09 MiB is outside 0 to 1e9"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := good()
			tt.set(s, tt.limit)
			require.NoError(t, s.Validate())
			s = good()
			tt.set(s, tt.limit+1)
			require.EqualError(t, s.Validate(), tt.want)
		})
	}
	// An id is compared with its device's place, which an id of that length fills.
	s := good()
	s.Devices[2].ID = text(MaxText)
	require.NoError(t, s.Validate())
	s.Devices[2].ID = text(MaxText + 1)
	require.ErrorContains(t, s.Validate(), tooLong)
	s = good()
	s.Devices[0].Counters["energy_joules"] = maxCounter
	require.NoError(t, s.Validate())
	s.Devices[0].Counters["energy_joules"] = math.Nextafter(maxCounter, math.Inf(1))
	require.ErrorContains(t, s.Validate(), "counter energy_joules")
}

// What a hostile writer puts in a name must not fill a log line.
func TestValidateCutsWhatItQuotes(t *testing.T) {
	s := good()
	s.Devices[0].Values[strings.Repeat("n", 200)] = math.NaN()
	require.EqualError(t, s.Validate(), `device 0 ("GPU-a"): `+strings.Repeat("n", 64)+"...: NaN is not a finite number")
	s = good()
	s.Devices[2].ID = strings.Repeat("i", 100_000)
	require.Less(t, len(s.Validate().Error()), 1000)
}

// Text makes whatever it is given valid, and leaves alone what is.
func TestText(t *testing.T) {
	for in, want := range map[string]string{
		"":                                 "",
		"NVIDIA H200":                      "NVIDIA H200",
		"NVIDIA\x01 H200 \xff°\ufffd\n":    "NVIDIA H200 °",
		"\x7f\t\r":                         "",
		strings.Repeat("a", MaxText+1):     strings.Repeat("a", MaxText),
		strings.Repeat("é", MaxText):       strings.Repeat("é", MaxText/2),
		"a" + strings.Repeat("é", MaxText): "a" + strings.Repeat("é", MaxText/2-1), // and no half of one
	} {
		got := Text(in)
		assert.Equal(t, want, got)
		assert.NoError(t, texts(got))
	}
}
