package pod

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"gpuscaler/scaler/fleet"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// running is a pod whose readiness changed last some time after its start.
func running(ready corev1.ConditionStatus, after time.Duration) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "llm-0", UID: "u", Labels: map[string]string{"app": "llm"}, CreationTimestamp: metav1.NewTime(start)},
		Spec:       corev1.PodSpec{NodeName: "node-1"},
		Status: corev1.PodStatus{
			Phase: corev1.PodRunning, StartTime: new(metav1.NewTime(start)),
			Conditions: []corev1.PodCondition{
				{Type: corev1.PodScheduled, Status: corev1.ConditionTrue},
				{Type: corev1.PodReady, Status: ready, LastTransitionTime: metav1.NewTime(start.Add(after))},
			},
		},
	}
}

func TestDescribe(t *testing.T) {
	pending := running(corev1.ConditionFalse, 0)
	pending.Status.Phase = corev1.PodPending
	unstarted := running(corev1.ConditionTrue, 0)
	unstarted.Status.StartTime = nil
	unconditional := running(corev1.ConditionTrue, 0)
	unconditional.Status.Conditions = nil
	for name, c := range map[string]struct {
		pod             *corev1.Pod
		ready, wasReady bool
	}{
		"ready":                            {running(corev1.ConditionTrue, 5*time.Second), true, true},
		"not ready since it started":       {running(corev1.ConditionFalse, 0), false, false},
		"not ready since soon after":       {running(corev1.ConditionFalse, 29*time.Second), false, false},
		"not ready any more":               {running(corev1.ConditionFalse, 30*time.Second), false, true},
		"nobody knows any more, node lost": {running(corev1.ConditionUnknown, time.Hour), false, true},
		"pending":                          {pending, false, false},
		"not seen by a kubelet":            {unstarted, false, false},
		"without conditions":               {unconditional, false, false},
	} {
		want := fleet.Pod{Namespace: "shop", Name: "llm-0", UID: "u", Node: "node-1", Labels: map[string]string{"app": "llm"}, Owner: fleet.Owner{Kind: "Pod", Name: "llm-0"}, Created: start, Ready: c.ready, WasReady: c.wasReady}
		if c.pod.Status.StartTime != nil {
			want.Started = start
		}
		want.Pending = c.pod.Status.Phase == corev1.PodPending
		if len(c.pod.Status.Conditions) > 0 {
			want.Changed = c.pod.Status.Conditions[1].LastTransitionTime.Time
		}
		if c.ready {
			want.FirstReady = want.Changed
		}
		assert.Equal(t, want, Describe(c.pod), name)
	}
}

func TestOwner(t *testing.T) {
	for want, c := range map[fleet.Owner]struct {
		kind, name string
		labels     map[string]string
	}{
		{Kind: "Deployment", Name: "llm"}:            {"ReplicaSet", "llm-5d8f6b7c9", map[string]string{"pod-template-hash": "5d8f6b7c9"}},
		{Kind: "ReplicaSet", Name: "own-made"}:       {"ReplicaSet", "own-made", map[string]string{"pod-template-hash": "5d8f6b7c9"}},
		{Kind: "ReplicaSet", Name: "llm-5d8f6b7c9x"}: {"ReplicaSet", "llm-5d8f6b7c9x", nil},
		{Kind: "StatefulSet", Name: "db"}:            {"StatefulSet", "db", nil},
		{Kind: "Job", Name: "train-29"}:              {"Job", "train-29", nil},
	} {
		p := running(corev1.ConditionTrue, 0)
		p.Labels = c.labels
		p.OwnerReferences = []metav1.OwnerReference{{Kind: "Other", Name: "no controller"}, {Kind: c.kind, Name: c.name, Controller: new(true)}}
		assert.Equal(t, want, Describe(p).Owner)
	}
}

func TestEnded(t *testing.T) {
	p := running(corev1.ConditionTrue, 0)
	for phase, want := range map[corev1.PodPhase]bool{
		corev1.PodPending: false, corev1.PodRunning: false, corev1.PodUnknown: false, corev1.PodSucceeded: true, corev1.PodFailed: true,
	} {
		p.Status.Phase = phase
		assert.Equal(t, want, Ended(p), phase)
	}
}

func TestTerminating(t *testing.T) {
	p := running(corev1.ConditionTrue, 0)
	p.DeletionTimestamp = new(metav1.NewTime(start))
	d := Describe(p)
	assert.True(t, d.Terminating && d.Ready, "the HPA counts it as ready under Value")
}

func TestGroup(t *testing.T) {
	p := running(corev1.ConditionTrue, 0)
	for _, c := range []struct {
		name, index, worker, group string
		leader                     bool
	}{
		{"engine", "1", "0", "engine/1", true},
		{"engine", "1", "3", "engine/1", false},
		{"engine", "1", "", "engine/1", false},
		{"engine", "", "0", "", false},
		{"", "1", "0", "", false},
	} {
		p.Labels = map[string]string{
			fleet.SetLabel: c.name, "leaderworkerset.sigs.k8s.io/group-index": c.index, "leaderworkerset.sigs.k8s.io/worker-index": c.worker,
		}
		d := Describe(p)
		assert.Equal(t, c.group, d.Group, c)
		assert.Equal(t, c.leader, d.Leader, c)
	}
}
