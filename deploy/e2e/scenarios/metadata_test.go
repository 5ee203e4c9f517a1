package scenarios

import (
	"testing"
	"time"
)

// TestBadMetadataIsToldToTheUser: "kubectl describe scaledobject" names the key,
// the value and what is allowed, and nothing is scaled.
func TestBadMetadataIsToldToTheUser(t *testing.T) {
	t.Parallel() // with what follows, too
	for name, c := range map[string]struct {
		metadata []string
		says     []string
	}{
		"typo":        {[]string{"targetVallue", "80"}, []string{`targetVallue: unknown key; did you mean "targetValue"`}},
		"percent":     {[]string{"targetValue", "80%"}, []string{`targetValue: "80%" is not a number; allowed is`}},
		"zero":        {[]string{"targetValue", "0"}, []string{`targetValue: "0"`, "above 0"}},
		"profile":     {[]string{"profile", "vllm"}, []string{`profile: "vllm" is unknown; did you mean "llm"?`}},
		"metric":      {[]string{"metricType", "gpu_utilisation"}, []string{`metricType: "gpu_utilisation"`, `"gpu_utilization"`}},
		"window":      {[]string{"window", "2m"}, []string{`window: "2m"`, "15s"}},
		"beyond":      {[]string{"profile", "triton-inference", "gpuIndex", "99"}, []string{"gpuIndex: 99 is beyond", "1 GPU"}},
		"unsupported": {[]string{"metricType", "x_tokens"}, []string{"x_tokens"}},
	} {
		t.Run(name, func(t *testing.T) {
			s := begin(t, setting{name: "bad-" + name, fixture: "h200-idle", replicas: 2})
			s.scale(holding, c.metadata...)
			s.eventually("the user is told", s.said(c.says...))
			s.eventually("2 replicas as before", s.replicas(2)) // they may just have become ready
			s.always("2 replicas as before", 5*time.Second, s.replicas(2))
		})
	}
}
