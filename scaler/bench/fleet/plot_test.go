package fleet

import (
	"fmt"
	"math"
	"strings"
)

// row is what was measured of one fleet.
type row struct {
	nodes                                int
	cpuPercent, residentMiB, peakMiB     float64
	kilobytes                            float64 // a second
	ageP50, ageP99                       float64 // seconds
	metricsP50, metricsP99, p50Of, p99Of float64 // milliseconds, and by the health check's
	clusterMillis, firstMillis           float64
}

var columns = []string{
	"nodes", "GPUs", "workloads", "CPU", "MiB (peak)", "KB/s", "age p50", "age p99", "GetMetrics p50", "/ health", "GetMetrics p99", "/ health", "scope: cluster", "first answer",
}

func (r *row) cells() []string {
	return []string{
		fmt.Sprint(r.nodes), fmt.Sprint(r.nodes * gpus), fmt.Sprint(workloads(r.nodes)),
		fmt.Sprintf("%.1f %%", r.cpuPercent), fmt.Sprintf("%.0f (%.0f)", r.residentMiB, r.peakMiB), fmt.Sprintf("%.0f", r.kilobytes),
		fmt.Sprintf("%.1f s", r.ageP50), fmt.Sprintf("%.1f s", r.ageP99),
		fmt.Sprintf("%.2f ms", r.metricsP50), fmt.Sprintf("%.2f", r.p50Of), fmt.Sprintf("%.2f ms", r.metricsP99), fmt.Sprintf("%.2f", r.p99Of),
		fmt.Sprintf("%.2f ms", r.clusterMillis), fmt.Sprintf("%.2f s", r.firstMillis/1000),
	}
}

// Size of the plot and its margins, in pixels.
const (
	plotWidth, plotHeight           = 760, 300
	plotLeft, plotRight, plotBottom = 50, 190, 34
)

// plot draws how everything grows with the nodes, as an SVG, both axes by decades.
func plot(rows []row) string {
	lines := []struct {
		colour, name string
		of           func(r *row) float64
	}{
		{"#176", "bytes received, KB/s", func(r *row) float64 { return r.kilobytes }},
		{"#c33", "first answer, ms", func(r *row) float64 { return r.firstMillis }},
		{"#36c", "memory, MiB", func(r *row) float64 { return r.residentMiB }},
		{"#939", "CPU, % of a core", func(r *row) float64 { return r.cpuPercent }},
		{"#b70", "GetMetrics p50, ms", func(r *row) float64 { return r.metricsP50 }},
	}
	decade := func(v, low, high float64) float64 {
		return (math.Log10(max(v, low)) - math.Log10(low)) / (math.Log10(high) - math.Log10(low))
	}
	x := func(nodes float64) float64 {
		return plotLeft + decade(nodes, 10, 5000)*(plotWidth-plotLeft-plotRight)
	}
	y := func(v float64) float64 {
		return plotHeight - plotBottom - decade(v, 0.1, 10000)*(plotHeight-plotBottom-10)
	}
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">
<rect width="100%%" height="100%%" fill="#fff"/>
`, plotWidth, plotHeight)
	for v := 0.1; v <= 10000; v *= 10 {
		fmt.Fprintf(&b, `<line x1="%d" x2="%.0f" y1="%.1f" y2="%.1f" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%g</text>`+"\n",
			plotLeft, x(5000), y(v), y(v), plotLeft-6, y(v)+4, math.Round(v*10)/10)
	}
	for _, r := range rows {
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle">%d</text>`+"\n", x(float64(r.nodes)), plotHeight-plotBottom+16, r.nodes)
	}
	fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle">nodes, of 8 GPUs each</text>`+"\n", x(220), plotHeight-2)
	for _, l := range lines {
		var points []string
		for i := range rows {
			points = append(points, fmt.Sprintf("%.1f,%.1f", x(float64(rows[i].nodes)), y(l.of(&rows[i]))))
		}
		last := &rows[len(rows)-1]
		fmt.Fprintf(&b, `<polyline fill="none" stroke="%s" stroke-width="2" points="%s"/><text x="%.1f" y="%.1f" fill="%s">%s</text>`+"\n",
			l.colour, strings.Join(points, " "), x(float64(last.nodes))+8, y(l.of(last))+4, l.colour, l.name)
	}
	b.WriteString("</svg>\n")
	return b.String()
}
