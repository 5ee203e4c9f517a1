package e2e

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// joules are those of all GPUs, as a scrape has them.
func (n *node) joules() (total float64, at time.Time, err error) {
	r, err := http.Get("http://" + n.http + "/metrics")
	if err != nil {
		return 0, at, err
	}
	defer r.Body.Close()
	at = time.Now()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	all, err := parser.TextToMetricFamilies(r.Body)
	if err != nil {
		return 0, at, err
	}
	series := all["gpuscaler_gpu_energy_joules_total"].GetMetric()
	if len(series) == 0 {
		return 0, at, fmt.Errorf("no energy yet")
	}
	for _, m := range series {
		total += m.GetCounter().GetValue()
	}
	return total, at, nil
}

// TestEnergyOverRestart: what a Prometheus adds up of the energy misses at most the
// one interval between two scrapes in which the scaler was killed, and never has
// anything twice. Its rule for a counter that went back: all that it says is new.
func TestEnergyOverRestart(t *testing.T) {
	const watts, interval = 460, 2 * time.Second // the recording's, constant, with no energy counter
	n := startNode(t, "two-60-80.csv")
	var last float64
	var before time.Time
	n.eventually(5*time.Second, func() (err error) { last, before, err = n.joules(); return err })
	began, missed, sum := before, 0.0, 0.0
	for i := range 5 {
		restarts := i == 2
		if restarts {
			time.Sleep(interval / 4)
			n.scaler.kill()
			n.startScaler()
		}
		time.Sleep(time.Until(before.Add(interval)))
		var now float64
		var at time.Time
		n.eventually(5*time.Second, func() (err error) { now, at, err = n.joules(); return err })
		grown, all := now-last, watts*at.Sub(before).Seconds()
		if restarts {
			require.Less(t, now, last, "it begins at 0")
			grown = now
			missed += all - grown
			assert.Positive(t, grown)
			assert.Less(t, grown, all)
		} else {
			// Readings come each 200 ms, and once in a while one is waited for.
			assert.InDelta(t, all, grown, watts*0.5, "between two scrapes")
		}
		sum, last, before = sum+grown, now, at
	}
	used := watts * before.Sub(began).Seconds()
	assert.InDelta(t, used-missed, sum, watts*0.5)
	assert.Less(t, missed, watts*interval.Seconds()*1.1, "one interval")
	t.Logf("%.0f of %.0f J with a restart", sum, used)
}
