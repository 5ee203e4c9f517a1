package scenarios

import (
	"fmt"
	"strings"
)

// Size of the plot and its margins, in pixels.
const (
	plotWidth, plotHeight = 760, 260
	plotLeft, plotBottom  = 40, 40
)

// curve is one line of a plot: values at times that are equally far apart.
type curve struct {
	values []float64
	// steps: a value stays until the next one, as replica counts do.
	steps bool
	// style are attributes of the line, color among them.
	color, style string
	text         string
}

// axis is a plot's axis of time: labels from its start to its end, equally far apart.
type axis []string

// plot draws curves over one time as an SVG, the last one on top. Those that are longer than
// the shortest are cut.
func plot(over axis, curves ...curve) string {
	n, most := len(curves[0].values), 0.0
	for _, c := range curves {
		n = min(n, len(c.values))
		for _, v := range c.values {
			most = max(most, v+1)
		}
	}
	x := func(share float64) float64 { return plotLeft + share*(plotWidth-plotLeft-10) }
	y := func(v float64) float64 { return plotHeight - plotBottom - v/most*(plotHeight-plotBottom-10) }
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">
<rect width="100%%" height="100%%" fill="#fff"/>
`, plotWidth, plotHeight)
	for v := 0; v <= int(most); v += 2 {
		fmt.Fprintf(&b, `<line x1="%d" x2="%d" y1="%.1f" y2="%.1f" stroke="#ddd"/><text x="%d" y="%.1f" text-anchor="end">%d</text>`+"\n",
			plotLeft, plotWidth-10, y(float64(v)), y(float64(v)), plotLeft-6, y(float64(v))+4, v)
	}
	for i, label := range over {
		at := x(float64(i) / float64(len(over)-1))
		fmt.Fprintf(&b, `<text x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n", min(at, plotWidth-24), plotHeight-plotBottom+16, label)
	}
	at := float64(plotLeft)
	for _, c := range curves {
		var points []string
		for i, v := range c.values[:n] {
			here, last := x(float64(i)/float64(n-1)), i == n-1
			switch {
			case c.steps && i > 0 && v == c.values[i-1] && !last:
				continue
			case c.steps && i > 0:
				points = append(points, fmt.Sprintf("%.1f,%.1f", here, y(c.values[i-1])))
			case !c.steps && i%max(1, n/plotWidth) > 0 && !last:
				continue // more points than pixels
			}
			points = append(points, fmt.Sprintf("%.1f,%.1f", here, y(v)))
		}
		fmt.Fprintf(&b, `<polyline fill="none" stroke="%s" %s points="%s"/>`+"\n", c.color, c.style, strings.Join(points, " "))
		fmt.Fprintf(&b, `<text x="%.0f" y="%d" fill="%s">%s</text>`+"\n", at, plotHeight-6, c.color, c.text)
		at += 6.2*float64(len(c.text)) + 16 // about what sans-serif takes
	}
	b.WriteString("</svg>\n")
	return b.String()
}

// floats are the counts as a plot has them.
func floats(counts []int) []float64 {
	all := make([]float64, len(counts))
	for i, n := range counts {
		all[i] = float64(n)
	}
	return all
}
