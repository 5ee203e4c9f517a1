package snapshotpb

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"

	"gpuscaler/shared/snapshot"
)

// allocationSize counts over all the allocations of a frame: they are merged.
type allocationSize struct{ containers, held int }

// Field numbers of Allocation, Container and PluginDevices.
const (
	fieldContainers           = protowire.Number(1)
	fieldPlugin, fieldClaimed = protowire.Number(4), protowire.Number(5)
	fieldIDs                  = protowire.Number(2)
)

func (a *allocationSize) add(allocation []byte) error {
	return eachField(allocation, func(field protowire.Number, container []byte) error {
		if field != fieldContainers {
			return nil
		}
		if a.containers++; a.containers > snapshot.MaxContainers {
			return fmt.Errorf("more than %d containers", snapshot.MaxContainers)
		}
		return eachField(container, func(field protowire.Number, held []byte) error {
			switch field {
			case fieldClaimed:
				return a.hold()
			case fieldPlugin:
			default:
				return nil
			}
			if err := a.hold(); err != nil {
				return err
			}
			return eachField(held, func(field protowire.Number, _ []byte) error {
				if field != fieldIDs {
					return nil
				}
				return a.hold()
			})
		})
	})
}

func (a *allocationSize) hold() error {
	if a.held++; a.held > snapshot.MaxHeld {
		return fmt.Errorf("more than %d devices and resources held", snapshot.MaxHeld)
	}
	return nil
}

func allocationToProto(a *snapshot.Allocation) *Allocation {
	if a == nil {
		return nil
	}
	m := &Allocation{Containers: make([]*Container, len(a.Containers))}
	for i := range a.Containers {
		c := &a.Containers[i]
		out := &Container{Namespace: c.Namespace, Pod: c.Pod, Name: c.Name}
		for _, p := range c.Plugin {
			out.Plugin = append(out.Plugin, &PluginDevices{Resource: p.Resource, Ids: p.IDs})
		}
		for _, d := range c.Claimed {
			out.Claimed = append(out.Claimed, &ClaimedDevice{Driver: d.Driver, Pool: d.Pool, Device: d.Device, Claim: d.Claim})
		}
		m.Containers[i] = out
	}
	return m
}

func allocationFromProto(m *Allocation) *snapshot.Allocation {
	if m == nil {
		return nil
	}
	a := &snapshot.Allocation{Containers: make([]snapshot.Container, len(m.GetContainers()))}
	for i, in := range m.GetContainers() {
		c := snapshot.Container{Namespace: in.GetNamespace(), Pod: in.GetPod(), Name: in.GetName()}
		for _, p := range in.GetPlugin() {
			c.Plugin = append(c.Plugin, snapshot.PluginDevices{Resource: p.GetResource(), IDs: p.GetIds()})
		}
		for _, d := range in.GetClaimed() {
			c.Claimed = append(c.Claimed, snapshot.ClaimedDevice{Driver: d.GetDriver(), Pool: d.GetPool(), Device: d.GetDevice(), Claim: d.GetClaim()})
		}
		a.Containers[i] = c
	}
	return a
}
