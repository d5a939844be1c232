//! The overlay that the kernel routes by itself, for balancing by IPVS: a sandbox per network.
//!
//! ```text
//!  host's namespace          sandbox net-<vni>                     task
//!  nvh<vni> ---------------- nvup        nv<hash> ---------------- eth0
//!  pool via fe80::b          default via fe80::a; a route a task
//!                            nx<vni> (VXLAN) a route a block, via the node's link-local address
//! ```
//!
//! Gateways are IPv6 link-local addresses with permanent neighbours, in both families: so a remote node costs one
//! neighbour and one forwarding entry, whatever it holds. Services' marks are set by the packet filter (`mesh`, not
//! here); what is here is where marked packets go ([`rules`]), which packets may come in at the VXLAN device, and how
//! replies are led back to the node that their flow came in by ([`filters`]).
//!
//! A sandbox needs IPv6 in the kernel, also for a network without it; `kernel::fabric::routed_lacks` tells.

mod filters;
pub mod marks;
mod rules;

use std::{
    net::{IpAddr, Ipv6Addr},
    path::Path,
};

use ipnet::IpNet;
use model::{EndpointId, Mac, Vni};

use crate::{
    desired::{Desired, Endpoint, Network, Node},
    names,
    objects::{Link, LinkKind, Ns, Route, RouteKey, RouteKind, Sandbox, Space, Sysctl, Tunnel, Wanted},
    want::{self, Abilities, IPV6_MIN_MTU, MAIN, set},
};

/// `RT_TABLE_LOCAL`.
const LOCAL: u32 = 255;
/// The host's end of its veth to a sandbox, `fe80::a`.
pub const HOST_END: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xa);
/// The sandbox's end, `fe80::b`.
pub const SANDBOX_END: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xb);

/// Where sandboxes lie, and what the kernel can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting<'a> {
    /// Folder of the namespaces' files.
    pub folder: &'a Path,
    /// As for the other shape.
    pub abilities: Abilities,
    /// IPVS is there (`net/ipv4/vs/` exists in new namespaces).
    pub ipvs: bool,
    /// Filters can be had (`flower`, `fw` and their actions). Without them who sends is not checked, and replies are not
    /// led back: only for tests on kernels that have none; a node must not run so.
    pub classifiers: bool,
}

/// The kernel objects that make `desired` real in this shape. A sandbox is wanted for every network that is known: a
/// published port leads through it also where the network has no task.
pub fn want(desired: &Desired, setting: &Setting<'_>) -> Wanted {
    let mut out = Wanted {
        sandbox_folder: Some(setting.folder.to_owned()),
        filter_elsewhere: true,
        ..Wanted::default()
    };
    let Some(node) = &desired.node else { return out };
    want::forward(&mut out.host, node, setting.abilities);
    if !desired.networks.is_empty() {
        // A hairpin leaves by the device that it came by; the kernel asks `all` or the device's own setting.
        set(&mut out.host, "ipv4", "all", "send_redirects", Sysctl::is("0"));
    }
    for (vni, network) in &desired.networks {
        let path = names::sandbox(setting.folder, *vni);
        let mtu = want::mtu_of(network, node).max(IPV6_MIN_MTU);
        host_end(&mut out.host, node, *vni, network, &path, mtu, setting.abilities);
        let sandbox = Sandbox {
            alias: names::sandbox_alias(*vni),
            space: space(desired, node, *vni, network, mtu, setting),
        };
        out.sandboxes.insert(path, sandbox);
    }
    want::tasks(&mut out, desired, node, setting.abilities, |out, id, ep, mtu| {
        let path = names::sandbox(setting.folder, ep.vni);
        if let (Some(sandbox), Some(network)) = (out.sandboxes.get_mut(&path), desired.networks.get(&ep.vni)) {
            near_side(&mut sandbox.space, node, id, ep, mtu);
            // Where no task is, nothing is marked but for a VIP, and that is an address of the namespace.
            rules::marked(&mut sandbox.space, network);
            if setting.classifiers {
                let filters = filters::of_endpoint(node, ep, network, end_macs(ep.vni).0);
                let at = filters.into_iter().map(|f| (names::veth(id), f));
                sandbox.space.classifiers.extend(at);
            }
        }
    });
    out
}

/// MACs of both ends of the veth between the host and a sandbox: locally administered, of ranges of their own.
fn end_macs(vni: Vni) -> (Mac, Mac) {
    let [_, a, b, c] = vni.get().to_be_bytes();
    (Mac([0x0e, 0x6e, 0, a, b, c]), Mac([0x0e, 0x6e, 1, a, b, c]))
}

fn link_local(address: Ipv6Addr) -> IpNet {
    IpNet::new(address.into(), 64).unwrap_or(IpNet::from(IpAddr::V6(address)))
}

/// `lo` and link-local addresses are enough for a sandbox; the host keeps its own address as the source of what it sends.
fn host_end(space: &mut Space, node: &Node, vni: Vni, network: &Network, path: &Path, mtu: u32, abilities: Abilities) {
    let name = names::host_end(vni);
    let (near, far) = end_macs(vni);
    let link = Link {
        kind: LinkKind::Veth {
            far: Ns::Sandbox(path.to_owned()),
            peer: names::SANDBOX_END.to_owned(),
        },
        alias: names::sandbox_alias(vni),
        mac: near,
        mtu,
    };
    space.links.insert(name.clone(), link);
    set(space, "ipv4", &name, "forwarding", Sysctl::is("1"));
    // 127.0.0.1:port is a published port, too: its packets cross this veth before they get a source.
    set(space, "ipv4", &name, "route_localnet", Sysctl::is("1"));
    set(space, "ipv4", &name, "send_redirects", Sysctl::is("0"));
    // The way to a sandbox is an IPv6 one, also where the operator has switched IPv6 off for new devices.
    set(space, "ipv6", &name, "disable_ipv6", Sysctl::is("0"));
    set(space, "ipv6", &name, "forwarding", Sysctl::is("1"));
    set(space, "ipv6", &name, "accept_ra", Sysctl::is("0"));
    if abilities.force_forwarding {
        set(space, "ipv6", &name, "force_forwarding", Sysctl::is("1"));
    }
    space.addresses.insert((name.clone(), link_local(HOST_END)));
    space.neighbours.insert((name.clone(), SANDBOX_END.into()), far);
    for to in network.subnets() {
        let source = node.own4.filter(|_| to.addr().is_ipv4()).map(IpAddr::V4);
        let route = Route::unicast(&name, Some(SANDBOX_END.into()), source);
        let key = RouteKey {
            table: MAIN,
            to: to.trunc(),
        };
        space.routes.insert(key, route);
    }
}

/// Everything of a sandbox but its tasks.
fn space(desired: &Desired, node: &Node, vni: Vni, network: &Network, mtu: u32, setting: &Setting<'_>) -> Space {
    let mut out = Space::default();
    settings(&mut out, vni, setting);
    let (near, far) = end_macs(vni);
    let (up, tunnel) = (names::SANDBOX_END.to_owned(), names::tunnel(vni));
    let end = Link {
        kind: LinkKind::Peer {
            near: names::host_end(vni),
        },
        alias: names::sandbox_alias(vni),
        mac: far,
        mtu,
    };
    out.links.insert(up.clone(), end);
    let device = Link {
        kind: LinkKind::Tunnel(Tunnel {
            vni,
            port: node.vxlan_port,
            local: node.vtep,
        }),
        alias: names::tunnel_alias(vni),
        mac: node.mac,
        mtu,
    };
    out.links.insert(tunnel.clone(), device);
    // What the tasks ask for with ARP, and what errors to them come from.
    let of_lo = [IpAddr::V4(names::GATEWAY4), IpAddr::V6(node.hairpin6)];
    let of_lo = of_lo.into_iter().filter(|a| a.is_ipv4() || network.subnet6.is_some());
    out.addresses.extend(of_lo.map(|a| ("lo".to_owned(), IpNet::from(a))));
    out.addresses.insert((up.clone(), link_local(SANDBOX_END)));
    out.neighbours.insert((up.clone(), HOST_END.into()), near);

    let mut route = |table, to: IpNet, route| {
        out.routes.insert(RouteKey { table, to: to.trunc() }, route);
    };
    for to in network.subnets() {
        route(
            MAIN,
            want::default_of(to.addr()),
            Route::unicast(&up, Some(HOST_END.into()), None),
        );
        // What neither a block nor a task has is nowhere; without this it would go round between here and the host.
        route(MAIN, to, Route::ends(RouteKind::Unreachable));
    }
    for vip in &network.vips {
        route(LOCAL, IpNet::from(*vip), Route::ends(RouteKind::Local));
    }
    for remote in desired.remotes.values() {
        let singles = remote.singles.iter().map(|(v, a)| (*v, IpNet::from(*a)));
        let of_it = remote.blocks.iter().copied().chain(singles).filter(|(v, _)| *v == vni);
        for (_, to) in of_it {
            let via = IpAddr::V6(names::link_local(remote.mac));
            route(MAIN, to, Route::unicast(&tunnel, Some(via), None));
        }
    }
    for remote in desired.remotes.values() {
        let at = (tunnel.clone(), IpAddr::V6(names::link_local(remote.mac)));
        out.neighbours.insert(at, remote.mac);
        out.fdb.insert((tunnel.clone(), remote.mac), remote.vtep);
    }
    if setting.classifiers {
        let filters = filters::of_tunnel(desired, vni, network);
        out.classifiers.extend(filters.into_iter().map(|f| (tunnel.clone(), f)));
    }
    out
}

/// A new namespace begins with the host's values, so each is written.
fn settings(out: &mut Space, vni: Vni, setting: &Setting<'_>) {
    let mut write = |key: &str, value| {
        out.sysctls.insert(format!("net/{key}"), Sysctl::is(value));
    };
    write("ipv4/ip_forward", "1");
    write("ipv6/conf/all/disable_ipv6", "0");
    write("ipv6/conf/all/forwarding", "1");
    let (up, tunnel) = (names::SANDBOX_END.to_owned(), names::tunnel(vni));
    // `default` is for devices to come, and those two may be older than it.
    for device in ["all", "default", up.as_str(), tunnel.as_str()] {
        // Clients' packets come by the one and their replies leave by the other.
        write(&format!("ipv4/conf/{device}/rp_filter"), "0");
        write(&format!("ipv4/conf/{device}/send_redirects"), "0");
    }
    // Every sandbox tells its errors from the same address, so another one's come from an address of this one. And where
    // it is not accepted, each packet's source is looked up. (The host lets nobody else send from the network's addresses.)
    for device in [&up, &tunnel] {
        write(&format!("ipv4/conf/{device}/accept_local"), "1");
    }
    // No socket here waits for what passes; both families heed it.
    write("ipv4/ip_early_demux", "0");
    if setting.ipvs {
        // Entries of the packet filter for what IPVS knows already; a backend that is gone ends its flows; a segment in
        // the middle of a flow that IPVS does not know begins none; what goes back has been routed, for its destination.
        write("ipv4/vs/conntrack", "0");
        write("ipv4/vs/expire_nodest_conn", "1");
        write("ipv4/vs/sloppy_tcp", "0");
        write("ipv4/vs/snat_reroute", "0");
    }
}

/// An endpoint's device in the sandbox. Its strict check of the source is the security of the port for IPv4.
fn near_side(space: &mut Space, node: &Node, id: &EndpointId, ep: &Endpoint, mtu: u32) {
    let name = names::veth(id);
    set(space, "ipv4", &name, "rp_filter", Sysctl::is("1"));
    if mtu >= IPV6_MIN_MTU {
        space.addresses.insert((name.clone(), link_local(names::GATEWAY6)));
    }
    want::lead_to(space, node, id, ep, mtu);
}

#[cfg(test)]
mod tests;
