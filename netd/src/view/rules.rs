//! What the packet filter of the IPVS data path is about.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
};

use mesh::ipvs::{Lowered, Sandbox, rules};
use model::{Proto, Vni};
use overlay::names;

use super::Here;

/// The rules' inputs of the host's namespace.
pub fn host_rules(desired: &overlay::Desired, lowered: &Lowered, here: &Here) -> rules::Host {
    let networks = desired.networks.iter().map(|(vni, n)| rules::HostNetwork {
        device: names::host_end(*vni),
        pools: n.subnets().map(|s| s.trunc()).collect(),
        outside: !n.internal,
    });
    let published = lowered.doors.iter().map(|(key, door)| rules::Published {
        transport: key.proto.into(),
        port: key.port,
        on: key.on.clone(),
        v4: door.v4,
        v6: door.v6,
        target: door.port,
        allow: rules::Allow::All,
        masquerade: false,
    });
    rules::Host {
        tunnel: desired.node.as_ref().map(|n| (IpAddr::V4(n.vtep), n.vxlan_port)),
        prefix: names::HOST_PREFIX.to_owned(),
        networks: networks.collect(),
        v4: Some(here.vtep),
        v6: own6(here),
        published: published.collect(),
    }
}

/// The IPv6 address that stands for this host: one of a device that leads outside.
fn own6(here: &Here) -> Option<Ipv6Addr> {
    let outside = here.uplinks.iter().filter_map(|d| here.devices.get(d));
    outside.flatten().find_map(|a| match a {
        IpAddr::V6(a) if !a.is_loopback() => Some(*a),
        _ => None,
    })
}

/// The rules' inputs of each network's namespace.
pub fn sandbox_rules(desired: &overlay::Desired, lowered: &Lowered) -> BTreeMap<Vni, rules::Sandbox> {
    let mut tasks: BTreeMap<Vni, BTreeSet<IpAddr>> = BTreeMap::new();
    for e in desired.endpoints.values() {
        tasks.entry(e.vni).or_default().extend(e.addresses());
    }
    let of = |(vni, n): (&Vni, &overlay::Network)| {
        let sandbox = rules::Sandbox {
            tunnel: names::tunnel(*vni),
            prefix: names::VETH_PREFIX.to_owned(),
            v4: Some(n.subnet),
            v6: n.subnet6,
            marks: lowered.networks.get(vni).map(marks).unwrap_or_default(),
            tasks: tasks.remove(vni).unwrap_or_default(),
        };
        (*vni, sandbox)
    };
    desired.networks.iter().map(of).collect()
}

/// Which packets bear which mark.
fn marks(sandbox: &Sandbox) -> BTreeMap<rules::Destination, u32> {
    let to = |address: IpAddr, proto: Proto, port: Option<u16>| rules::Destination {
        address,
        transport: proto.into(),
        port,
    };
    let mut out = BTreeMap::new();
    for (vip, marks) in &sandbox.vips {
        out.extend(
            marks
                .ports
                .iter()
                .map(|((proto, port), m)| (to(*vip, *proto, Some(*port)), *m)),
        );
        for proto in [Proto::Tcp, Proto::Udp] {
            out.extend(marks.other.map(|m| (to(*vip, proto, None), m)));
        }
    }
    let near = sandbox.near.iter();
    out.extend(near.map(|((address, proto, port), m)| (to(*address, *proto, Some(*port)), *m)));
    out
}
