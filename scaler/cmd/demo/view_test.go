package main

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestFromOne(t *testing.T) {
	for _, c := range []struct {
		value, target float64
		want          string
	}{
		{99, 90, "1 (99.0 is within 10 % of 90)"}, // the training profile at the top of its range
		{99.001, 90, "2 = ceil(99.0 / 90)"},
		{100, 90, "2 = ceil(100.0 / 90)"},
		{72, 80, "1 (72.0 is within 10 % of 80)"},
		{71.9, 80, "1 = ceil(71.9 / 80)"},
		{80, 80, "1 (80.0 is within 10 % of 80)"},
		{85260, 50000, "2 = ceil(85260.0 / 50000)"},
		{640, 80, "8 = ceil(640.0 / 80)"},
		{0, 80, "1 (the HPA's minimum; ceil(0.0 / 80) = 0)"},
	} {
		assert.Equal(t, c.want, fromOne(c.value, c.target), "%v of %v", c.value, c.target)
	}
}
