package oracle

import (
	"context"
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/kubernetes/pkg/controller/podautoscaler"
	"k8s.io/kubernetes/pkg/controller/podautoscaler/metrics"
)

// The HPA's defaults: --horizontal-pod-autoscaler-cpu-initialization-period,
// --horizontal-pod-autoscaler-initial-readiness-delay and
// --horizontal-pod-autoscaler-tolerance.
const (
	initialization   = 5 * time.Minute
	initialReadiness = 30 * time.Second
	defaultTolerance = 0.1
)

// ago is a moment some seconds before now. The API has whole seconds, and so has the
// clock of the test.
func ago(seconds int) time.Time { return time.Now().Add(-time.Duration(seconds) * time.Second) }

// object is a pod as the API server has it.
func (s *situation) object(p *instance) *corev1.Pod {
	started := metav1.NewTime(ago(p.age))
	o := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: p.name, UID: types.UID(p.name), Labels: s.labels(p), CreationTimestamp: started},
		Spec:       corev1.PodSpec{NodeName: p.node, Containers: []corev1.Container{{Name: "engine"}}},
		Status:     corev1.PodStatus{Phase: p.phase},
	}
	if p.device >= 0 {
		o.Spec.Containers[0].Resources.Limits = corev1.ResourceList{"nvidia.com/gpu": resource.MustParse("1")}
	}
	if p.terminating {
		o.DeletionTimestamp = new(metav1.NewTime(ago(0)))
	}
	if p.node != "" {
		ready := corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionFalse, LastTransitionTime: metav1.NewTime(ago(p.changed()))}
		if p.ready() {
			ready.Status = corev1.ConditionTrue
		}
		o.Status.StartTime, o.Status.Conditions = &started, []corev1.PodCondition{ready}
	}
	return o
}

// reference is Kubernetes' own calculator, and the metrics that it reads.
type reference struct {
	s          *situation
	calculator *podautoscaler.ReplicaCalculator
	tolerance  podautoscaler.Tolerances
	external   int64
}

// newReference prepares for a situation. With settled, pods that our rule of young pods
// counts as not ready have never been ready.
func newReference(t *testing.T, s *situation, settled bool) *reference {
	t.Helper()
	k := &reference{s: s}
	index := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
	for i := range s.pods {
		p := s.pods[i]
		if settled && p.replica >= 0 && s.young(&p) {
			p.changes = nil
		}
		require.NoError(t, index.Add(s.object(&p)))
	}
	k.calculator = podautoscaler.NewReplicaCalculator(k, corelisters.NewPodLister(index), initialization, initialReadiness)
	tolerances := reflect.ValueOf(&k.tolerance).Elem() // its fields are not exported
	for name, value := range map[string]float64{"scaleUp": s.tolerance(s.up), "scaleDown": s.tolerance(s.down)} {
		field := tolerances.FieldByName(name)
		reflect.NewAt(field.Type(), field.Addr().UnsafePointer()).Elem().SetFloat(value)
	}
	return k
}

// GetResourceMetric has CPU of the values that our metric has: one for each replica, as
// if its leader used it.
func (k *reference) GetResourceMetric(context.Context, corev1.ResourceName, string, labels.Selector, string) (metrics.PodMetricsInfo, time.Time, error) {
	all, sampled := metrics.PodMetricsInfo{}, ago(k.s.sampled)
	for _, replica := range k.s.replicas {
		if value, ok := k.s.reading(replica); ok {
			all[k.s.pods[replica[0]].name] = metrics.PodMetric{Timestamp: sampled, Window: k.s.window, Value: thousandths(value)}
		}
	}
	return all, sampled, nil
}

// GetExternalMetric has our number.
func (k *reference) GetExternalMetric(string, string, labels.Selector) ([]int64, time.Time, error) {
	return []int64{k.external}, time.Now(), nil
}

func (k *reference) GetRawMetric(string, string, labels.Selector, labels.Selector) (metrics.PodMetricsInfo, time.Time, error) {
	panic("not called")
}

func (k *reference) GetObjectMetric(string, string, *autoscalingv2.CrossVersionObjectReference, labels.Selector) (int64, time.Time, error) {
	panic("not called")
}

// forCPU is how many replicas the HPA wants for CPU. It keeps what there is where it
// has no answer; then known is false.
func (k *reference) forCPU(t *testing.T) (n int, known bool) {
	t.Helper()
	got, _, _, err := k.calculator.GetRawResourceReplicas(t.Context(), int32(k.s.spec), thousandths(k.s.target), corev1.ResourceCPU, k.tolerance, namespace, k.s.selector(), "")
	if err != nil {
		return k.s.spec, false
	}
	return int(got), true
}

// forNumber is how many replicas the HPA wants for a number of an external metric, in
// thousandths.
func (k *reference) forNumber(t *testing.T, number int64) int {
	t.Helper()
	k.external = number
	var got int32
	var err error
	if k.s.value {
		got, _, _, err = k.calculator.GetExternalMetricReplicas(int32(k.s.spec), thousandths(k.s.target), "m", k.tolerance, namespace, nil, k.s.selector())
	} else {
		got, _, _, err = k.calculator.GetExternalPerPodMetricReplicas(int32(k.s.status), thousandths(k.s.target), "m", k.tolerance, namespace, nil)
	}
	require.NoError(t, err)
	return int(got)
}

// nearer tries all numbers that matter, by hundredths of the target, and says which leads
// nearer to what is wanted than ours; "" for none. One that grows a count that is to be
// kept or lowered is no answer: in a rollout with a surge each would add to the surge.
func (k *reference) nearer(t *testing.T, want, got int) string {
	t.Helper()
	target := thousandths(k.s.target)
	ready := 0
	for _, replica := range k.s.replicas {
		if k.s.pods[replica[0]].ready() {
			ready++
		}
	}
	most := 2 * target * int64(max(want, k.s.status)+2)
	if k.s.value { // it multiplies by the ready pods
		most = 2 * target * int64(want/max(1, ready)+2)
	}
	step := max(1, target/100)
	for number := int64(0); number <= most; number += step {
		n := k.forNumber(t, number)
		if grows := want <= k.s.spec && n > k.s.spec; !grows && distance(n, want) < distance(got, want) {
			return fmt.Sprintf("CPU leads to %d replicas, our number to %d, and %d thousandths to %d", want, got, number, n)
		}
	}
	return ""
}

func distance(a, b int) int { return max(a-b, b-a) }
