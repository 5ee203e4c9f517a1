package events

import (
	"context"
	"errors"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
)

// sink is where the recorder's events go: what client-go's own does, without
// linking the types of all other APIs.
type sink struct {
	// ctx ends a request that is under way: the recorder's interface has none.
	ctx    context.Context //nolint:containedctx // see above
	client rest.Interface
}

// eventsClient is a client that knows core/v1 alone.
func eventsClient(config *rest.Config, web *http.Client) (rest.Interface, error) {
	scheme := runtime.NewScheme()
	if err := corev1.AddToScheme(scheme); err != nil {
		return nil, err
	}
	config = rest.CopyConfig(config)
	config.APIPath, config.GroupVersion = "/api", &corev1.SchemeGroupVersion
	config.NegotiatedSerializer = serializer.NewCodecFactory(scheme).WithoutConversion()
	return rest.RESTClientForConfigAndClient(config, web)
}

// Create makes an event.
func (s *sink) Create(e *corev1.Event) (*corev1.Event, error) {
	return s.result(s.client.Post().Namespace(e.Namespace).Resource("events").Body(e))
}

// Patch counts an event up.
func (s *sink) Patch(e *corev1.Event, patch []byte) (*corev1.Event, error) {
	return s.result(s.client.Patch(types.StrategicMergePatchType).Namespace(e.Namespace).Resource("events").Name(e.Name).Body(patch))
}

// Update is what the recorder never calls: see the rights in deploy/base.
func (s *sink) Update(*corev1.Event) (*corev1.Event, error) { return nil, errors.ErrUnsupported }

func (s *sink) result(request *rest.Request) (*corev1.Event, error) {
	ctx, cancel := context.WithTimeout(s.ctx, timeout)
	defer cancel()
	e := &corev1.Event{}
	err := request.Do(ctx).Into(e)
	return e, err
}
