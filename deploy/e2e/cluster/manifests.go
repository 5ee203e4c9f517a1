package cluster

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
)

// fieldOwner is who owns the fields that the harness applies.
const fieldOwner = client.FieldOwner("gpuscaler-e2e")

// Apply applies YAML documents server-side, as "kubectl apply --server-side" does.
func (c *Cluster) Apply(ctx context.Context, manifests string) error {
	return c.ApplyIn(ctx, "", manifests)
}

// ApplyIn is Apply with a namespace for the objects that name none.
func (c *Cluster) ApplyIn(ctx context.Context, namespace, manifests string) error {
	objects, err := Objects(manifests)
	if err != nil {
		return err
	}
	for _, o := range objects {
		if namespace != "" && o.GetNamespace() == "" {
			o.SetNamespace(namespace)
		}
		if err := c.Client.Apply(ctx, client.ApplyConfigurationFromUnstructured(o), fieldOwner, client.ForceOwnership); err != nil {
			return fmt.Errorf("%s %s: %w", o.GetKind(), o.GetName(), err)
		}
	}
	return nil
}

// AddTypes makes the API server know types of others whose programs do not run here,
// e.g. "podmonitors" of "prometheus-operator"; without a name all.
func (c *Cluster) AddTypes(ctx context.Context, of string, names ...string) error {
	return c.applyData(ctx, "types", of, names...)
}

// applyData applies the YAML files kept of a module, or those of them that have
// one of the texts in their names.
func (c *Cluster) applyData(ctx context.Context, module, name string, only ...string) error {
	files, err := c.o.Binaries.Data(module, name)
	files = slices.DeleteFunc(files, func(file string) bool {
		return len(only) > 0 && !slices.ContainsFunc(only, func(part string) bool { return strings.Contains(filepath.Base(file), part) })
	})
	if err == nil && len(files) == 0 {
		err = fmt.Errorf("no data %s of %s", name, module)
	}
	if err != nil {
		return err
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if err := c.Apply(ctx, string(text)); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	return nil
}

// Kustomize renders a folder as "kubectl kustomize" does.
func Kustomize(folder string) (string, error) {
	resources, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), folder)
	if err != nil {
		return "", fmt.Errorf("kustomize %s: %w", folder, err)
	}
	text, err := resources.AsYaml()
	return string(text), err
}

// Overlay renders the base in the folder deploy with components of it, as a
// user's own kustomization does; further are lines of that. It is written into
// dir.
func Overlay(deploy, dir, further string, components ...string) (string, error) {
	up, err := filepath.Rel(dir, deploy)
	if err != nil {
		return "", err
	}
	text := "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [" + up + "/base]\ncomponents:\n"
	for _, component := range components {
		text += "  - " + up + "/components/" + component + "\n"
	}
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text+further), 0o600); err != nil {
		return "", err
	}
	return Kustomize(dir)
}

// Objects reads YAML documents; empty ones are left out.
func Objects(manifests string) ([]*unstructured.Unstructured, error) {
	var objects []*unstructured.Unstructured
	decoder := yaml.NewYAMLOrJSONDecoder(strings.NewReader(manifests), 4096)
	for {
		o := &unstructured.Unstructured{}
		err := decoder.Decode(&o.Object)
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%w in:\n%s", err, manifests)
		}
		if len(o.Object) > 0 {
			objects = append(objects, o)
		}
	}
}

// base64PEM is how YAML carries a certificate.
func base64PEM(pem []byte) string { return base64.StdEncoding.EncodeToString(pem) }

// get is an error unless the API server answers 200.
func (c *Cluster) get(ctx context.Context, path string) error {
	return answers(ctx, c.web, c.rest.Host+path)
}

// answers is an error unless url answers 200.
func answers(ctx context.Context, by *http.Client, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := by.Do(request)
	if err != nil {
		return err
	}
	defer func() { _ = response.Body.Close() }()
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 1024))
		return fmt.Errorf("%s: %s: %s", url, response.Status, text)
	}
	return nil
}
