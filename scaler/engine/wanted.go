package engine

import "bytes"

// Wanted are names of metrics that are read, those of histograms without _bucket, _sum and
// _count. nil: all.
type Wanted map[string]bool

// Tables are the names that some engine's table has.
var Tables = func() Wanted {
	w := Wanted{}
	add := func(all []source) {
		for _, s := range all {
			w[s.name] = true
			if s.by != "" {
				w[s.by] = true
			}
		}
	}
	for i := range tables {
		t := &tables[i]
		for _, all := range [][]source{t.waiting, t.running, t.kv, t.prompt, t.generation, t.requests} {
			add(all)
		}
		for _, all := range t.latency {
			add(all)
		}
	}
	return w
}()

// only is a text with the series of metrics that are wanted, and of each other metric the
// first one, for its name in messages. Over half of an engine's answer are histograms that
// nobody reads, and expfmt takes 25 ns and a third of an allocation for each byte.
func (w Wanted) only(body []byte) []byte {
	if w == nil {
		return body
	}
	kept := make([]byte, 0, len(body))
	var last []byte // metric that is not wanted
	for len(body) > 0 {
		line := body
		if i := bytes.IndexByte(body, '\n'); i >= 0 {
			line = body[:i+1]
		}
		body = body[len(line):]
		if end := bytes.IndexAny(line, "{ \t\n"); end > 0 && line[0] != '#' { // else a comment, or a name in quotes
			name := line[:end]
			base := metricOf(name)
			if !w[string(name)] && !w[string(base)] {
				if bytes.Equal(base, last) {
					continue
				}
				last = base
			}
		}
		kept = append(kept, line...)
	}
	return kept
}

// metricOf is the metric that a series belongs to.
func metricOf(name []byte) []byte {
	for _, suffix := range [...]string{"_bucket", "_count", "_sum"} {
		if base, ok := bytes.CutSuffix(name, []byte(suffix)); ok {
			return base
		}
	}
	return name
}
