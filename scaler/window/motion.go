package window

import "time"

// Minutes is how many minutes Moves looks at: Longest.
const Minutes = int(Longest / time.Minute)

// Moves is in how many of the last Minutes before t the readings moved by step or more:
// the largest and the smallest mean of a second are so far apart. What moves between
// two minutes counts for the later one.
func (g *Gauge) Moves(t time.Duration, step float64) (minutes int) {
	second := int64(t / time.Second)
	i := len(g.buckets) - 1
	for minute := range int64(Minutes) {
		begin := second - 60*(minute+1)
		var low, high float64
		for first := true; i >= 0; i-- {
			v := g.buckets[i].sum / float64(g.buckets[i].n)
			if first {
				low, high, first = v, v, false
			}
			low, high = min(low, v), max(high, v)
			if g.buckets[i].second <= begin {
				break // the next minute's last one
			}
		}
		if high-low >= step*(1-1e-9) { // which sums of float64 may miss by a hair
			minutes++
		}
	}
	return minutes
}

// Exceeds says whether the mean over some whole span within Longest before now was
// above a threshold. Readings stand for the time since the one before, as in Coverage.
func (g *Gauge) Exceeds(span time.Duration, threshold float64) bool {
	var sum float64
	var n, covered int64
	from := 0
	for i := range g.buckets {
		b := &g.buckets[i]
		if i > 0 && b.covers == 0 { // after a gap
			sum, n, covered, from = 0, 0, 0, i
		}
		sum += b.sum
		n += int64(b.n)
		covered += int64(b.covers)
		for old := &g.buckets[from]; b.second-old.second >= int64(span/time.Second); old = &g.buckets[from] {
			sum -= old.sum
			n -= int64(old.n)
			covered -= int64(old.covers)
			from++
		}
		if covered >= int64(span/time.Second) && sum/float64(n) > threshold {
			return true
		}
	}
	return false
}
