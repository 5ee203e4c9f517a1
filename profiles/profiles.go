// Package profiles knows the named settings that a trigger can start from: the
// built-in ones, which are the YAML files beside this source, and those of a
// folder, which may change while the scaler runs. It must not know what a
// trigger is, nor gRPC, KEDA or any reading of a GPU.
package profiles

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"go.yaml.in/yaml/v2"

	"gpuscaler/scaler/terms"
	"gpuscaler/shared/snapshot"
)

//go:embed *.yaml
var builtinFiles embed.FS

// MaxFileBytes is how large one profile's file may be.
const MaxFileBytes = 64 << 10

// Profile is one named setting. Read-only; comparable.
type Profile struct {
	// Name is what a trigger writes: lower-case letters, digits and dashes.
	Name string
	// Description says what it is for, in a few words.
	Description string
	// Reason says why the numbers are what they are, and where they fail.
	Reason string
	// MetricName is what users of the profile see in the HPA: keda_gpu_ and the
	// name with underscores.
	MetricName string
	// Metric is what is read.
	Metric snapshot.Metric
	// Target is the target per replica, in the metric's unit, above 0.
	Target float64
	// Activation is the value above which the workload is active, in the
	// metric's unit, 0 or above. Of no effect without ScaleToZero.
	Activation float64
	// ScaleToZero is false when the workload must never be scaled to zero.
	ScaleToZero bool
	// Aggregation combines the GPUs of a pod; max unless the file says else.
	Aggregation terms.Aggregation
	// Window is the time over which the mean is taken; 15s unless the file
	// says else.
	Window time.Duration
}

// Set is all the profiles there are at one moment. It is immutable. A nil Set
// is empty.
type Set struct {
	byName map[string]Profile
	names  []string
}

func newSet(byName map[string]Profile) *Set {
	return &Set{byName: byName, names: slices.Sorted(maps.Keys(byName))}
}

// Get finds a profile by name. ok is false when there is none.
func (s *Set) Get(name string) (p Profile, ok bool) {
	if s == nil {
		return Profile{}, false
	}
	p, ok = s.byName[name]
	return p, ok
}

// Names lists the profiles in alphabetical order. The caller may keep and
// change the slice.
func (s *Set) Names() []string {
	if s == nil {
		return nil
	}
	return slices.Clone(s.names)
}

// Builtin is the set of the profiles that come with the scaler.
func Builtin() *Set { return builtin() }

var builtin = sync.OnceValue(func() *Set {
	entries, err := builtinFiles.ReadDir(".")
	if err != nil {
		panic(err)
	}
	byName := make(map[string]Profile, len(entries))
	for _, e := range entries {
		data, err := builtinFiles.ReadFile(e.Name())
		if err != nil {
			panic(err)
		}
		p, err := parse(e.Name(), data)
		if err != nil {
			panic(err) // a test loads every built-in profile
		}
		byName[p.Name] = p
	}
	return newSet(byName)
})

const keyTarget = "targetValue"

// fields are the keys of a profile's file and what each of them sets. A field
// without "required" may be left out.
var fields = []struct {
	key      string
	required bool
	set      func(p *Profile, text string) error
}{
	{"name", true, func(p *Profile, text string) error { p.Name = text; return nonEmpty(text) }},
	{"description", true, func(p *Profile, text string) error { p.Description = text; return nonEmpty(text) }},
	{"reason", true, func(p *Profile, text string) error { p.Reason = text; return nonEmpty(text) }},
	{"metricType", true, setMetric},
	{keyTarget, true, func(p *Profile, text string) (err error) { p.Target, err = terms.ParseTarget(text); return err }},
	{"activationThreshold", false, func(p *Profile, text string) (err error) { p.Activation, err = terms.ParseActivation(text); return err }},
	{"scaleToZero", true, setScaleToZero},
	{"aggregation", false, func(p *Profile, text string) (err error) {
		p.Aggregation, err = terms.ParseAggregation(text)
		return err
	}},
	{"window", false, func(p *Profile, text string) (err error) { p.Window, err = terms.ParseWindow(text); return err }},
}

// parse reads and checks one profile. The error names the file, the key, its
// value and what is allowed.
func parse(file string, data []byte) (Profile, error) {
	p, err := decode(data)
	if err != nil {
		return Profile{}, fmt.Errorf("%s: %w", file, err)
	}
	if want := nameOf(file); p.Name != want {
		return Profile{}, fmt.Errorf("%s: name: %s is not the file's name; allowed is %q", file, terms.Quote(p.Name), want)
	}
	// That fits a file, a Kubernetes name and, with underscores for dashes, a
	// metric's name.
	if !terms.IsLabel(p.Name) {
		return Profile{}, fmt.Errorf("%s: name: %s is no profile name; %s", file, terms.Quote(p.Name), terms.LabelAllowed)
	}
	p.MetricName = "keda_gpu_" + strings.ReplaceAll(p.Name, "-", "_")
	return p, nil
}

// decode takes every value as the text that stands in the file, because YAML's
// own numbers (octal, sexagesimal, infinite) are none that a person means.
func decode(data []byte) (Profile, error) {
	if len(data) > MaxFileBytes {
		return Profile{}, fmt.Errorf("more than %d bytes; at most %[1]d are allowed", MaxFileBytes)
	}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	decoder.SetStrict(true)
	var texts map[string]string
	if err := decoder.Decode(&texts); err != nil && !errors.Is(err, io.EOF) {
		return Profile{}, oneLine(err)
	}
	var more any
	if err := decoder.Decode(&more); !errors.Is(err, io.EOF) {
		return Profile{}, errors.New("more than one YAML document; one profile a file is allowed")
	}
	known := make([]string, len(fields))
	for i, f := range fields {
		known[i] = f.key
	}
	for _, key := range slices.Sorted(maps.Keys(texts)) {
		if !slices.Contains(known, key) {
			return Profile{}, fmt.Errorf("%s: %w", terms.Name(key), terms.UnknownKey(key, "", known))
		}
	}
	p := Profile{Window: terms.DefaultWindow}
	for _, f := range fields {
		text, ok := texts[f.key]
		if !ok && f.required {
			return Profile{}, fmt.Errorf("%s: missing", f.key)
		}
		if !ok {
			continue
		}
		if err := f.set(&p, text); err != nil {
			return Profile{}, fmt.Errorf("%s: %w", f.key, err)
		}
	}
	if err := terms.CheckTarget(texts[keyTarget], p.Target, p.Metric, p.Aggregation); err != nil {
		return Profile{}, fmt.Errorf("%s: %w", keyTarget, err)
	}
	return p, nil
}

func nonEmpty(text string) error {
	if strings.TrimSpace(text) == "" {
		return fmt.Errorf("%s is empty; allowed is any other text", terms.Quote(text))
	}
	return nil
}

func setMetric(p *Profile, text string) error {
	m, ok := terms.LookupMetric(text)
	if !ok {
		return terms.UnknownMetric(text)
	}
	p.Metric = m
	return nil
}

func setScaleToZero(p *Profile, text string) error {
	if text != "true" && text != "false" {
		return fmt.Errorf("%s is no boolean; allowed are true and false", terms.Quote(text))
	}
	p.ScaleToZero = text == "true"
	return nil
}

// oneLine makes a YAML error, which spreads over lines and may quote the file
// at length, fit for one line of a log.
func oneLine(err error) error {
	text := strings.Join(strings.Fields(strings.TrimPrefix(err.Error(), "yaml: ")), " ")
	if len(text) > 300 {
		text = strings.ToValidUTF8(text[:300], "") + "..."
	}
	return errors.New(text)
}
