package evaluate

import (
	"fmt"
	"log/slog"

	"gpuscaler/scaler/fleet"
)

// mostReasons is how many pods or devices a log line names.
const mostReasons = 4

// LogValue is a decision with its reasons, for a log line.
func (d *Decision) LogValue() slog.Value {
	fields := []slog.Attr{slog.Float64("value", d.Value), slog.Bool("active", d.Active)}
	if r := d.Replicas; r != nil {
		fields = append(fields,
			slog.Int("replicas", r.Desired), slog.String("rule", string(r.Reason)), slog.Float64("mean", r.Mean),
			slog.Int("counting", r.Counting), slog.Int("starting", r.Starting), slog.Int("missing", r.Missing))
		if r.Leads != r.Desired { // no number leads there
			fields = append(fields, slog.Int("hpa", r.Leads))
		}
	}
	if d.Nodes > 0 {
		fields = append(fields, slog.Int("nodes", d.Nodes), slog.Int("silent", d.Silent))
	}
	if reasons := d.reasons(); len(reasons) > 0 {
		fields = append(fields, slog.Any("because", reasons))
	}
	return slog.GroupValue(fields...)
}

// Brief is a decision without what it was made of: it says the same, and holds on
// to no reading and no node.
func (d *Decision) Brief() Decision {
	brief := *d
	brief.Used, brief.LeftOut, brief.Pods = nil, nil, nil
	for _, l := range d.LeftOut[:min(len(d.LeftOut), mostReasons+1)] {
		brief.LeftOut = append(brief.LeftOut, LeftOut{&fleet.Device{Index: l.Device.Index, Vendor: l.Device.Vendor}, l.Reason})
	}
	for _, r := range d.Pods {
		if r.Reason != "" {
			r.Node = nil
			brief.Pods = append(brief.Pods, r)
		}
	}
	return brief
}

// reasons say why pods or devices have no value.
func (d *Decision) reasons() (reasons []string) {
	more := 0
	add := func(what, reason string) {
		if len(reasons) == mostReasons {
			more++
			return
		}
		reasons = append(reasons, what+": "+reason)
	}
	for _, r := range d.Pods {
		if r.Reason != "" {
			add("pod "+r.Pod.Name, r.Reason)
		}
	}
	for _, l := range d.LeftOut {
		add(l.Device.String(), l.Reason)
	}
	if more > 0 {
		reasons = append(reasons, fmt.Sprintf("and %d more", more))
	}
	return reasons
}
