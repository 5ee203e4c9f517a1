package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/profiles"
	"gpuscaler/scaler/terms"
	"gpuscaler/scaler/trigger"
	"gpuscaler/shared/snapshot"
)

// The README's tables are what the code has: one row for each metric, key and
// profile, word for word.
func TestReadmeTables(t *testing.T) {
	b, err := os.ReadFile("../README.md")
	require.NoError(t, err)
	readme := string(b)
	row := func(cells ...string) {
		t.Helper()
		line := "| " + strings.Join(cells, " | ") + " |\n"
		assert.True(t, strings.Contains(readme, line), "README.md lacks\n%s", line)
	}
	for _, m := range snapshot.Metrics {
		unit := m.Unit
		if m.Max == 100 {
			unit += " 0-100"
		}
		row("`"+m.Name+"`", unit, m.Source)
	}
	for _, m := range append([]snapshot.Metric{terms.Queue}, terms.EngineMetrics...) {
		unit := m.Unit
		if m.Max == 100 {
			unit += " 0-100"
		}
		row("`"+m.Name+"`", unit, m.Source)
	}
	for _, k := range trigger.Keys {
		value := ""
		if k.Default != "" {
			value = "`" + k.Default + "`"
		}
		row("`"+k.Name+"`", k.Doc, value)
	}
	for _, name := range profiles.Builtin().Names() {
		p, _ := profiles.Builtin().Get(name)
		zero := "never"
		if p.ScaleToZero {
			zero = "yes"
		}
		row("`"+name+"`", p.Description, "`"+p.Metric.Name+"`", fmt.Sprint(p.Target), fmt.Sprint(p.Activation), zero)
	}
}
