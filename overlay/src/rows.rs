//! Entries of the eBPF maps, as `ebpf-abi` lays them out.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ebpf_abi as abi;
use ebpf_abi::{
    Addr, EpAddrKey, EpAddrVal, EpCfg, EpExtraKey, EpMacKey, EpMacVal, MemberVal, NodeCfg, PoolKey, RouteKey, RouteVal,
};
use ipnet::IpNet;
use model::{Mac, Vni};

use crate::{
    desired::{Desired, Endpoint},
    names,
    objects::Observed,
};

/// What the maps of the overlay should hold. An endpoint appears once its device exists.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rows {
    /// Map `config`; `object` is filled in by whoever attaches the programs. `None`: no VXLAN device yet.
    pub config: Option<NodeCfg>,
    /// Map `members`.
    pub members: BTreeMap<u32, MemberVal>,
    /// Map `routes`.
    pub routes: BTreeMap<RouteKey, RouteVal>,
    /// Map `pools`.
    pub pools: BTreeMap<PoolKey, u32>,
    /// Map `ep_by_mac`.
    pub ep_by_mac: BTreeMap<EpMacKey, EpMacVal>,
    /// Map `ep_by_addr`.
    pub ep_by_addr: BTreeMap<EpAddrKey, EpAddrVal>,
    /// Map `ep_config`, by interface index: also the devices that `from_ep` belongs on.
    pub ep_config: BTreeMap<u32, EpCfg>,
    /// Map `ep_extra`.
    pub ep_extra: BTreeMap<EpExtraKey, u32>,
}

/// An address as the maps hold it.
pub(crate) fn addr(ip: IpAddr) -> Addr {
    match ip {
        IpAddr::V4(a) => Addr::v4(a.octets()),
        IpAddr::V6(a) => Addr::v6(a.octets()),
    }
}

fn word(a: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(a.octets())
}

fn six(a: Option<Ipv6Addr>) -> Addr {
    a.map_or(Addr::default(), |a| Addr::v6(a.octets()))
}

fn mac(m: Mac) -> abi::Mac {
    abi::mac(m.0)
}

/// Bits of a prefix among the 128 of a mapped address.
fn bits(net: IpNet) -> u32 {
    u32::from(net.prefix_len()) + if net.addr().is_ipv4() { 96 } else { 0 }
}

fn route_key(vni: Vni, net: IpNet) -> RouteKey {
    RouteKey {
        prefix_len: 32 + bits(net),
        vni_be: vni.get().to_be(),
        addr: addr(net.network()),
    }
}

/// The rows for `desired`, with the indices of the devices that exist. None for a node whose data-path address is IPv6, and
/// none about others with such a one: the programs know IPv4 alone.
pub fn rows(desired: &Desired, observed: &Observed) -> Rows {
    let mut out = Rows::default();
    let Some(node) = &desired.node else { return out };
    let IpAddr::V4(own) = node.vtep else { return out };
    out.config = observed.host_index(names::VXLAN).map(|vxlan_ifindex| NodeCfg {
        abi: abi::ABI,
        vtep: word(own),
        vxlan_ifindex,
        vxlan_port: u32::from(node.vxlan_port.to_be()),
        mac: mac(node.mac),
        mtu: node.mtu,
        flags: node.flags,
        hairpin4: word(node.hairpin4),
        hairpin6: Addr::v6(node.hairpin6.octets()),
        object: [0; 2],
    });
    // Later inserts win: the subnet is told first, blocks and single addresses are other keys, VIPs are never in blocks.
    for (vni, network) in &desired.networks {
        for subnet in network.subnets() {
            out.pools.insert(
                PoolKey {
                    prefix_len: bits(subnet),
                    addr: addr(subnet.network()),
                },
                vni.get(),
            );
            out.routes.insert(
                route_key(*vni, subnet),
                RouteVal {
                    kind: abi::ROUTE_NONE,
                    ..RouteVal::default()
                },
            );
        }
        for vip in &network.vips {
            out.routes.insert(
                route_key(*vni, IpNet::from(*vip)),
                RouteVal {
                    kind: abi::ROUTE_VIP,
                    ..RouteVal::default()
                },
            );
        }
    }
    for (vni, block) in &node.blocks {
        out.routes.insert(
            route_key(*vni, *block),
            RouteVal {
                kind: abi::ROUTE_LOCAL,
                ..RouteVal::default()
            },
        );
    }
    for (id, remote) in &desired.remotes {
        let IpAddr::V4(vtep) = remote.vtep else { continue };
        // The low half of the id is what the programs report; ids are given out from 1 on.
        out.members.insert(
            word(vtep),
            MemberVal {
                node: id.0 as u32,
                flags: 0,
            },
        );
        let there = RouteVal {
            kind: abi::ROUTE_NODE,
            vtep: word(vtep),
            mac: mac(remote.mac),
            pad: 0,
        };
        let singles = remote.singles.iter().map(|(vni, a)| (*vni, IpNet::from(*a)));
        for (vni, net) in remote.blocks.iter().copied().chain(singles) {
            out.routes.insert(route_key(vni, net), there);
        }
    }
    for (id, ep) in &desired.endpoints {
        let name = names::veth(id);
        let ours = observed
            .host
            .links
            .get(&name)
            .filter(|l| l.alias.as_deref() == Some(names::endpoint_alias(id).as_str()));
        let (Some(link), Some(network)) = (ours, desired.networks.get(&ep.vni)) else {
            continue;
        };
        endpoint(&mut out, ep, link.index, network.internal);
        for a in ep.addresses().chain(ep.extra.iter().copied()) {
            let inside = node
                .blocks
                .iter()
                .any(|(vni, block)| *vni == ep.vni && block.contains(&a));
            if !inside {
                out.routes.insert(
                    route_key(ep.vni, IpNet::from(a)),
                    RouteVal {
                        kind: abi::ROUTE_LOCAL,
                        ..RouteVal::default()
                    },
                );
            }
        }
    }
    out
}

fn endpoint(out: &mut Rows, ep: &Endpoint, ifindex: u32, internal: bool) {
    let vni = ep.vni.get();
    let addr4 = ep.v4.map_or(0, word);
    let flag = |on, flag| if on { flag } else { 0 };
    let flags = flag(internal, abi::EP_INTERNAL)
        | flag(ep.backend, abi::EP_BACKEND)
        | flag(!ep.extra.is_empty(), abi::EP_EXTRA);
    let link6 = Addr::v6(ep.link_local().octets());
    out.ep_config.insert(
        ifindex,
        EpCfg {
            addr6: six(ep.v6),
            link6,
            addr4,
            vni,
            mac: mac(ep.mac),
            flags,
        },
    );
    out.ep_by_mac.insert(
        EpMacKey {
            vni,
            mac: mac(ep.mac),
            pad: 0,
        },
        EpMacVal {
            addr6: six(ep.v6),
            addr4,
            ifindex,
        },
    );
    for a in ep.addresses().chain(ep.extra.iter().copied()) {
        for key in [vni, 0] {
            let value = EpAddrVal {
                ifindex,
                vni,
                mac: mac(ep.mac),
                pad: 0,
            };
            out.ep_by_addr.insert(
                EpAddrKey {
                    addr: addr(a),
                    vni: key,
                },
                value,
            );
        }
    }
    for a in &ep.extra {
        out.ep_extra.insert(
            EpExtraKey {
                addr: addr(*a),
                ifindex,
            },
            1,
        );
    }
}
