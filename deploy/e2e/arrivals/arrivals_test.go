package arrivals

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func generated(t *testing.T, c Curve, seed uint64) Trace {
	t.Helper()
	trace, err := Generate(c, Chat(), seed)
	require.NoError(t, err)
	return trace
}

func (t Trace) between(from, to time.Duration) (n int) {
	for _, r := range t {
		if r.At >= from && r.At < to {
			n++
		}
	}
	return n
}

// TestDayFollowsItsCurve: each hour has as many requests as a Poisson process of its rate,
// within 4.5 standard deviations, and none where the rate is 0.
func TestDayFollowsItsCurve(t *testing.T) {
	day := Day(0.5)
	for seed := range uint64(5) {
		trace := generated(t, day, seed)
		for from := time.Duration(0); from < day.Length(); from += time.Hour {
			expected := day.Requests(from, from+time.Hour)
			assert.InDelta(t, expected, trace.between(from, from+time.Hour), 4.5*math.Sqrt(expected), "seed %d, from %v", seed, from)
		}
		assert.Zero(t, trace.between(SilentFrom, SilentTo))
		assert.Greater(t, trace.between(0, SilentFrom), 50)
	}
}

func TestDayHasItsShape(t *testing.T) {
	day := Day(2)
	require.NoError(t, day.Validate())
	assert.Equal(t, 24*time.Hour, day.Length())
	assert.InDelta(t, 2, day.At(Noon), 1e-9)
	assert.InDelta(t, 3.2, day.At(EveningBurst), 1e-9)
	assert.InDelta(t, 3.2, day.Max(), 1e-9)
	assert.Zero(t, day.At(SilentFrom), "the silence begins with a jump")
	assert.Zero(t, day.At(SilentTo))
	assert.Positive(t, day.At(SilentTo+time.Minute))
	assert.Zero(t, day.At(-1))
	assert.Zero(t, day.At(24*time.Hour))
	for h := 5; h < 9; h++ {
		assert.Less(t, day.At(time.Duration(h)*time.Hour), day.At(time.Duration(h+1)*time.Hour), "morning, hour %d", h)
	}
}

// TestArrivalsArePoisson: at a constant rate, gaps have the mean and the deviation of an
// exponential distribution.
func TestArrivalsArePoisson(t *testing.T) {
	trace := generated(t, Curve{{0, 5}, {4000 * time.Second, 5}}, 7)
	var gaps []float64
	for i := 1; i < len(trace); i++ {
		gaps = append(gaps, (trace[i].At - trace[i-1].At).Seconds())
	}
	var sum, squares float64
	for _, g := range gaps {
		sum += g
		squares += g * g
	}
	n := float64(len(gaps))
	mean := sum / n
	assert.InDelta(t, 0.2, mean, 0.005)
	assert.InDelta(t, 0.2, math.Sqrt(squares/n-mean*mean), 0.008)
}

func TestLengthsAreLogNormalWithinBounds(t *testing.T) {
	trace := generated(t, Curve{{0, 5}, {4000 * time.Second, 5}}, 8)
	l := Chat()
	var prompts []int
	for _, r := range trace {
		prompts = append(prompts, r.PromptTokens)
		assert.GreaterOrEqual(t, r.PromptTokens, l.Prompt.Min)
		assert.LessOrEqual(t, r.PromptTokens, l.Prompt.Max)
		assert.GreaterOrEqual(t, r.OutputTokens, l.Output.Min)
		assert.LessOrEqual(t, r.OutputTokens, l.Output.Max)
	}
	slices.Sort(prompts)
	quantile := func(q float64) float64 { return float64(prompts[int(q*float64(len(prompts)))]) }
	assert.InEpsilon(t, 300, quantile(0.5), 0.05)
	assert.InEpsilon(t, 300*math.Exp(0.8), quantile(0.841345), 0.05, "one sigma above the median")
}

func TestSeedDecides(t *testing.T) {
	day := Day(0.2)
	a := generated(t, day, 1)
	assert.Equal(t, a, generated(t, day, 1))
	assert.NotEqual(t, a, generated(t, day, 2))

	short, err := Generate(day, Lengths{Prompt: LogNormal{1, 0, 1, 1}, Output: LogNormal{2, 0, 1, 9}}, 1)
	require.NoError(t, err)
	require.Len(t, short, len(a))
	for i := range a {
		assert.Equal(t, a[i].At, short[i].At, "lengths do not change times")
		assert.Equal(t, Request{At: a[i].At, PromptTokens: 1, OutputTokens: 2}, short[i])
	}
}

// TestCompress: a curve keeps its rates, a trace keeps its requests.
func TestCompress(t *testing.T) {
	day := Day(1)
	short := day.Compress(24 * time.Minute)
	require.NoError(t, short.Validate())
	assert.Equal(t, 24*time.Minute, short.Length())
	assert.InDelta(t, day.At(Noon), short.At(Noon/60), 1e-9)
	assert.InEpsilon(t, day.Requests(0, day.Length())/60, short.Requests(0, short.Length()), 1e-6)
	assert.Zero(t, generated(t, short, 3).between(SilentFrom/60, SilentTo/60))

	trace := generated(t, day.Compress(time.Hour), 3)
	fast := trace.Compress(10)
	require.Len(t, fast, len(trace))
	assert.InDelta(t, float64(trace[len(trace)-1].At)/10, float64(fast[len(fast)-1].At), 1)
	assert.Equal(t, trace[5].PromptTokens, fast[5].PromptTokens)
	assert.True(t, slices.IsSortedFunc(fast, func(a, b Request) int { return int(a.At - b.At) }))
}

func TestGenerateRefuses(t *testing.T) {
	good := Curve{{0, 1}, {time.Second, 1}}
	for name, c := range map[string]struct {
		curve Curve
		edit  func(*Lengths)
		err   string
	}{
		"no curve":  {nil, nil, "two points"},
		"late":      {Curve{{1, 1}, {2, 1}}, nil, "the first one at 0"},
		"backwards": {Curve{{0, 1}, {2, 1}, {1, 1}}, nil, "point 3"},
		"negative":  {Curve{{0, 1}, {2, -1}}, nil, "rate of -1"},
		"NaN":       {Curve{{0, math.NaN()}, {2, 1}}, nil, "rate of NaN"},
		"median":    {good, func(l *Lengths) { l.Prompt.Median = 0 }, "prompt: median"},
		"sigma":     {good, func(l *Lengths) { l.Output.Sigma = -1 }, "output: sigma"},
		"bounds":    {good, func(l *Lengths) { l.Output.Min = 0 }, "output: bounds"},
	} {
		l := Chat()
		if c.edit != nil {
			c.edit(&l)
		}
		_, err := Generate(c.curve, l, 1)
		assert.ErrorContains(t, err, c.err, name)
	}
	silence, err := Generate(Curve{{0, 0}, {time.Hour, 0}}, Chat(), 1)
	require.NoError(t, err)
	assert.Empty(t, silence)
}

func TestRecordingReadsBack(t *testing.T) {
	trace := generated(t, Day(0.1), 4)
	var file strings.Builder
	require.NoError(t, trace.Write(&file))
	assert.True(t, strings.HasPrefix(file.String(), "seconds,prompt_tokens,output_tokens\n"))
	read, err := Read(strings.NewReader(file.String()))
	require.NoError(t, err)
	assert.Equal(t, trace, read)
}

func TestReadNamesTheLine(t *testing.T) {
	const head = "seconds,prompt_tokens,output_tokens\n"
	for file, message := range map[string]string{
		"":                             "the recording is empty",
		"a,b,c\n":                      `line 1: the columns are ["a" "b" "c"], they must be ["seconds" "prompt_tokens" "output_tokens"]`,
		head + "1,2,3\n0.5,2,3\n":      "line 3: 0.5 s is before the line ahead of it",
		head + "NaN,2,3\n":             `line 2: seconds is "NaN", it must be a number from 0 to 7776000`,
		head + "-1,2,3\n":              `line 2: seconds is "-1", it must be a number from 0 to 7776000`,
		head + "1,0,3\n":               `line 2: prompt_tokens is "0", it must be a whole number from 1 to 10000000`,
		head + "1,2,3.5\n":             `line 2: output_tokens is "3.5", it must be a whole number from 1 to 10000000`,
		head + "1,2\n":                 "record on line 2: wrong number of fields",
		head + "1,2,99999999999999999": `line 2: output_tokens is "99999999999999999", it must be a whole number from 1 to 10000000`,
	} {
		_, err := Read(strings.NewReader(file))
		assert.EqualError(t, err, message)
	}
}
