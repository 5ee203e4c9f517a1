package workload

import (
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"

	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/pod"
)

// pods are the workload's pods, wherever they are, and the LeaderWorkerSets that these
// belong to: with any, all pods of the sets are the workload's. The selector of such a
// set's scale subresource selects the leaders alone.
func (a *api) pods(ctx context.Context, namespace string, selector labels.Selector) (all []*fleet.Pod, sets []string, err error) {
	listed := selector
	named, bySet := onlySets(selector)
	if bySet {
		listed = named // the workers come in the same list
	}
	items, err := a.list(ctx, namespace, listed)
	if err != nil {
		return nil, nil, err
	}
	for i := range items {
		if set := items[i].Labels[fleet.SetLabel]; set != "" && (!bySet || selector.Matches(labels.Set(items[i].Labels))) {
			sets = append(sets, set)
		}
	}
	slices.Sort(sets)
	sets = slices.Compact(sets)
	inSets := func(p *corev1.Pod) bool { return slices.Contains(sets, p.Labels[fleet.SetLabel]) }
	switch {
	case bySet:
		items = slices.DeleteFunc(items, func(p corev1.Pod) bool { return !inSets(&p) })
	case len(sets) > 0:
		of, err := labels.NewRequirement(fleet.SetLabel, selection.In, sets)
		if err != nil {
			return nil, nil, err
		}
		members, err := a.list(ctx, namespace, labels.NewSelector().Add(*of))
		if err != nil {
			return nil, nil, err
		}
		items = append(slices.DeleteFunc(items, func(p corev1.Pod) bool { return inSets(&p) }), members...) // these are newer
	}
	for i := range items {
		if !pod.Ended(&items[i]) {
			p := pod.Describe(&items[i])
			p.Plain = pod.Plain(&items[i])
			p.Labels = nil // not needed any more
			all = append(all, &p)
		}
	}
	return all, sets, nil
}

// onlySets is the part of a selector that names LeaderWorkerSets, if there is one.
func onlySets(selector labels.Selector) (named labels.Selector, ok bool) {
	requirements, _ := selector.Requirements()
	for _, r := range requirements {
		names := r.Operator() == selection.Equals || r.Operator() == selection.DoubleEquals || r.Operator() == selection.In
		if names && r.Key() == fleet.SetLabel && !r.Values().Has("") {
			return labels.NewSelector().Add(r), true
		}
	}
	return nil, false
}

func (a *api) list(ctx context.Context, namespace string, selector labels.Selector) ([]corev1.Pod, error) {
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	list := &corev1.PodList{}
	err := a.core.Get().Namespace(namespace).Resource("pods").Param("labelSelector", selector.String()).Do(limited).Into(list)
	return list.Items, err
}
