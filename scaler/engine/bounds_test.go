package engine

import (
	"bytes"
	"runtime"
	"strings"
	"testing"

	"github.com/prometheus/common/expfmt"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/encoding/protowire"
)

// TestBounds: no answer of 4 MiB takes more memory than some times its size, whatever it
// claims and however it is made up of small parts.
func TestBounds(t *testing.T) {
	const size = 4 << 20
	fill := func(head, part string) []byte {
		return []byte(head + strings.Repeat(part, (size-len(head))/len(part)))
	}
	// message is one family: its name, and parts of it.
	message := func(part []byte) []byte {
		inner := append([]byte("\x0a\x01a\x18\x04"), bytes.Repeat(part, size/len(part)-8)...)
		return append(protowire.AppendVarint(nil, uint64(len(inner))), inner...)
	}
	proto := string(expfmt.NewFormat(expfmt.TypeProtoDelim))
	for name, c := range map[string]struct {
		body        []byte
		contentType string
		want        string
	}{
		"claims more than there is":    {[]byte("\xff\xff\xff\xff\xff\xff\x3f\x0a"), proto, "it ends within a message"},
		"claims the largest length":    {[]byte("\xff\xff\xff\xff\xff\xff\xff\xff\x7f\x0a"), proto, "it ends within a message"},
		"length that never ends":       {bytes.Repeat([]byte{0xff}, size), proto, "it ends within a message"},
		"empty messages":               {make([]byte, size), proto, "so many are not read"},
		"empty series":                 {message([]byte{0x22, 0}), proto, "so many are not read"},
		"series with empty labels":     {message([]byte{0x22, 4, 0x0a, 0, 0x0a, 0}), proto, "so many are not read"},
		"series with empty buckets":    {message([]byte{0x22, 6, 0x3a, 4, 0x1a, 0, 0x1a, 0}), proto, "so many are not read"},
		"short lines":                  {fill("", "a 1\n"), text, "lines; at most"},
		"empty lines":                  {fill("a 1\n", "\n"), text, "lines; at most"},
		"comments":                     {fill("", "# HELP a b\n"), text, "lines; at most"},
		"labels":                       {fill("a{", `b="",`), text, "labels; at most"},
		"one long line":                {fill("a{b=\"", "x"), text, "text format"},
		"one long name":                {fill("", "x"), text, "text format"},
		"as much as is read, of lines": {bytes.Repeat([]byte("a 1\n"), maxLines), text, "series; at most"},
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.GC()
			runtime.ReadMemStats(&before)
			_, err := Parse(c.body, c.contentType, nil)
			runtime.ReadMemStats(&after)
			require.ErrorContains(t, err, c.want)
			require.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(48<<20))
			t.Logf("%d bytes make %.1f MiB", len(c.body), float64(after.TotalAlloc-before.TotalAlloc)/(1<<20))
		})
	}
}
