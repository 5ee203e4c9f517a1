package cluster

import (
	"context"

	"github.com/go-logr/logr"
	kedav1alpha1 "github.com/kedacore/keda/v2/apis/keda/v1alpha1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

// onNode is the index of pods by the node that they are bound to.
const onNode = "spec.nodeName"

func init() { log.SetLogger(logr.Discard()) } // the client's, which would say that there is none

// newClients makes Client, and the watches that stories and kubelets read from: what
// they look at ten times a second is not asked of the API server each time.
func (c *Cluster) newClients() error {
	config := rest.CopyConfig(c.rest)
	config.WarningHandler = rest.NoWarnings{} // of Pod Security's admission, where a test asks for it
	scheme := runtime.NewScheme()
	if err := clientscheme.AddToScheme(scheme); err != nil {
		return err
	}
	if err := kedav1alpha1.AddToScheme(scheme); err != nil {
		return err
	}
	var err error
	if c.Client, err = client.New(config, client.Options{Scheme: scheme}); err != nil {
		return err
	}
	watched, err := cache.New(config, cache.Options{Scheme: scheme})
	if err != nil {
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	node := func(o client.Object) []string { return []string{o.(*corev1.Pod).Spec.NodeName} }
	if err := watched.IndexField(ctx, &corev1.Pod{}, onNode, node); err != nil {
		stop()
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- watched.Start(ctx) }()
	c.watched = watched
	c.unwatch = func() error {
		stop()
		return <-ended
	}
	return nil
}

// Label sets a label of a node, "" removes it, and returns what it was.
func (c *Cluster) Label(ctx context.Context, node, label, value string) (before string, err error) {
	n := &corev1.Node{}
	if err := c.Client.Get(ctx, client.ObjectKey{Name: node}, n); err != nil {
		return "", err
	}
	was := n.DeepCopy()
	before = n.Labels[label]
	if value == "" {
		delete(n.Labels, label)
	} else {
		n.Labels[label] = value
	}
	return before, c.Client.Patch(ctx, n, client.MergeFrom(was))
}
