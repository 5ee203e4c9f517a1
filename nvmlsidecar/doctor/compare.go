package doctor

import (
	"encoding/csv"
	"fmt"
	"math"
	"strconv"
	"strings"

	"gpuscaler/nvmlsidecar/nvml"
)

// SMIQuery is what nvidia-smi is asked for, with --format=csv,noheader,nounits.
const SMIQuery = "uuid,utilization.gpu,memory.used,temperature.gpu,power.draw"

// ParseSMI understands its answer. A figure that it does not have ("[N/A]") is NaN.
func ParseSMI(answer string) (map[string]SMI, error) {
	in := csv.NewReader(strings.NewReader(answer))
	in.TrimLeadingSpace = true
	in.FieldsPerRecord = strings.Count(SMIQuery, ",") + 1
	rows, err := in.ReadAll()
	if err != nil {
		return nil, fmt.Errorf("nvidia-smi: %w", err)
	}
	all := map[string]SMI{}
	for _, row := range rows {
		number := func(i int) float64 {
			v, err := strconv.ParseFloat(strings.TrimSpace(row[i]), 64)
			if err != nil {
				return math.NaN()
			}
			return v
		}
		all[row[0]] = SMI{number(1), number(2), number(3), number(4)}
	}
	return all, nil
}

// tolerances are how far a figure may be from nvidia-smi's, which reads a moment later.
var tolerances = []struct {
	metric string
	of     func(SMI) float64
	within float64
}{
	{"gpu_utilization", func(s SMI) float64 { return s.Utilization }, 50},
	{"memory_used_mib", func(s SMI) float64 { return s.MemoryUsedMiB }, 1024},
	{"temperature", func(s SMI) float64 { return s.Temperature }, 5},
	{"power_draw", func(s SMI) float64 { return s.Power }, 150},
}

func (r *Report) compare(x *nvml.Examination, a *Around) {
	switch {
	case a.SMIError != "":
		r.line(Note, "nvidia-smi", a.SMIError, "")
		return
	case a.SMI == nil || x.Sample == nil:
		r.line(Note, "nvidia-smi", "not installed: readings were not compared", "")
		return
	}
	compared := 0
	for _, d := range x.Sample.Devices {
		s, known := a.SMI[d.ID]
		if !known {
			continue
		}
		for _, t := range tolerances {
			have, want := d.Values[t.metric], t.of(s)
			if _, read := d.Values[t.metric]; !read || math.IsNaN(want) {
				continue
			}
			compared++
			if math.Abs(have-want) > t.within {
				r.line(Warn, "nvidia-smi", fmt.Sprintf("GPU %d: %s is %s here and %s there", d.Index, t.metric, figure(have), figure(want)), "run it again under a steady load; if it stays, report it with the versions above")
			}
		}
	}
	r.line(OK, "nvidia-smi", fmt.Sprintf("%d figures compared", compared), "")
}
