package exporter

import (
	"github.com/prometheus/client_golang/prometheus"

	"gpuscaler/scaler/fleet"
)

// quantity is one metric as Prometheus has it: in base units
// (https://prometheus.io/docs/practices/naming/).
type quantity struct {
	name  string // after "gpuscaler_gpu_" or "gpuscaler_pod_gpu_"
	scale float64
	help  string
}

// gauges are the built-in metrics by their name in triggers.
var gauges = map[string]quantity{
	"gpu_utilization":     {"utilization_ratio", 0.01, "Share of the time in which some kernel ran."},
	"memory_utilization":  {"memory_utilization_ratio", 0.01, "Share of the time in which the memory was read or written."},
	"memory_used_percent": {"memory_used_ratio", 0.01, "Share of the memory that is in use."},
	"memory_used_mib":     {"memory_used_bytes", 1 << 20, "Memory in use."},
	"temperature":         {"temperature_celsius", 1, "Temperature of the GPU."},
	"power_draw":          {"power_watts", 1, "Power drawn."},
	"pcie_tx_kbps":        {"pcie_transmit_bytes_per_second", 1000, "Bytes sent over PCIe each second."},
	"pcie_rx_kbps":        {"pcie_receive_bytes_per_second", 1000, "Bytes received over PCIe each second."},
	"nvlink_tx_mbps":      {"nvlink_transmit_bytes_per_second", 1e6, "Bytes sent over NVLink each second."},
	"nvlink_rx_mbps":      {"nvlink_receive_bytes_per_second", 1e6, "Bytes received over NVLink each second."},
	"sm_activity":         {"sm_activity_ratio", 0.01, "Share of the multiprocessors that had a warp."},
	"sm_occupancy":        {"sm_occupancy_ratio", 0.01, "Share of the warps that the multiprocessors could have had."},
	"tensor_activity":     {"tensor_activity_ratio", 0.01, "Share of the tensor cores' cycles that were used."},
	"dram_activity":       {"dram_activity_ratio", 0.01, "Share of the memory's bandwidth that was used."},
	"encoder_utilization": {"encoder_utilization_ratio", 0.01, "Share of the time in which the encoder ran."},
	"decoder_utilization": {"decoder_utilization_ratio", 0.01, "Share of the time in which the decoder ran."},
}

// integrals are the counters, in the order of fleet.Integrated.
var integrals = [len(fleet.Integrated)]quantity{
	{"energy_joules_total", 1, "Energy used."},
	{"utilization_seconds_total", 0.01, "utilization_ratio, added up over time: its rate is the true mean."},
	{"memory_utilization_seconds_total", 0.01, "memory_utilization_ratio, added up over time."},
	{"memory_used_byte_seconds_total", 1 << 20, "memory_used_bytes, added up over time."},
	{"sm_activity_seconds_total", 0.01, "sm_activity_ratio, added up over time."},
	{"tensor_activity_seconds_total", 0.01, "tensor_activity_ratio, added up over time."},
	{"dram_activity_seconds_total", 0.01, "dram_activity_ratio, added up over time."},
}

// counted says what each of fleet.Counted is.
var counted = [len(fleet.Counted)]string{
	"Prompt tokens that the engines of its pods have taken in, while a trigger had them read.",
	"Tokens that the engines of its pods have generated, while a trigger had them read.",
	"Requests that the engines of its pods have finished, while a trigger had them read.",
}

// measured says what each of fleet.Measured is.
var measured = [len(fleet.Measured)]string{
	"Time from a request's arrival to its first token, in its pods' engines, while a trigger had them read.",
	"Time between two tokens of a request, likewise.",
	"Time from a request's arrival to its end, likewise.",
	"Time that a request waits in the engine, likewise.",
}

// podGauges are those that a pod has a part of.
var podGauges = []string{"gpu_utilization", "memory_used_mib", "power_draw"}

// podIntegrals are those that are shown by pod, by position in fleet.Integrated.
var podIntegrals = []int{fleet.Power, fleet.Utilization}

var (
	ofGPU = []string{"gpu", "uuid", "model", "mig_profile"}
	ofPod = []string{"namespace", "pod", "container", "workload_kind", "workload", "gpu", "uuid", "mig_profile"}
	// ofWorkload names what runs pods, as a Deployment or a Job.
	ofWorkload = []string{"namespace", "workload_kind", "workload"}
	ofTrigger  = []string{"namespace", "scaledobject", "metric_name", "metric"}
)

// descs are all that is ever exported, but for Go's and the process's own.
type descs struct {
	gauges                                            map[string]*prometheus.Desc
	integrals                                         [len(fleet.Integrated)]*prometheus.Desc
	custom                                            *prometheus.Desc
	up, age, memory                                   *prometheus.Desc
	throttled, throttledTime                          *prometheus.Desc
	rowPending, rowFailed, ecc, xids, xid             *prometheus.Desc
	share                                             *prometheus.Desc
	podGauges                                         map[string]*prometheus.Desc
	podIntegrals                                      map[int]*prometheus.Desc
	energy, idleEnergy, busy                          *prometheus.Desc
	counted                                           [len(fleet.Counted)]*prometheus.Desc
	measured                                          [len(fleet.Measured)]*prometheus.Desc
	unheld, unknown, expired, gone                    *prometheus.Desc
	target, value, active, replicas, coverage         *prometheus.Desc
	flat, podsLeftOut                                 *prometheus.Desc
	answered, failed, calls                           *prometheus.Desc
	readerUp, readerAge, refused, kubeletAge, leftOut *prometheus.Desc
	nodes, workloads, workloadAge                     *prometheus.Desc
	build                                             *prometheus.Desc
}

func describe(node string) *descs {
	constant := prometheus.Labels{"node": node}
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("gpuscaler_"+name, help, labels, constant)
	}
	d := &descs{
		gauges: map[string]*prometheus.Desc{}, podGauges: map[string]*prometheus.Desc{}, podIntegrals: map[int]*prometheus.Desc{},
		custom:        desc("device_custom", "A metric that a reader has defined itself, in a unit of its own.", append([]string{"metric"}, ofGPU...)...),
		up:            desc("gpu_up", "1 if the GPU, or its instance, can be read and was read lately.", ofGPU...),
		age:           desc("gpu_reading_age_seconds", "How long ago it was read.", ofGPU...),
		memory:        desc("gpu_memory_size_bytes", "Memory there is.", ofGPU...),
		throttled:     desc("gpu_throttled", "1 if it runs slower than it could, for this reason.", append([]string{"reason"}, ofGPU...)...),
		throttledTime: desc("gpu_throttled_seconds_total", "How long it was throttled for this reason.", append([]string{"reason"}, ofGPU...)...),
		rowPending:    desc("gpu_row_remap_pending", "1 if a bad row of its memory is replaced at the next reset.", ofGPU...),
		rowFailed:     desc("gpu_row_remap_failed", "1 if a bad row of its memory could not be replaced.", ofGPU...),
		ecc:           desc("gpu_ecc_errors_total", "ECC errors of its memory over its life: corrected, uncorrected.", append([]string{"type"}, ofGPU...)...),
		xids:          desc("gpu_xid_errors_total", "XIDs since its reader began, by what causes them: application, device.", append([]string{"cause"}, ofGPU...)...),
		xid:           desc("gpu_xids_total", "XIDs of one number since its reader began.", append([]string{"xid"}, ofGPU...)...),

		share:      desc("pod_gpu_share_ratio", "The pod's part in the GPU, or the instance: 1 if it holds it alone.", ofPod...),
		energy:     desc("workload_energy_joules_total", "Energy used by what the workload's pods held.", ofWorkload...),
		idleEnergy: desc("workload_idle_energy_joules_total", "The part of it that was used while nothing ran there.", ofWorkload...),
		busy:       desc("workload_gpu_utilization_seconds_total", "utilization_ratio of what its pods held, added up over time.", ofWorkload...),
		unheld:     desc("unheld_energy_joules_total", "Energy used by GPUs while no pod held them."),
		unknown:    desc("unattributed_energy_joules_total", "Energy used by GPUs while it was not known who held them."),
		expired:    desc("expired_energy_joules_total", "Energy of workloads that ended so long ago that their series are gone: for sums that are to be whole."),
		gone:       desc("gone_gpu_energy_joules_total", "Energy of GPUs that are gone so long that their series are: for sums that are to be whole."),

		target:      desc("trigger_target", "Target of a trigger, in the metric's unit.", ofTrigger...),
		value:       desc("trigger_value", "What KEDA was told last, in the metric's unit.", ofTrigger...),
		active:      desc("trigger_active", "1 if the workload should have a replica at least.", ofTrigger...),
		replicas:    desc("trigger_replicas", "Replicas that this asks for.", ofTrigger...),
		coverage:    desc("trigger_coverage_ratio", "Share of the pods, or nodes, of which something is known.", ofTrigger...),
		flat:        desc("trigger_flat_pods", "Pods whose memory does not follow their load: each counts as the target, or as 0 while it is idle.", ofTrigger...),
		podsLeftOut: desc("trigger_pods_left_out", "Pods whose value is missing, so that the decision rests on the others.", ofTrigger...),
		answered:    desc("trigger_answer_age_seconds", "How long ago KEDA asked last.", ofTrigger...),
		failed:      desc("trigger_failing", "1 if there was no answer.", ofTrigger...),
		calls:       desc("calls_total", "KEDA's calls by how they ended.", "call", "code"),
		readerUp:    desc("reader_up", "1 if a reader on this node (nvmlsidecar, podresources) speaks and can read.", "reader"),
		refused:     desc("reader_refused_devices", "GPUs that the driver counts and that the reader may not open: they are not lost, but not for it.", "reader"),
		readerAge:   desc("reader_age_seconds", "How old what it said last is.", "reader"),
		kubeletAge:  desc("kubelet_age_seconds", "How long ago the kubelet said which pods hold what."),
		leftOut:     desc("readings_missing_total", "Readings that a device should have had and could not be read."),
		nodes:       desc("nodes", "Nodes that peers tell of: heard, silent (too long ago), unheard (never).", "state"),
		workloads:   desc("workloads", "Workloads that somebody asks for: known, and those that the API server cannot tell of now.", "state"),
		workloadAge: desc("workload_age_seconds", "How old the oldest of what the API server told of them is."),
		build:       desc("build_info", "Always 1.", "version", "goversion"),
	}
	for metric, q := range gauges {
		d.gauges[metric] = desc("gpu_"+q.name, q.help, ofGPU...)
	}
	for i, help := range counted {
		d.counted[i] = desc("workload_"+fleet.Counted[i]+"_total", help, ofWorkload...)
	}
	for i, help := range measured {
		d.measured[i] = desc("workload_"+fleet.Measured[i]+"_seconds", help, ofWorkload...)
	}
	for i, q := range integrals {
		d.integrals[i] = desc("gpu_"+q.name, q.help, ofGPU...)
	}
	for _, metric := range podGauges {
		d.podGauges[metric] = desc("pod_gpu_"+gauges[metric].name, "The pod's part: "+gauges[metric].help, ofPod...)
	}
	for _, i := range podIntegrals {
		d.podIntegrals[i] = desc("pod_gpu_"+integrals[i].name, "The pod's part: "+integrals[i].help, ofPod...)
	}
	return d
}
