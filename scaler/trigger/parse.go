package trigger

import (
	"fmt"
	"strings"

	"gpuscaler/profiles"
	"gpuscaler/scaler/terms"
)

// Limits on one trigger's metadata.
const (
	MaxBytes   = 64 << 10 // all keys and values together
	MaxEntries = 128
)

const fromEnv = "FromEnv"

// kedaKeys are for KEDA's own client, which passes on all it has.
var kedaKeys = map[string]bool{
	"scalerAddress": true, "enableTLS": true, "unsafeSsl": true,
	"caCert": true, "tlsClientCert": true, "tlsClientKey": true,
}

// given is one key of the metadata, as it was written.
type given struct {
	key, value string // key is "" when the key is absent
}

func (g *given) fromEnv() bool { return strings.HasSuffix(g.key, fromEnv) }

// Parse reads a trigger's metadata. Any error is an *Error, and always the same
// one for the same metadata: first unknown keys, then bad values, each in the
// keys' alphabetical order, then keys that contradict each other, then a target
// that does not fit the metric.
func Parse(metadata map[string]string, set *profiles.Set) (Trigger, error) {
	var found [len(table)]given // as sorted
	if err := collect(metadata, &found); err != nil {
		return Trigger{}, err
	}
	t := defaults
	unknownProfile := start(&t, found[position[keyProfile]], set)
	for i := range sorted {
		g, k := found[i], &sorted[i]
		if g.key == "" {
			continue
		}
		err := unknownProfile
		if k.set != nil {
			err = k.set(&t, g.value)
		}
		if err != nil {
			return Trigger{}, &Error{Key: g.key, Value: g.value, Reason: err.Error(), FromEnv: g.fromEnv()}
		}
	}
	if err := contradiction(&found, &t); err != nil {
		return Trigger{}, err
	}
	if err := engineContradiction(&found, &t); err != nil {
		return Trigger{}, err
	}
	if err := queueContradiction(&found, &t); err != nil {
		return Trigger{}, err
	}
	if err := misfit(&found, &t, set); err != nil {
		return Trigger{}, err
	}
	return t, nil
}

// collect sorts the metadata into found and refuses what has no place there.
func collect(metadata map[string]string, found *[len(table)]given) error {
	if len(metadata) > MaxEntries {
		return &Error{Key: "metadata", Reason: fmt.Sprintf("%d entries; at most %d are allowed", len(metadata), MaxEntries)}
	}
	var unknown *given
	size := 0
	for key, value := range metadata {
		size += len(key) + len(value)
		name, env := strings.CutSuffix(key, fromEnv)
		i, known := position[name]
		switch {
		case !known && kedaKeys[name]:
		case !known:
			if unknown == nil || key < unknown.key {
				unknown = &given{key, value}
			}
		case env && found[i].key != "": // the plain key wins
		default:
			found[i] = given{key, value}
		}
	}
	if size > MaxBytes {
		return &Error{Key: "metadata", Reason: fmt.Sprintf("%d bytes; at most %d are allowed", size, MaxBytes)}
	}
	if unknown == nil {
		return nil
	}
	name, env := strings.CutSuffix(unknown.key, fromEnv)
	suffix := ""
	if env {
		suffix = fromEnv
	}
	return &Error{Key: unknown.key, Value: unknown.value, Reason: terms.UnknownKey(name, suffix, keyNames()).Error()}
}

// start lets a trigger begin from its profile.
func start(t *Trigger, g given, set *profiles.Set) error {
	if g.key == "" {
		return nil
	}
	p, ok := set.Get(g.value)
	if !ok {
		return terms.UnknownWord(g.value, set.Names())
	}
	t.Profile = p.Name
	t.Metric, t.Target = p.Metric, p.Target
	t.Activation, t.AlwaysActive = p.Activation, !p.ScaleToZero
	t.Aggregation, t.Window = p.Aggregation, p.Window
	t.MetricName = p.MetricName
	return nil
}

// contradictions are pairs of keys, by their place in sorted, of which a trigger
// may have only one.
var contradictions = func() (pairs [][2]int) {
	for _, pair := range [][2]string{
		{keyTargetGPU, keyTargetMem},
		{keyTargetGPU, keyMetricType},
		{keyTargetGPU, keyTarget},
		{keyTargetMem, keyMetricType},
		{keyTargetMem, keyTarget},
		{keyEnginePort, keyVLLMEndpoint},
		{keyEnginePort, keyTritonEndpoint},
		{keyEnginePath, keyVLLMEndpoint},
		{keyEnginePath, keyTritonEndpoint},
		{keyTritonEndpoint, keyVLLMEndpoint},
	} {
		pairs = append(pairs, [2]int{position[pair[0]], position[pair[1]]})
	}
	return pairs
}()

func contradiction(found *[len(table)]given, t *Trigger) error {
	for _, pair := range contradictions {
		a, b := &found[pair[0]], &found[pair[1]]
		if a.key != "" && b.key != "" {
			return &Error{Key: a.key, Value: a.value, FromEnv: a.fromEnv() || b.fromEnv(), Reason: fmt.Sprintf("%s contradicts %s %s; only one of the two is allowed",
				terms.Quote(a.value), b.key, terms.Quote(b.value))}
		}
	}
	if t.Scope != ScopeNode && t.Scope != ScopeCluster {
		return nil
	}
	for _, key := range [...]string{keyContainer, keyPodSelector} {
		a, b := &found[position[key]], &found[position[keyScope]]
		if a.key != "" {
			return &Error{Key: a.key, Value: a.value, FromEnv: a.fromEnv() || b.fromEnv(), Reason: fmt.Sprintf("%s contradicts %s %s; with it only %s %q is allowed",
				terms.Quote(a.value), b.key, terms.Quote(b.value), keyScope, ScopeWorkload)}
		}
	}
	return nil
}

// misfit refuses a target that cannot be meant for the metric. The error is
// about the target's key where there is one, else about the key that made the
// profile's target unfit.
func misfit(found *[len(table)]given, t *Trigger, set *profiles.Set) error {
	if terms.TargetFits(t.Target, t.Metric, t.Aggregation) {
		return nil
	}
	for _, key := range [...]string{keyTarget, keyTargetGPU, keyTargetMem} {
		if g := &found[position[key]]; g.key != "" {
			return &Error{Key: g.key, Value: g.value, FromEnv: g.fromEnv(),
				Reason: terms.CheckTarget(g.value, t.Target, t.Metric, t.Aggregation).Error()}
		}
	}
	// The default target fits all metrics, and a profile's its own: one of these
	// two keys was given.
	p, _ := set.Get(t.Profile)
	key := keyMetricType
	if !terms.TargetFits(t.Target, p.Metric, t.Aggregation) {
		key = keyAggregation
	}
	g := &found[position[key]]
	return &Error{Key: g.key, Value: g.value, FromEnv: g.fromEnv(), Reason: fmt.Sprintf(
		"%s does not go with the target %v of profile %s, and %s is in percent; set %s too: %s",
		terms.Quote(g.value), t.Target, t.Profile, t.Metric.Name, keyTarget, terms.AllowedTarget(t.Metric))}
}
