package cluster

import (
	"bytes"
	"context"
	"os"

	"gpuscaler/deploy/e2e/process"
)

// kwokMark is on each node that KWOK plays, as annotation and as taint, so that
// nothing lands there that does not ask for it.
const kwokMark = "kwok.x-k8s.io/node"

// kwokCustom is on each pod that KWOK does not play: the node's Kubelet does.
const kwokCustom = "kwok.x-k8s.io/status"

// playedMark is on each pod that a test plays itself.
const playedMark = "e2e.example.com/played"

// startKWOK starts the player of fake nodes: their pods turn Running and Ready
// at once.
func (c *Cluster) startKWOK(context.Context) error {
	files, err := c.o.Binaries.Data("cluster", "kwok")
	if err != nil {
		return err
	}
	var stages [][]byte
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		stages = append(stages, text)
	}
	config := c.file("kwok.yaml")
	if err := os.WriteFile(config, bytes.Join(stages, []byte("\n---\n")), 0o644); err != nil {
		return err
	}
	if _, err := c.Identity("kwok", "kwok", []string{masters}, nil); err != nil {
		return err
	}
	_, err = c.start(process.Spec{
		Name: "kwok", Path: c.o.Binaries.Path("cluster", "kwok"), Args: []string{
			"--kubeconfig=" + c.file("kwok.kubeconfig"), "--config=" + config,
			"--manage-all-nodes=false", "--manage-nodes-with-annotation-selector=" + kwokMark + "=fake",
			"--disregard-status-with-annotation-selector=" + kwokCustom + "=custom",
			"--node-lease-duration-seconds=40", "--server-address=", "--cidr=10.200.0.0/16", "--node-ip=127.0.0.1",
		},
	})
	return err
}
