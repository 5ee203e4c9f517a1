package e2e

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/shared/snapshot"
	"gpuscaler/shared/snapshotpb"
)

// Whatever is written to the socket, the sidecar's answer stays, memory stays
// bounded, and a sidecar that comes after it is served.
func TestHostileWriters(t *testing.T) {
	t.Parallel()
	n := startNode(t, "one-75.csv")
	answer := func(when string) {
		t.Helper()
		for _, m := range []metadata{{}, {"gpuIndex": "0"}, {"metricType": "temperature", "aggregation": "min"}} {
			v, err := n.value(m)
			require.NoError(t, err, "%s: %v", when, m)
			want := 75.0
			if m["metricType"] != "" {
				want = 65
			}
			require.Equal(t, want, v, "%s: %v", when, m)
		}
	}
	answer("before")

	// Bytes that are no messages.
	for _, b := range [][]byte{
		[]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
		binary.AppendUvarint(nil, 4<<30),
		append(binary.AppendUvarint(nil, snapshotpb.MaxFrame), make([]byte, 1000)...),
		make([]byte, 1<<16), // empty messages
	} {
		c := n.writer()
		_, _ = c.Write(b)
		answer("garbage")
		_ = c.Close()
	}

	// Messages that are good, and too many: by ever new writers, with ever new
	// devices, as heavy as they may be or as light.
	for i := range 150 {
		s := &snapshot.Sample{Writer: fmt.Sprint("churn-", i)}
		for j := range 90 + i%2*166 {
			d := snapshot.Device{ID: fmt.Sprintf("ACME-%d-%d", i, j), Vendor: "acme", Model: strings.Repeat("m", snapshot.MaxText)}
			if i%2 == 0 {
				d.Values = map[string]float64{"temperature": 1}
				for k := range 60 {
					d.Values[fmt.Sprint("x_", k)] = 1
				}
			}
			s.Devices = append(s.Devices, d)
		}
		c := n.writer()
		w := bufio.NewWriter(c)
		_ = snapshotpb.Write(w, s)
		_ = w.Flush()
		_ = c.Close()
		if i%10 == 0 {
			answer("churn")
		}
	}
	answer("after")
	assert.Less(t, residentMiB(t, n.scaler.cmd.Process.Pid), 150.0)
	assert.Less(t, len(n.scaler.log()), 1<<20, "bytes of log")

	n.sidecar.kill()
	// Connections are read at a pace, which hides the end of one for a moment: until
	// then its devices are its.
	n.eventually(5*time.Second, func() error {
		if !strings.Contains(n.scaler.log(), `msg="writer gone" writer=nvmlsidecar`) {
			return fmt.Errorf("the sidecar is not gone yet")
		}
		return nil
	})
	n.startSidecar()
	n.eventually(5*time.Second, func() error {
		state := n.sidecar.log()
		if !strings.Contains(state, "connected to the scaler") {
			return fmt.Errorf("not connected")
		}
		return nil
	})
	time.Sleep(time.Second) // were it refused, it would be connected again and again
	assert.Equal(t, 1, strings.Count(n.sidecar.log(), "connected to the scaler"), n.sidecar.log())
	answer("with the next sidecar")
}

func (n *node) writer() net.Conn {
	n.t.Helper()
	c, err := net.Dial("unix", n.socket)
	require.NoError(n.t, err)
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	return c
}

// residentMiB is what the kernel counts: proc(5), status.
func residentMiB(t *testing.T, pid int) float64 {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(t, err)
	_, rest, _ := strings.Cut(string(status), "VmRSS:")
	kib, err := strconv.Atoi(strings.Fields(rest)[0])
	require.NoError(t, err)
	return float64(kib) / 1024
}
