package cluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Usage is where the HPA reads what pods use of a CPU, in place of
// metrics-server: it serves the resource metrics API, and says what it is told.
// With it a load can be given to a workload as CPU, too.
type Usage struct {
	c      *Cluster
	server *http.Server
	ended  chan struct{}

	mu  sync.Mutex
	cpu map[client.ObjectKey][]usage // by pod, oldest first
	// windows are how long each reading is averaged over, by namespace; absent: 0.
	windows map[string]time.Duration
}

// usage is what a pod uses from a time on, in cores.
type usage struct {
	at    time.Time
	cores float64
}

// usageObjects registers the API; %s are its port and the CA (base64).
const usageObjects = `
apiVersion: v1
kind: Service
metadata: {name: metrics-server, namespace: kube-system}
spec: {type: ExternalName, externalName: localhost, ports: [{port: %[1]s}]}
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1beta1.metrics.k8s.io}
spec:
  service: {name: metrics-server, namespace: kube-system, port: %[1]s}
  group: metrics.k8s.io
  version: v1beta1
  groupPriorityMinimum: 100
  versionPriority: 100
  caBundle: %[2]s
`

// startUsage serves the API to the API server alone, and waits until the API
// server hands it on.
func (c *Cluster) startUsage(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startWithin)
	defer cancel()
	pair, err := c.ca.Sign("metrics-server", nil, []string{"localhost", "metrics-server.kube-system.svc"})
	if err != nil {
		return err
	}
	certificate, err := tls.X509KeyPair(pair.Cert, pair.Key)
	if err != nil {
		return err
	}
	clients := x509.NewCertPool()
	clients.AppendCertsFromPEM(c.ca.PEM)
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{certificate}, ClientCAs: clients, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12,
	})
	if err != nil {
		return err
	}
	u := &Usage{c: c, cpu: map[client.ObjectKey][]usage{}, windows: map[string]time.Duration{}, ended: make(chan struct{})}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /apis/metrics.k8s.io/v1beta1", u.resources)
	mux.HandleFunc("GET /apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods", u.pods)
	u.server = &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() {
		defer close(u.ended)
		_ = u.server.Serve(l)
	}()
	c.Usage = u
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		return err
	}
	if err := c.Apply(ctx, fmt.Sprintf(usageObjects, port, base64PEM(c.ca.PEM))); err != nil {
		return err
	}
	return Until(ctx, func(ctx context.Context) error { return c.get(ctx, "/apis/metrics.k8s.io/v1beta1") })
}

// stop ends the server.
func (u *Usage) stop() error {
	if u == nil {
		return nil
	}
	err := u.server.Close()
	<-u.ended
	return err
}

// Set says how many cores each pod of a namespace uses, by name. Of pods that it
// leaves out nothing is known.
func (u *Usage) Set(namespace string, cores map[string]float64) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for key := range u.cpu {
		if _, known := cores[key.Name]; key.Namespace == namespace && !known {
			delete(u.cpu, key)
		}
	}
	now := time.Now()
	begin := now.Add(-u.windows[namespace])
	for pod, n := range cores {
		key := client.ObjectKey{Namespace: namespace, Name: pod}
		all := u.cpu[key]
		for len(all) > 1 && !all[1].at.After(begin) { // the first one is what holds at begin
			all = all[1:]
		}
		u.cpu[key] = append(all, usage{now, n})
	}
}

// Window has the readings of a namespace averaged over so long, as metrics-server does
// between two of its scrapes.
func (u *Usage) Window(namespace string, window time.Duration) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.windows[namespace] = window
}

// mean is what a pod used in the time before now, of as much as is known.
func mean(all []usage, now time.Time, window time.Duration) float64 {
	var sum, seconds float64
	begin := now.Add(-window)
	for i, one := range all {
		from, to := one.at, now
		if i+1 < len(all) {
			to = all[i+1].at
		}
		if from.Before(begin) {
			from = begin
		}
		if to.After(from) {
			sum += one.cores * to.Sub(from).Seconds()
			seconds += to.Sub(from).Seconds()
		}
	}
	if seconds == 0 {
		return all[len(all)-1].cores
	}
	return sum / seconds
}

func (u *Usage) resources(w http.ResponseWriter, _ *http.Request) {
	answer(w, &metav1.APIResourceList{
		TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: "metrics.k8s.io/v1beta1",
		APIResources: []metav1.APIResource{{Name: "pods", Kind: "PodMetrics", Namespaced: true, Verbs: metav1.Verbs{"list"}}},
	})
}

func (u *Usage) pods(w http.ResponseWriter, r *http.Request) {
	selector, err := labels.Parse(r.URL.Query().Get("labelSelector"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	namespace := r.PathValue("namespace")
	pods := &corev1.PodList{}
	if err := u.c.watched.List(r.Context(), pods, client.InNamespace(namespace), client.MatchingLabelsSelector{Selector: selector}); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	list := &metricsv1beta1.PodMetricsList{TypeMeta: metav1.TypeMeta{Kind: "PodMetricsList", APIVersion: "metrics.k8s.io/v1beta1"}}
	u.mu.Lock()
	defer u.mu.Unlock()
	now, window := metav1.Now(), u.windows[namespace]
	for _, p := range pods.Items {
		all, known := u.cpu[client.ObjectKeyFromObject(&p)]
		if !known {
			continue
		}
		cores := mean(all, now.Time, window)
		list.Items = append(list.Items, metricsv1beta1.PodMetrics{
			ObjectMeta: metav1.ObjectMeta{Name: p.Name, Namespace: namespace, Labels: p.Labels}, Timestamp: now, Window: metav1.Duration{Duration: window},
			Containers: []metricsv1beta1.ContainerMetrics{{
				Name: p.Spec.Containers[0].Name, Usage: corev1.ResourceList{corev1.ResourceCPU: *resource.NewMilliQuantity(int64(1000*cores+0.5), resource.DecimalSI)},
			}},
		})
	}
	answer(w, list)
}

func answer(w http.ResponseWriter, with any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(with)
}
