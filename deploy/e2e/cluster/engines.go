package cluster

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"gpuscaler/deploy/e2e/llmserver"
	"gpuscaler/deploy/e2e/process"
)

const (
	// engineMark is on each pod that has an engine which runs, with the flags of cmd/llmengine.
	engineMark = "e2e.example.com/engine"
	// EnginePort is where each of them listens, at its pod's own address.
	EnginePort = 8000
	// engineMemory is what an engine reserves at its start, in MiB: 90 % of an H100.
	engineMemory = 73403
	// readings is how often the driver is told what engines do.
	readings = time.Second
)

// podIPs counts the addresses of pods: each has one of loopback to itself.
var podIPs atomic.Uint32

func nextPodIP() string {
	n := podIPs.Add(1)
	return fmt.Sprintf("127.30.%d.%d", n/250, 1+n%250)
}

// engine is the container of a pod.
type engine struct {
	process *process.Process
	ip      string
	ending  bool
}

// stepEngine takes a pod with an engine one step on its way.
func (k *Kubelet) stepEngine(ctx context.Context, pod *corev1.Pod) error {
	now := metav1.Now()
	e := k.engines[pod.UID]
	switch {
	case pod.DeletionTimestamp != nil && (e == nil || e.process.Ended() != nil):
		delete(k.engines, pod.UID)
		return k.c.Client.Delete(ctx, pod, client.GracePeriodSeconds(0))
	case pod.DeletionTimestamp != nil:
		if !e.ending { // it finishes what is in flight
			e.ending = true
			grace := time.Duration(*pod.Spec.TerminationGracePeriodSeconds) * time.Second // the API server has a default
			go func() { _ = e.process.StopWithin(grace) }()
		}
		return nil
	case e == nil || e.process.Ended() != nil:
		ip := pod.Status.PodIP
		if ip == "" {
			ip = nextPodIP()
		}
		p, err := k.c.processes.Start(process.Spec{
			Name: pod.Name, Path: filepath.Join(k.c.o.Product, "llmengine"),
			Args: append(strings.Fields(pod.Annotations[engineMark]), fmt.Sprintf("--listen=%s:%d", ip, EnginePort)),
		})
		if err != nil {
			return err
		}
		k.engines[pod.UID] = &engine{process: p, ip: ip}
		pod.Status.Phase, pod.Status.StartTime, pod.Status.PodIP, pod.Status.PodIPs = corev1.PodRunning, &now, ip, []corev1.PodIP{{IP: ip}}
		setReady(pod, corev1.ConditionFalse, now)
	case !isReady(pod) && answers(ctx, k.web, fmt.Sprintf("http://%s:%d/health", e.ip, EnginePort)) == nil:
		setReady(pod, corev1.ConditionTrue, now)
	default:
		return nil
	}
	return k.c.Client.Status().Update(ctx, pod)
}

// observe tells the driver what the engines do to the GPUs of their pods.
func (k *Kubelet) observe(ctx context.Context, pods []corev1.Pod) {
	if len(k.engines) == 0 || time.Since(k.observed) < readings {
		return
	}
	k.observed = time.Now()
	lines := []string{"set * gpu_utilization 0", "set * memory_used_mib 0"}
	for i := range pods {
		e := k.engines[pods[i].UID]
		if e == nil {
			continue
		}
		var gpu llmserver.GPU
		_ = getJSON(ctx, fmt.Sprintf("http://%s:%d/gpu", e.ip, EnginePort), &gpu) // it loads: nothing yet
		for _, id := range k.Given(&pods[i]) {
			lines = append(lines, fmt.Sprintf("set %s gpu_utilization %.0f", id, gpu.Utilization), fmt.Sprintf("set %s memory_used_mib %d", id, engineMemory))
		}
	}
	_ = k.driver.Set(lines...)
}

// endEngines ends those of pods that are gone.
func (k *Kubelet) endEngines(pods []corev1.Pod) {
	there := map[string]bool{}
	for i := range pods {
		there[string(pods[i].UID)] = true
	}
	for uid, e := range k.engines {
		if !there[string(uid)] {
			e.process.Kill()
			delete(k.engines, uid)
		}
	}
}

// newWeb is a client for health checks, as short as a kubelet's.
func newWeb() *http.Client { return &http.Client{Timeout: time.Second} }
