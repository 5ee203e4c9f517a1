package trigger

import (
	"maps"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"gpuscaler/profiles"
)

// queue is a trigger on a Service, with these keys over the usual ones.
func queue(over metadata) metadata {
	md := metadata{"metricType": "service_queue", "service": "gateway", "serviceMetric": "requests_in_flight"}
	maps.Copy(md, over)
	maps.DeleteFunc(md, func(_, v string) bool { return v == "-" })
	return md
}

// TestParseService: which metric of which Service is read.
func TestParseService(t *testing.T) {
	for value, want := range map[string]Service{
		"gateway":              {Name: "gateway", Path: "/metrics"},
		"gateway:9180":         {Name: "gateway", Port: "9180", Path: "/metrics"},
		"gateway:metrics/m/x":  {Name: "gateway", Port: "metrics", Path: "/m/x"},
		"gateway/prom%20stats": {Name: "gateway", Path: "/prom%20stats"},
	} {
		got, err := Parse(queue(metadata{"service": value}), profiles.Builtin())
		require.NoError(t, err, value)
		want.Metric = "requests_in_flight"
		assert.Equal(t, want, got.Service, value)
	}
	got, err := Parse(queue(metadata{"serviceLabels": "handler=reverse_proxy, server=srv0"}), profiles.Builtin())
	require.NoError(t, err)
	assert.Equal(t, metadata{"handler": "reverse_proxy", "server": "srv0"}, got.Service.Select())
	assert.Equal(t, "service_queue", got.Metric.Name)
}

// TestParseServiceBad: nothing leads out of the namespace, and no key is silently without
// effect.
func TestParseServiceBad(t *testing.T) {
	for _, c := range []struct {
		md   metadata
		want string
	}{
		{queue(metadata{"service": "-"}), `service: missing; metricType service_queue reads serviceMetric of the pods behind service`},
		{queue(metadata{"serviceMetric": "-"}), `serviceMetric: missing`},
		{queue(metadata{"service": ""}), `service: "" is empty; allowed is NAME[:PORT][/PATH]`},
		{queue(metadata{"service": "gateway.other"}), `service: "gateway.other" has a dot in the name: other namespaces and hosts are not read`},
		{queue(metadata{"service": "169.254.169.254/latest"}), `has a dot in the name`},
		{queue(metadata{"service": "http://gateway"}), `service: "http://gateway" is a URL; allowed is`},
		{queue(metadata{"service": "gateway:0"}), `has no number or name of a port after the colon`},
		{queue(metadata{"service": "gateway:080"}), `has no number or name of a port after the colon`},
		{queue(metadata{"service": "gateway:"}), `has no number or name of a port after the colon`},
		{queue(metadata{"service": "gateway:a_b"}), `has no number or name of a port after the colon`},
		{queue(metadata{"service": "Gateway"}), `service: "Gateway" has no name of a Service`},
		{queue(metadata{"service": "gateway/m?x=y"}), `service: "/m?x=y" is no path`},
		{queue(metadata{"serviceMetric": ""}), `serviceMetric: "" is empty`},
		{queue(metadata{"serviceMetric": `a{b="c"}`}), `is no name of a metric; allowed are 1 to 200 letters, digits and _ :, the first no digit; serviceLabels selects series`},
		{queue(metadata{"serviceLabels": `handler="x"`}), `serviceLabels: "handler=\"x\"" selects no series; allowed are up to 16 labels`},
		{queue(metadata{"serviceLabels": "handler"}), `selects no series`},
		{queue(metadata{"serviceLabels": "a=b,a=c"}), `selects no series`},
		{queue(metadata{"serviceLabels": "a!=b"}), `selects no series`},
		{queue(metadata{"aggregation": "sum"}), `aggregation: "sum" has no effect on service_queue, which is added up over the pods of a Service`},
		{queue(metadata{"gpuIndex": "0"}), `gpuIndex: "0" has no effect on service_queue`},
		{queue(metadata{"container": "engine"}), `container: "engine" has no effect on service_queue`},
		{queue(metadata{"enginePort": "1"}), `enginePort: "1" has no effect on service_queue`},
		{queue(metadata{"scope": "node"}), `scope: "node" contradicts metricType service_queue`},
		{metadata{"service": "gateway"}, `service: "gateway" has no effect on gpu_utilization; it goes with metricType service_queue`},
		{metadata{"metricType": "engine_waiting", "serviceLabels": "a=b"}, `serviceLabels: "a=b" has no effect on engine_waiting`},
	} {
		_, err := Parse(c.md, profiles.Builtin())
		require.ErrorContains(t, err, c.want, "%v", c.md)
	}
}
