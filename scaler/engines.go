package main

import (
	"context"
	"log/slog"
	"time"

	"k8s.io/client-go/rest"

	"gpuscaler/scaler/demand"
	"gpuscaler/scaler/engines"
	"gpuscaler/scaler/evaluate"
	"gpuscaler/scaler/externalscaler"
	"gpuscaler/scaler/fleet"
	"gpuscaler/scaler/services"
	"gpuscaler/scaler/workload"
)

type engineOptions struct {
	Engines string `enum:"auto,off" default:"auto" help:"auto: read the inference engines of the pods that triggers with engine metrics are about, and the Services of those with service_queue, over HTTP, where workloads are known. off: never; such triggers are refused."`
}

// placing is how often it is looked at which pods the wanted engines are in.
const placing = time.Second

// useEngines has the engines read that triggers are about: the board is nil where none
// are.
func (c *serveCommand) useEngines(workloads *workload.Resolver, nodes *fleet.Fleet, node *fleet.Local, service *externalscaler.Service, log *slog.Logger) (*demand.Board, []func(context.Context) error) {
	if c.Engines == "off" || workloads == nil {
		return nil, nil
	}
	own := ""
	if node != nil {
		own = c.NodeName
	}
	board := demand.NewBoard(own)
	service.UseEngines(board)
	run := []func(context.Context) error{func(ctx context.Context) error {
		tick := time.NewTicker(placing)
		defer tick.Stop()
		for {
			updated := board.Updated()
			board.Place(place(board.Wants(time.Now()), workloads, nodes))
			select {
			case <-ctx.Done():
				return nil
			case <-tick.C:
			case <-updated:
			}
		}
	}}
	if node != nil {
		run = append(run, engines.New(node, board, log).Run)
	}
	return board, run
}

// useServices has the Services read that triggers are about.
func (c *serveCommand) useServices(config *rest.Config, workloads *workload.Resolver, service *externalscaler.Service, log *slog.Logger) ([]func(context.Context) error, error) {
	if c.Engines == "off" || workloads == nil {
		return nil, nil
	}
	reader, err := services.New(config, c.StaleAfter, c.AttributionStaleAfter, log)
	if err != nil {
		return nil, err
	}
	service.UseServices(reader)
	return []func(context.Context) error{reader.Run}, nil
}

// place is which engines of which nodes the wants are about.
func place(wants []demand.Want, workloads *workload.Resolver, nodes *fleet.Fleet) map[string][]demand.Ask {
	byNode := map[string][]demand.Ask{}
	for _, want := range wants {
		w := workloads.Known(want.Namespace, want.Name, want.PodSelector)
		if w == nil {
			continue
		}
		for _, pod := range evaluate.EnginePods(nodes, w) {
			ask := want.How
			ask.UID = pod.UID
			byNode[pod.Node] = append(byNode[pod.Node], ask)
		}
	}
	return byNode
}
