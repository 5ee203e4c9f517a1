// Package oracle compares what gpuscaler makes the HPA do with what the HPA does
// for CPU, by Kubernetes' own calculator. It is a module of its own, because
// k8s.io/kubernetes is no library: whoever imports it has to replace all of its
// parts.
package oracle

import (
	"context"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/controller/podautoscaler"
	"k8s.io/kubernetes/pkg/controller/podautoscaler/metrics"

	"gpuscaler/profiles"
	"gpuscaler/scaler/evaluate"
	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/pod"
	"gpuscaler/scaler/replicas"
	"gpuscaler/scaler/trigger"
	"gpuscaler/shared/snapshot"
)

// The HPA's defaults: --horizontal-pod-autoscaler-cpu-initialization-period and
// --horizontal-pod-autoscaler-initial-readiness-delay.
const (
	initialization   = 5 * time.Minute
	initialReadiness = 30 * time.Second
)

// kind is what a pod of a situation is like.
type kind int

const (
	ready       kind = iota
	failing          // has been ready, and fails its probe now
	loading          // has never been ready
	pending          // has no node
	silent           // ready, and nothing is heard of its GPU
	terminating      // ready, and about to end
	kinds
)

var names = [kinds]string{"ready", "failing", "loading", "pending", "silent", "terminating"}

// situation is a workload at one moment.
type situation struct {
	kinds []kind
	// percent is the GPU's utilization, or CPU in thousandths of a core if one has
	// a hundred; of each pod.
	percent []float64
	target  float64
	// spec is how many replicas are asked for, status how many there are.
	spec, status int
	value        bool // the target is a Value, not an AverageValue
}

func (s situation) String() string {
	text := fmt.Sprintf("target %v (Value: %v), spec %d, status %d:", s.target, s.value, s.spec, s.status)
	for i, k := range s.kinds {
		text += fmt.Sprintf(" %s %v", names[k], s.percent[i])
	}
	return text
}

// generate makes a situation of 1 to 64 pods: mostly ready ones, near the target
// in a third of the cases.
func generate(r *rand.Rand) situation {
	s := situation{target: float64(1+r.IntN(1000)) / 10, value: r.IntN(2) == 0}
	centre, spread := r.Float64()*100, r.Float64()*40
	if r.IntN(3) == 0 {
		centre, spread = s.target, s.target/5
	}
	others := r.IntN(4)
	for range 1 + r.IntN(64) {
		k := ready
		if r.IntN(4) < others {
			k = kind(r.IntN(int(kinds)))
		}
		s.kinds = append(s.kinds, k)
		percent := centre + spread*(2*r.Float64()-1)
		s.percent = append(s.percent, math.Round(1000*min(100, max(0, percent)))/1000)
		if k != terminating {
			s.status++
		}
	}
	s.spec = s.status
	if r.IntN(4) == 0 { // a change is under way
		s.spec = max(1, s.status+r.IntN(9)-4)
	}
	return s
}

var now = time.Now()

const namespace, node = "shop", "node-1"

var app = labels.Set{"app": "llm"}

// pods are the situation's as the API server has them.
func (s situation) pods() (all []*corev1.Pod) {
	for i, k := range s.kinds {
		started := now.Add(-time.Hour)
		p := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: fmt.Sprint("pod-", i), UID: types.UID(fmt.Sprint("uid-", i)), Labels: app, CreationTimestamp: metav1.NewTime(started)},
			Spec:       corev1.PodSpec{NodeName: node},
			Status:     corev1.PodStatus{Phase: corev1.PodRunning, StartTime: new(metav1.NewTime(started))},
		}
		condition := corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.NewTime(started.Add(time.Minute))}
		switch k {
		case failing:
			condition.Status, condition.LastTransitionTime = corev1.ConditionFalse, metav1.NewTime(now.Add(-time.Minute))
		case loading:
			condition.Status, condition.LastTransitionTime = corev1.ConditionFalse, metav1.NewTime(started)
		case pending:
			p.Status, p.Spec.NodeName = corev1.PodStatus{Phase: corev1.PodPending}, ""
		case terminating:
			p.DeletionTimestamp = new(metav1.NewTime(now))
		case ready, silent, kinds: // as above
		}
		if k != pending {
			p.Status.Conditions = []corev1.PodCondition{condition}
		}
		all = append(all, p)
	}
	return all
}

func (s situation) has(i int) bool { return s.kinds[i] != pending && s.kinds[i] != silent }

// kubernetes asks Kubernetes' own calculator.
type kubernetes struct {
	s          situation
	calculator *podautoscaler.ReplicaCalculator
	tolerance  podautoscaler.Tolerances
	external   int64
}

func ask(t *testing.T, s situation) *kubernetes {
	t.Helper()
	k := &kubernetes{s: s}
	index := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
	for _, p := range s.pods() {
		require.NoError(t, index.Add(p))
	}
	k.calculator = podautoscaler.NewReplicaCalculator(k, corelisters.NewPodLister(index), initialization, initialReadiness)
	tolerance := reflect.ValueOf(&k.tolerance).Elem() // its fields are nobody's business
	for i := range tolerance.NumField() {
		reflect.NewAt(tolerance.Field(i).Type(), tolerance.Field(i).Addr().UnsafePointer()).Elem().SetFloat(replicas.DefaultTolerance)
	}
	return k
}

// GetResourceMetric has CPU of the value that our metric has.
func (k *kubernetes) GetResourceMetric(context.Context, corev1.ResourceName, string, labels.Selector, string) (metrics.PodMetricsInfo, time.Time, error) {
	all := metrics.PodMetricsInfo{}
	for i := range k.s.kinds {
		if k.s.has(i) {
			all[fmt.Sprint("pod-", i)] = metrics.PodMetric{Timestamp: now, Window: 15 * time.Second, Value: thousandths(k.s.percent[i])}
		}
	}
	return all, now, nil
}

// GetExternalMetric has our number.
func (k *kubernetes) GetExternalMetric(string, string, labels.Selector) ([]int64, time.Time, error) {
	return []int64{k.external}, now, nil
}

func (k *kubernetes) GetRawMetric(string, string, labels.Selector, labels.Selector) (metrics.PodMetricsInfo, time.Time, error) {
	panic("not asked")
}

func (k *kubernetes) GetObjectMetric(string, string, *autoscalingv2.CrossVersionObjectReference, labels.Selector) (int64, time.Time, error) {
	panic("not asked")
}

func thousandths(v float64) int64 { return int64(math.Round(v * 1000)) }

// forCPU is how many replicas CPU would ask for; known is false if the HPA has no
// answer, upon which it changes nothing.
func (k *kubernetes) forCPU(t *testing.T) (n int, known bool) {
	t.Helper()
	got, _, _, err := k.calculator.GetRawResourceReplicas(t.Context(), int32(k.s.spec), thousandths(k.s.target), corev1.ResourceCPU, k.tolerance, namespace, labels.SelectorFromSet(app), "")
	return int(got), err == nil
}

// forNumber is how many replicas a number, in thousandths, asks for.
func (k *kubernetes) forNumber(t *testing.T, number int64) int {
	t.Helper()
	k.external = number
	var got int32
	var err error
	if k.s.value {
		got, _, _, err = k.calculator.GetExternalMetricReplicas(int32(k.s.spec), thousandths(k.s.target), "m", k.tolerance, namespace, nil, labels.SelectorFromSet(app))
	} else {
		got, _, _, err = k.calculator.GetExternalPerPodMetricReplicas(int32(k.s.status), thousandths(k.s.target), "m", k.tolerance, namespace, nil)
	}
	require.NoError(t, err)
	return int(got)
}

// ours is what gpuscaler decides: by the whole way from the readers' messages and
// the API server's pods.
func ours(t *testing.T, s situation) (evaluate.Decision, error) {
	t.Helper()
	local := fleet.NewLocal(node, time.Minute, slog.New(slog.DiscardHandler), now)
	nodes := fleet.New(local)
	sample := &snapshot.Sample{Writer: "nvmlsidecar"}
	allocation := &snapshot.Allocation{}
	w := evaluate.Workload{Name: "ScaledObject shop/llm", Namespace: namespace, Selector: labels.SelectorFromSet(app), Spec: s.spec, Status: s.status, Told: now}
	w.TargetType = trigger.AverageValue
	if s.value {
		w.TargetType = trigger.Value
	}
	var here []fleet.Pod
	for i, p := range s.pods() {
		device := snapshot.Device{ID: fmt.Sprint("GPU-", i), Vendor: "nvidia", Model: "NVIDIA H200", Index: i, Values: map[string]float64{"gpu_utilization": s.percent[i]}}
		if s.kinds[i] == silent {
			device.Values, device.Error = nil, "GPU_IS_LOST"
		}
		sample.Devices = append(sample.Devices, device)
		switch s.kinds[i] {
		case pending:
			w.Pods = append(w.Pods, new(pod.Describe(p)))
		default:
			here = append(here, pod.Describe(p))
			allocation.Containers = append(allocation.Containers, snapshot.Container{
				Namespace: namespace, Pod: p.Name, Plugin: []snapshot.PluginDevices{{Resource: "nvidia.com/gpu", IDs: []string{device.ID}}},
			})
		}
	}
	require.NoError(t, local.Connect().Apply(sample, now))
	require.NoError(t, local.Connect().Apply(&snapshot.Sample{Writer: "podresources", Allocation: allocation}, now))
	local.SetPods(here, now)
	parsed, err := trigger.Parse(map[string]string{"metricType": "gpu_utilization", "window": "0s", "targetValue": fmt.Sprint(s.target)}, profiles.Builtin())
	require.NoError(t, err)
	return evaluate.ForWorkload(&parsed, nodes, &w, now, evaluate.Limits{
		StaleAfter: time.Minute, AttributionStaleAfter: time.Minute, Tolerance: replicas.DefaultTolerance,
	})
}

// TestAsForCPU: the HPA does with our number what it would do with the same
// values of CPU. The exceptions, counted:
//
//   - Over half of the pods are silent: we say so instead of guessing, and KEDA
//     holds. The HPA goes on with one pod of a hundred.
//   - The number cannot express it: for an external metric the HPA knows only one
//     ratio, and changes nothing within the tolerance of it. Then no number at all
//     comes to what CPU would, and ours comes nearest.
//   - No pod has ever been ready: the HPA has no answer for CPU, and holds; so do
//     we, with a number.
func TestAsForCPU(t *testing.T) {
	const situations = 10_000
	random := rand.New(rand.NewPCG(3, 4))
	counts := map[string]int{}
	for range situations {
		s := generate(random)
		if s.status == 0 {
			continue // no pods, no question
		}
		k := ask(t, s)
		want, known := k.forCPU(t)
		d, err := ours(t, s)
		if err != nil {
			require.Greater(t, 2*s.count(silent), s.status, "%v: %v", s, err)
			counts["refused, because most pods are silent"]++
			continue
		}
		got := k.forNumber(t, thousandths(d.Value))
		if !known {
			require.Zero(t, s.count(ready)+s.count(failing), "%v", s)
			want = s.spec
			counts["no pod has ever been ready"]++
		}
		require.Equal(t, want, d.Replicas.Desired, "%v", s)
		require.Equal(t, got, d.Replicas.Leads, "%v", s)
		if got == want {
			counts["equal"]++
			continue
		}
		counts["no number comes to it"]++
		k.requireNearest(t, want, got)
	}
	t.Log(counts)
	require.Greater(t, counts["equal"], situations*9/10)
	for _, exception := range []string{"refused, because most pods are silent", "no number comes to it", "no pod has ever been ready"} {
		require.Positive(t, counts[exception], "%s never comes up: it is no exception", exception)
	}
}

// requireNearest tries all numbers there are, by hundredths of the target.
func (k *kubernetes) requireNearest(t *testing.T, want, got int) {
	t.Helper()
	target := thousandths(k.s.target)
	most := (int64(want) + int64(k.s.status) + 2) * target * 2
	step := max(1, target/100)
	for number := int64(0); number <= most; number += step {
		n := k.forNumber(t, number)
		require.LessOrEqual(t, distance(got, want), distance(n, want), "%v: CPU asks for %d, ours for %d, and %d for %d", k.s, want, got, number, n)
	}
}

func distance(a, b int) int { return max(a-b, b-a) }

func (s situation) count(k kind) (n int) {
	for _, kind := range s.kinds {
		if kind == k {
			n++
		}
	}
	return n
}
