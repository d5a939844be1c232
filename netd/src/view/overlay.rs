//! What of the overlay should exist on this node.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnet::IpNet;
use model::{EndpointId, Intent, Name, NodeId, Vni};

use super::{Here, node_row, reach, some_translate_early};
use crate::{
    endpoints::{Endpoint, endpoint_mac, node_mac},
    gossip::Facts,
};

/// Octets of the outer headers: IPv4 20 or IPv6 40, UDP 8, VXLAN 8, inner Ethernet 14 (RFC 7348 5).
fn overhead(underlay: IpAddr) -> u32 {
    if underlay.is_ipv4() { 50 } else { 70 }
}
/// Source of a task's flow to itself through its VIP. It is on the gateway's link, so no task has it.
const HAIRPIN4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 2);
/// The same for IPv6, of the range that RFC 6666 gave to nothing that answers.
const HAIRPIN6: Ipv6Addr = Ipv6Addr::new(0x100, 0, 0, 0, 0x6e, 0x6574, 0x64, 2);

/// What the programs are told of the node.
fn flags(here: &Here, early: bool) -> u32 {
    let flag = |on: bool, flag: u32| if on { flag } else { 0 };
    flag(here.direct, ebpf_abi::CFG_DIRECT) | flag(early, ebpf_abi::CFG_EARLY)
}

/// The overlay as it should be here. Only what facts already tell of remote nodes is in it.
pub fn overlay_desired(
    intent: &Intent,
    facts: &Facts,
    here: &Here,
    endpoints: &BTreeMap<EndpointId, Endpoint>,
) -> overlay::Desired {
    let mut blocks: BTreeMap<NodeId, BTreeSet<(Vni, IpNet)>> = BTreeMap::new();
    let mut vips: BTreeMap<&Name, BTreeSet<IpAddr>> = BTreeMap::new();
    for (name, vip) in intent.services.values().flat_map(|s| &s.vips) {
        let both = [Some(IpAddr::V4(vip.v4)), vip.v6.map(IpAddr::V6)];
        vips.entry(name).or_default().extend(both.into_iter().flatten());
    }
    let mut networks = BTreeMap::new();
    for (name, n) in &intent.networks {
        for (number, owner) in intent.blocks.get(&n.vni).into_iter().flatten() {
            let (v4, v6) = n.block(*number);
            let of = blocks.entry(*owner).or_default();
            of.insert((n.vni, v4.into()));
            of.extend(v6.map(|b| (n.vni, b.into())));
        }
        let network = overlay::Network {
            subnet: n.subnet,
            subnet6: n.subnet6,
            internal: n.internal,
            mtu: n.mtu,
            vips: vips.remove(name).unwrap_or_default(),
        };
        networks.insert(n.vni, network);
    }
    let remotes = intent.nodes.keys().filter(|id| **id != here.me).filter_map(|id| {
        let row = node_row(facts, *id)?;
        let vtep = reach::way(here, row).ok()?;
        let blocks = blocks.get(id).cloned().unwrap_or_default();
        Some((
            *id,
            overlay::Remote {
                vtep,
                mac: row.mac,
                blocks,
                singles: BTreeSet::new(),
            },
        ))
    });
    let local = endpoints.iter().filter_map(|(id, e)| {
        let network = intent.network_by_vni(e.vni)?.1;
        let wanted = overlay::Endpoint {
            vni: e.vni,
            netns: e.netns.clone(),
            interface: e.interface.clone(),
            mac: endpoint_mac(network, e.offset),
            v4: Some(network.v4(e.offset)),
            v6: network.v6(e.offset),
            extra: BTreeSet::new(),
            backend: e.service.is_some(),
        };
        Some((id.clone(), wanted))
    });
    let overhead = overhead(here.vtep);
    overlay::Desired {
        node: Some(overlay::Node {
            vtep: here.vtep,
            own4: reach::own4(here),
            vxlan_port: here.vxlan_port,
            // An underlay below 576 octets (RFC 791) is none.
            mtu: u16::try_from(here.underlay_mtu.max(576 + overhead) - overhead).unwrap_or(u16::MAX),
            mac: node_mac(here.me),
            hairpin4: HAIRPIN4,
            hairpin6: HAIRPIN6,
            uplinks: here.uplinks.clone(),
            blocks: blocks.get(&here.me).cloned().unwrap_or_default(),
            flags: flags(here, some_translate_early(intent, facts)),
        }),
        networks,
        endpoints: local.collect(),
        remotes: remotes.collect(),
    }
}
