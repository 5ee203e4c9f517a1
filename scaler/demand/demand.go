// Package demand keeps which engines somebody asks for. Whoever answers KEDA has each
// node read the engines of the pods that its triggers are about, and no others. It must
// not know how an engine is read.
package demand

import (
	"cmp"

	"gpuscaler/scaler/fleet"
)

// Ask asks for the engine of one pod. It is comparable: a set of them has each once.
type Ask struct {
	fleet.EngineKey
	// Quantile is that of the latencies that is wanted; 0: none.
	Quantile float64
}

func compare(a, b Ask) int {
	return cmp.Or(a.Compare(b.EngineKey), cmp.Compare(a.Quantile, b.Quantile))
}
