package scenarios

import (
	"fmt"
	"slices"
	"strings"
)

// Size of the plot and its margins, in pixels.
const (
	plotWidth, plotHeight = 760, 260
	plotLeft, plotBottom  = 40, 40
)

// plot draws runs over the same demand as an SVG, in minutes of the time that they
// stand for.
func plot(ours, naive, cpu *sine) string {
	most := float64(max(slices.Max(ours.replicas), slices.Max(naive.replicas), slices.Max(cpu.replicas)) + 1)
	x := func(i int) float64 {
		return plotLeft + float64(i)/float64(len(ours.replicas)-1)*(plotWidth-plotLeft-10)
	}
	y := func(v float64) float64 { return plotHeight - plotBottom - v/most*(plotHeight-plotBottom-10) }
	line := func(n int, value func(i int) float64, steps bool) string {
		var points []string
		for i := range n {
			if steps && i > 0 {
				points = append(points, fmt.Sprintf("%.1f,%.1f", x(i), y(value(i-1))))
			}
			points = append(points, fmt.Sprintf("%.1f,%.1f", x(i), y(value(i))))
		}
		return strings.Join(points, " ")
	}
	replicas := func(r *sine) string {
		return line(len(r.replicas), func(i int) float64 { return float64(r.replicas[i]) }, true)
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">
<rect width="100%%" height="100%%" fill="#fff"/>
`, plotWidth, plotHeight)
	for v := 0; v <= int(most); v += 2 {
		fmt.Fprintf(&b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%d</text>`+"\n",
			plotLeft, plotWidth-10, y(float64(v)), y(float64(v)), plotLeft-6, y(float64(v))+4, v)
	}
	minutes := int((waves * wave * 15).Minutes())
	for m := 0; m <= minutes; m += 5 {
		at := x((len(ours.replicas) - 1) * m / minutes)
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle">%d min</text>`+"\n", min(at, plotWidth-24), plotHeight-plotBottom+16, m)
	}
	fmt.Fprintf(&b, `<polyline fill="none" stroke="#999" stroke-dasharray="4 3" points="%s"/>
<polyline fill="none" stroke="#c33" stroke-width="1.5" points="%s"/>
<polyline fill="none" stroke="#36c" stroke-width="1.5" points="%s"/>
<polyline fill="none" stroke="#176" stroke-width="2.5" points="%s"/>
`, line(len(ours.demand), func(i int) float64 { return ours.demand[i] / 0.6 }, false), replicas(naive), replicas(cpu), replicas(ours))
	legend := []struct{ colour, text string }{
		{"#176", "by their own GPUs (scope: workload)"}, {"#36c", "by CPU, the same load"}, {"#c33", "by the largest of all GPUs"}, {"#999", "demand / target"},
	}
	for i, l := range legend {
		fmt.Fprintf(&b, `<text x="%d" y="%d" fill="%s">%s</text>`+"\n", plotLeft+i*190+min(i, 1)*50, plotHeight-6, l.colour, l.text)
	}
	b.WriteString("</svg>\n")
	return b.String()
}
