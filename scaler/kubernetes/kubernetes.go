// Package kubernetes finds the API server and says how to talk to it. What is
// asked of it, and by whom, is not known here.
package kubernetes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/flowcontrol"
)

// Requests per second, and how many at once, of everything that shares a
// connection: little, because there is a scaler on every GPU node.
const (
	requestsPerSecond = 5
	requestBurst      = 10
)

// ErrNone is wrapped where there is no API server to talk to, which is no
// fault: the scaler works without.
var ErrNone = errors.New("no Kubernetes API")

// Config is how to reach the API server: as a kubeconfig file says, which is an
// error if it cannot be used; without one as the pod's service account, and
// [ErrNone] with the reason if there is none. It asks nothing of the API server.
// $KUBECONFIG and the home directory are not looked at: a scaler that somebody
// tries out must not write to the cluster that they happen to work on.
//
// The rate limit is of all clients made from it together. There is no timeout,
// because it would end watches: each user sets its own.
func Config(kubeconfig, userAgent string) (*rest.Config, error) {
	config, err := load(kubeconfig)
	if err != nil {
		return nil, err
	}
	config.UserAgent = userAgent
	config.QPS, config.Burst = requestsPerSecond, requestBurst
	config.RateLimiter = flowcontrol.NewTokenBucketRateLimiter(requestsPerSecond, requestBurst)
	return config, nil
}

// Core is a client that knows core/v1 alone: client-go's own links the types of all
// APIs.
func Core(config *rest.Config) (rest.Interface, error) {
	return typed(config, "/api", corev1.SchemeGroupVersion, protobuf, corev1.AddToScheme)
}

// Discovery is a client that knows discovery.k8s.io/v1 alone.
func Discovery(config *rest.Config) (rest.Interface, error) {
	return typed(config, "/apis", discoveryv1.SchemeGroupVersion, protobuf, discoveryv1.AddToScheme)
}

// Custom is a client that has the types of one kind of custom resource alone, by the caller's own
// types of an object and of a list of them: these need only the fields that matter.
func Custom(config *rest.Config, kind schema.GroupVersionKind, object, list runtime.Object) (rest.Interface, error) {
	return typed(config, "/apis", kind.GroupVersion(), runtime.ContentTypeJSON, func(scheme *runtime.Scheme) error {
		scheme.AddKnownTypeWithName(kind, object)
		scheme.AddKnownTypeWithName(kind.GroupVersion().WithKind(kind.Kind+"List"), list)
		metav1.AddToGroupVersion(scheme, kind.GroupVersion())
		return nil
	})
}

const protobuf = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON

// typed makes a client; accept are the content types that it understands.
func typed(config *rest.Config, path string, version schema.GroupVersion, accept string, add func(*runtime.Scheme) error) (rest.Interface, error) {
	scheme := runtime.NewScheme()
	if err := add(scheme); err != nil {
		return nil, err
	}
	config = rest.CopyConfig(config)
	config.APIPath, config.GroupVersion = path, &version
	config.ContentType, _, _ = strings.Cut(accept, ",")
	config.AcceptContentTypes = accept
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	return rest.RESTClientFor(config)
}

// Raw is a client that knows no types: callers decode what they get. Its errors
// are those of k8s.io/apimachinery/pkg/api/errors.
func Raw(config *rest.Config) (rest.Interface, error) {
	scheme := runtime.NewScheme()
	metav1.AddToGroupVersion(scheme, schema.GroupVersion{Version: "v1"}) // a Status
	config = rest.CopyConfig(config)
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	return rest.UnversionedRESTClientFor(config)
}

// GetJSON sends a request of a Raw client, and decodes its answer.
func GetJSON(ctx context.Context, request *rest.Request, into any) error {
	result := request.SetHeader("Accept", "application/json").Do(ctx)
	if err := result.Error(); err != nil { // with what the server said
		return err
	}
	text, err := result.Raw()
	if err != nil {
		return err
	}
	return json.Unmarshal(text, into)
}

func load(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" {
		config, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrNone, err)
		}
		return config, nil
	}
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("kubeconfig %s: %w", kubeconfig, err)
	}
	return config, nil
}

// namespaceFile has the namespace of the pod, beside its token.
const namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

// Namespace is the pod's own, or that of a kubeconfig file's context.
func Namespace(kubeconfig string) (string, error) {
	if kubeconfig == "" {
		text, err := os.ReadFile(namespaceFile)
		if err != nil {
			return "", fmt.Errorf("the pod's namespace: %w", err)
		}
		return strings.TrimSpace(string(text)), nil
	}
	rules := &clientcmd.ClientConfigLoadingRules{ExplicitPath: kubeconfig}
	namespace, _, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, nil).Namespace()
	return namespace, err
}
