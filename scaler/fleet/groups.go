package fleet

// SetLabel is the label of a pod that names its LeaderWorkerSet.
const SetLabel = "leaderworkerset.sigs.k8s.io/name"

const (
	groupLabel  = "leaderworkerset.sigs.k8s.io/group-index"
	workerLabel = "leaderworkerset.sigs.k8s.io/worker-index"
)

// GroupOf is the group of a LeaderWorkerSet that a pod with these labels belongs to, as
// "NAME/INDEX", and whether it is the leader; "" for a pod of no group.
func GroupOf(labels map[string]string) (group string, leader bool) {
	set, index := labels[SetLabel], labels[groupLabel]
	if set == "" || index == "" {
		return "", false
	}
	return set + "/" + index, labels[workerLabel] == "0"
}
