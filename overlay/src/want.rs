//! From the view's wishes to kernel objects.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::PathBuf,
};

use ipnet::IpNet;
use model::EndpointId;

use crate::{
    desired::{Desired, Endpoint, Network, Node},
    names,
    objects::{Filter, Link, LinkKind, Ns, Route, RouteKey, Rule, Space, Sysctl, Wanted, ranges},
};

/// `RT_TABLE_MAIN`.
pub(crate) const MAIN: u32 = 254;
/// MTU of the VXLAN device, octets. What does not fit the underlay is answered by the programs; the device itself must
/// never be what drops a packet (its largest is 65,535 less headers).
const VXLAN_MTU: u32 = 65_000;
/// Below this a device has no IPv6 (RFC 8200 5).
pub(crate) const IPV6_MIN_MTU: u32 = 1280;

/// What the kernel can do, as far as it changes what is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Abilities {
    /// It has IPv6 (`/proc/sys/net/ipv6` exists).
    pub ipv6: bool,
    /// IPv6 can be forwarded by device (`force_forwarding`, Linux 6.17); else the whole host must become a router.
    pub force_forwarding: bool,
}

/// The kernel objects that make `desired` real.
pub fn want(desired: &Desired, abilities: Abilities) -> Wanted {
    let mut out = Wanted::default();
    let Some(node) = &desired.node else { return out };
    host(&mut out.host, node, abilities);
    if !desired.networks.is_empty() {
        let subnets = |internal_too: bool| {
            let of = desired.networks.values().filter(move |n| internal_too || !n.internal);
            ranges(of.flat_map(Network::subnets))
        };
        // This shape's tunnel is IPv4.
        let vtep = match node.vtep {
            IpAddr::V4(a) => Some(a),
            IpAddr::V6(_) => None,
        };
        out.filter = Some(Filter {
            pools: subnets(true),
            outside: subnets(false),
            tunnel: vtep.map(|a| (a, node.vxlan_port)),
        });
    }
    tasks(&mut out, desired, node, abilities, |out, id, ep, mtu| {
        host_side(&mut out.host, node, id, ep, mtu, abilities)
    });
    out
}

/// The tasks' side of every endpoint that can be had; `near` adds the other side.
pub(crate) fn tasks(
    out: &mut Wanted,
    desired: &Desired,
    node: &Node,
    abilities: Abilities,
    mut near: impl FnMut(&mut Wanted, &EndpointId, &Endpoint, u32),
) {
    let mut taken = Taken::default();
    let mut by_task: BTreeMap<&PathBuf, Vec<(&EndpointId, &Endpoint, &Network)>> = BTreeMap::new();
    for (id, ep) in &desired.endpoints {
        match taken.admit(id, ep, desired) {
            Ok(_) if out.sandboxes.contains_key(&ep.netns) => {
                let why = format!("{} is a network's namespace; try: another one", ep.netns.display());
                out.refused.insert(id.clone(), why);
            }
            Ok(network) => by_task.entry(&ep.netns).or_default().push((id, ep, network)),
            Err(why) => {
                out.refused.insert(id.clone(), why);
            }
        }
    }
    for (path, mut endpoints) in by_task {
        endpoints.sort_by_key(|(_, ep, _)| (ep.interface.len(), &ep.interface));
        let first = |v4: bool| {
            let mut able = endpoints.iter().map(|(_, ep, _)| *ep);
            able.find(|ep| ep.addresses().any(|a| a.is_ipv4() == v4))
                .map(|ep| ep.vni)
        };
        let ways = Ways {
            v4: first(true),
            v6: first(false),
            several: endpoints.len() > 1,
        };
        for (id, ep, network) in endpoints {
            let mtu = mtu_of(network, node);
            near(out, id, ep, mtu);
            let space = out.tasks.entry(path.clone()).or_default();
            task_side(space, node, id, ep, network, mtu, abilities.ipv6, ways);
        }
    }
}

/// Largest IP packet of a network's tasks on this node, octets.
pub(crate) fn mtu_of(network: &Network, node: &Node) -> u32 {
    u32::from(network.mtu.map_or(node.mtu, |m| m.min(node.mtu)))
}

/// How a namespace's packets leave it.
#[derive(Clone, Copy)]
struct Ways {
    /// Network whose device has the default route for IPv4: the first that has it.
    v4: Option<model::Vni>,
    /// The same for IPv6.
    v6: Option<model::Vni>,
    /// There are several networks.
    several: bool,
}

pub(crate) fn set(space: &mut Space, family: &str, device: &str, key: &str, value: Sysctl) {
    space.sysctls.insert(format!("net/{family}/conf/{device}/{key}"), value);
}

/// What the node needs before it has a single task: published ports answer already.
fn host(space: &mut Space, node: &Node, abilities: Abilities) {
    let link = Link {
        kind: LinkKind::Vxlan { port: node.vxlan_port },
        alias: names::VXLAN_ALIAS.to_owned(),
        mac: node.mac,
        mtu: VXLAN_MTU,
    };
    space.links.insert(names::VXLAN.to_owned(), link);
    // A published port on the node's own addresses (CONTRACTS, A published port on the node itself): on lo alone.
    set(space, "ipv4", "lo", "accept_local", Sysctl::is("1"));
    set(space, "ipv4", "lo", "route_localnet", Sysctl::is("1"));
    // The programs ask the routing tables where a reply goes, and bpf_ipv4_fib_lookup() and bpf_ipv6_fib_lookup() of
    // net/core/filter.c say "not forwarded" for a device that does not forward itself.
    set(space, "ipv4", names::VXLAN, "forwarding", Sysctl::is("1"));
    if abilities.ipv6 {
        set(space, "ipv6", names::VXLAN, "forwarding", Sysctl::is("1"));
        set(space, "ipv6", names::VXLAN, "accept_ra", Sysctl::is("0"));
    }
    forward(space, node, abilities);
}

/// Makes a router of the host as far as it must be one.
pub(crate) fn forward(space: &mut Space, node: &Node, abilities: Abilities) {
    for uplink in &node.uplinks {
        set(space, "ipv4", uplink, "forwarding", Sysctl::is("1"));
        if abilities.ipv6 && abilities.force_forwarding {
            set(space, "ipv6", uplink, "force_forwarding", Sysctl::is("1"));
        } else if abilities.ipv6 {
            // A router ignores advertisements, and the host would lose its default route; 2 means: all the same. A 0 is
            // the operator's will.
            set(
                space,
                "ipv6",
                uplink,
                "accept_ra",
                Sysctl {
                    value: "2",
                    only_from: Some("1"),
                },
            );
        }
    }
    if abilities.ipv6 && !abilities.force_forwarding {
        // ip6_forward() of net/ipv6/ip6_output.c looks at `all` alone.
        set(space, "ipv6", "all", "forwarding", Sysctl::is("1"));
    }
}

fn host_side(space: &mut Space, node: &Node, id: &EndpointId, ep: &Endpoint, mtu: u32, abilities: Abilities) {
    let name = names::veth(id);
    set(space, "ipv4", &name, "forwarding", Sysctl::is("1"));
    set(space, "ipv4", &name, "rp_filter", Sysctl::is("0"));
    if abilities.ipv6 && mtu >= IPV6_MIN_MTU {
        if abilities.force_forwarding {
            set(space, "ipv6", &name, "force_forwarding", Sysctl::is("1"));
        }
        set(space, "ipv6", &name, "forwarding", Sysctl::is("1"));
        set(space, "ipv6", &name, "accept_ra", Sysctl::is("0"));
    }
    lead_to(space, node, id, ep, mtu);
}

/// An endpoint's near device, and what leads to it.
pub(crate) fn lead_to(space: &mut Space, node: &Node, id: &EndpointId, ep: &Endpoint, mtu: u32) {
    let name = names::veth(id);
    for to in ep.addresses().chain(ep.extra.iter().copied()) {
        let key = RouteKey {
            table: MAIN,
            to: IpNet::from(to),
        };
        space.routes.insert(key, Route::unicast(&name, None, None));
        space.neighbours.insert((name.clone(), to), ep.mac);
    }
    let kind = LinkKind::Veth {
        far: Ns::Task(ep.netns.clone()),
        peer: ep.interface.clone(),
    };
    let link = Link {
        kind,
        alias: names::endpoint_alias(id),
        mac: node.mac,
        mtu,
    };
    space.links.insert(name, link);
}

#[allow(clippy::too_many_arguments, reason = "all of them are facts of one endpoint")]
fn task_side(
    space: &mut Space,
    node: &Node,
    id: &EndpointId,
    ep: &Endpoint,
    network: &Network,
    mtu: u32,
    ipv6: bool,
    ways: Ways,
) {
    let name = &ep.interface;
    let kind = LinkKind::Peer { near: names::veth(id) };
    space.links.insert(
        name.clone(),
        Link {
            kind,
            alias: names::endpoint_alias(id),
            mac: ep.mac,
            mtu,
        },
    );
    // A new address stands beside the old one for a moment; without this it would go together with it.
    set(space, "ipv4", name, "promote_secondaries", Sysctl::is("1"));
    if ipv6 && mtu >= IPV6_MIN_MTU {
        set(space, "ipv6", name, "accept_ra", Sysctl::is("0"));
        set(space, "ipv6", name, "accept_dad", Sysctl::is("0"));
    }
    if ep.v6.is_some() {
        space
            .addresses
            .extend(IpNet::new(ep.link_local().into(), 64).map(|net| (name.clone(), net)));
    }
    for address in ep.addresses() {
        let subnet = network.subnets().find(|s| s.addr().is_ipv4() == address.is_ipv4());
        let length = subnet.map_or(IpNet::from(address).prefix_len(), |s| s.prefix_len());
        space
            .addresses
            .extend(IpNet::new(address, length).map(|net| (name.clone(), net)));
        let gateway = names::gateway(address);
        space.neighbours.insert((name.clone(), gateway), node.mac);
        let mut route = |table, to| {
            let route = Route::unicast(name, Some(gateway), Some(address));
            space.routes.insert(RouteKey { table, to }, route);
        };
        let everything = default_of(address);
        let default = if address.is_ipv4() { ways.v4 } else { ways.v6 };
        if default == Some(ep.vni) {
            route(MAIN, everything);
        } else {
            // Own requests to this network leave by this device.
            subnet.into_iter().for_each(|s| route(MAIN, s.trunc()));
        }
        if ways.several {
            // Answers leave by the device of their source, also to an address of another network of the task.
            let table = names::table(ep.vni);
            route(table, everything);
            space.rules.insert(Rule {
                from: IpNet::from(address),
                mark: None,
                own: false,
                table,
                priority: names::RULE_PRIORITY,
            });
        }
    }
}

/// The prefix of everything of an address' family.
pub(crate) fn default_of(address: IpAddr) -> IpNet {
    match address {
        IpAddr::V4(_) => IpNet::V4(ipnet::Ipv4Net::default()),
        IpAddr::V6(_) => IpNet::V6(ipnet::Ipv6Net::default()),
    }
}

/// What earlier endpoints hold: of two that want the same thing the first by id has it.
#[derive(Default)]
struct Taken {
    names: BTreeSet<String>,
    interfaces: BTreeSet<(PathBuf, String)>,
    tables: BTreeSet<(PathBuf, model::Vni)>,
    addresses: BTreeSet<IpAddr>,
}

impl Taken {
    fn admit<'a>(&mut self, id: &EndpointId, ep: &Endpoint, desired: &'a Desired) -> Result<&'a Network, String> {
        let network = desired
            .networks
            .get(&ep.vni)
            .ok_or_else(|| format!("network {} is not known on this node (yet)", ep.vni))?;
        if !good_interface(&ep.interface) {
            return Err(format!(
                "{:?} cannot be the name of an interface; try: eth0 (1-15 letters or digits)",
                ep.interface
            ));
        }
        let name = names::veth(id);
        if self.names.contains(&name) {
            return Err(format!(
                "another endpoint's device is already called {name}; try: another endpoint id"
            ));
        }
        let interface = (ep.netns.clone(), ep.interface.clone());
        if self.interfaces.contains(&interface) {
            return Err(format!(
                "another endpoint has {} in {}; try: another interface",
                ep.interface,
                ep.netns.display()
            ));
        }
        let table = (ep.netns.clone(), ep.vni);
        if self.tables.contains(&table) {
            return Err(format!(
                "{} is attached to network {} already",
                ep.netns.display(),
                ep.vni
            ));
        }
        let addresses: Vec<IpAddr> = ep.addresses().chain(ep.extra.iter().copied()).collect();
        if let Some(a) = addresses.iter().find(|a| self.addresses.contains(a)) {
            return Err(format!("another endpoint of this node has the address {a}"));
        }
        self.names.insert(name);
        self.interfaces.insert(interface);
        self.tables.insert(table);
        self.addresses.extend(addresses);
        Ok(network)
    }
}

/// `dev_valid_name()` of net/core/dev.c, without the two names that `conf/` has for itself, and without `lo`.
fn good_interface(name: &str) -> bool {
    (1..16).contains(&name.len())
        && !matches!(name, "." | ".." | "all" | "default" | "lo")
        && name
            .bytes()
            .all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b'%'))
}
