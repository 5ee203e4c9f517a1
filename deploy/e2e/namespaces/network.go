package namespaces

import (
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
)

// makeNetwork gives the machine loopback and one interface that leads nowhere.
func makeNetwork() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("interface lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("interface lo: %w", err)
	}
	// Both ends are in here. A veth is what pods need anyhow, and a dummy interface
	// is not in every kernel.
	node := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "node0"}, PeerName: "node1"}
	if err := netlink.LinkAdd(node); err != nil {
		return fmt.Errorf("interface node0: %w", err)
	}
	peer, err := netlink.LinkByName("node1")
	if err != nil {
		return fmt.Errorf("interface node1: %w", err)
	}
	for _, link := range []netlink.Link{node, peer} {
		if err := netlink.LinkSetUp(link); err != nil {
			return fmt.Errorf("interface %s: %w", link.Attrs().Name, err)
		}
	}
	ip := net.ParseIP(NodeIP)
	address := &netlink.Addr{IPNet: &net.IPNet{IP: ip, Mask: net.CIDRMask(24, 32)}}
	if err := netlink.AddrAdd(node, address); err != nil {
		return fmt.Errorf("address %s: %w", NodeIP, err)
	}
	// The kernel refuses ClusterIPs before kube-proxy's rules see them when there is no route.
	_, all, err := net.ParseCIDR("0.0.0.0/0")
	if err != nil {
		return err
	}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: node.Attrs().Index, Dst: all, Src: ip}); err != nil {
		return fmt.Errorf("default route: %w", err)
	}
	return nil
}
