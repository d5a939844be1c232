//! Kernel objects as data: wanted ones and seen ones, in the same words, so that a difference is a set operation.
//!
//! Devices are named, not numbered: an index is known only once a device exists.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};

use ipnet::IpNet;
use model::{EndpointId, Mac};

/// A network namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ns {
    /// The one that netd runs in.
    Host,
    /// A task's, by path.
    Task(PathBuf),
}

impl fmt::Display for Ns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ns::Host => f.write_str("host"),
            Ns::Task(path) => path.display().fmt(f),
        }
    }
}

/// A device as it should be. Devices that netd adds to but does not make (`lo`, uplinks) are not listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// What it is.
    pub kind: LinkKind,
    /// The owner's mark.
    pub alias: String,
    /// MAC.
    pub mac: Mac,
    /// Octets.
    pub mtu: u32,
}

/// What a device is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkKind {
    /// External VXLAN.
    Vxlan {
        /// UDP port.
        port: u16,
    },
    /// Host side of an endpoint's veth.
    Veth {
        /// Where its peer lies.
        task: PathBuf,
        /// The peer's name.
        peer: String,
    },
    /// Task side of an endpoint's veth; made with its host side.
    Peer {
        /// Name of the host side.
        host: String,
    },
}

/// Key of a route: the kernel holds one of each.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteKey {
    /// Table; 254: main.
    pub table: u32,
    /// Destination.
    pub to: IpNet,
}

/// The rest of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Device.
    pub link: String,
    /// Gateway, always on the link.
    pub via: Option<IpAddr>,
    /// Preferred source.
    pub source: Option<IpAddr>,
}

/// A policy rule: packets from one address look into a table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Source, a single address.
    pub from: IpNet,
    /// Table.
    pub table: u32,
    /// Place among the rules.
    pub priority: u32,
}

/// A setting below `/proc/sys`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sysctl {
    /// Value.
    pub value: &'static str,
    /// Only where it is this now; `None`: always.
    pub only_from: Option<&'static str>,
}

impl Sysctl {
    /// The value, whatever it is now.
    pub const fn is(value: &'static str) -> Self {
        Sysctl { value, only_from: None }
    }
}

/// What a namespace should hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Space {
    /// Devices by name.
    pub links: BTreeMap<String, Link>,
    /// Addresses (device, address and prefix), all without a prefix route.
    pub addresses: BTreeSet<(String, IpNet)>,
    /// Permanent neighbours (device, address) -> MAC.
    pub neighbours: BTreeMap<(String, IpAddr), Mac>,
    /// Routes.
    pub routes: BTreeMap<RouteKey, Route>,
    /// Rules.
    pub rules: BTreeSet<Rule>,
    /// Settings by key, e.g. `net/ipv4/conf/lo/accept_local`.
    pub sysctls: BTreeMap<String, Sysctl>,
}

/// A range of addresses of one family, both ends included.
pub type Range = (IpAddr, IpAddr);

/// What the packet filter (`table inet netd`) knows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// Addresses of all networks.
    pub pools: BTreeSet<Range>,
    /// Those of networks that may reach the outside.
    pub outside: BTreeSet<Range>,
    /// Data-path address and UDP port of this node's VXLAN: its packets are not tracked. Tracking them tells nobody
    /// anything and costs about a twentieth of what a connection through the mesh costs.
    pub tunnel: Option<(Ipv4Addr, u16)>,
}

/// Subnets as disjoint ranges that do not touch, as an interval set needs them.
pub fn ranges(nets: impl IntoIterator<Item = IpNet>) -> BTreeSet<Range> {
    let sorted: BTreeSet<Range> = nets.into_iter().map(|n| (n.network(), n.broadcast())).collect();
    let mut out: Vec<Range> = Vec::new();
    for (start, end) in sorted {
        match out.last_mut() {
            Some((_, last)) if start.is_ipv4() == last.is_ipv4() && (start <= *last || follows(*last, start)) => {
                *last = end.max(*last)
            }
            _ => out.push((start, end)),
        }
    }
    out.into_iter().collect()
}

fn follows(a: IpAddr, b: IpAddr) -> bool {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => u32::from(a).checked_add(1) == Some(u32::from(b)),
        (IpAddr::V6(a), IpAddr::V6(b)) => u128::from(a).checked_add(1) == Some(u128::from(b)),
        _ => false,
    }
}

/// All that should exist.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Wanted {
    /// The host's namespace.
    pub host: Space,
    /// Tasks' namespaces.
    pub tasks: BTreeMap<PathBuf, Space>,
    /// The packet filter.
    pub filter: Option<Filter>,
    /// Endpoints that cannot be had, and why (two with one name, ...).
    pub refused: BTreeMap<EndpointId, String>,
}

/// A device as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenLink {
    /// Index.
    pub index: u32,
    /// Alias.
    pub alias: Option<String>,
    /// `veth`, `vxlan`, ...
    pub kind: Option<String>,
    /// UDP port, of a VXLAN device in external mode that does not learn.
    pub vxlan_port: Option<u16>,
    /// Index of a veth's peer in the peer's namespace.
    pub peer: Option<u32>,
    /// MAC.
    pub mac: Option<Mac>,
    /// Octets.
    pub mtu: u32,
    /// Up.
    pub up: bool,
    /// The kernel makes IPv6 addresses for it.
    pub generates_addresses: bool,
}

/// What a namespace holds. Of addresses, neighbours, routes and rules only those that bear netd's mark.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SeenSpace {
    /// All devices by name.
    pub links: BTreeMap<String, SeenLink>,
    /// Addresses without a prefix route, on devices with our alias.
    pub addresses: BTreeSet<(String, IpNet)>,
    /// Neighbours of protocol 110.
    pub neighbours: BTreeMap<(String, IpAddr), Mac>,
    /// Routes of protocol 110.
    pub routes: BTreeMap<RouteKey, Route>,
    /// Rules of protocol 110.
    pub rules: BTreeSet<Rule>,
    /// Settings that are wanted, as they are; absent: the kernel does not have the key (yet).
    pub sysctls: BTreeMap<String, String>,
}

/// What exists.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// The host's namespace.
    pub host: SeenSpace,
    /// Tasks' namespaces by path; `None`: it is gone; absent: it could not be read, and what leads to it stays.
    pub tasks: BTreeMap<PathBuf, Option<SeenSpace>>,
    /// The packet filter; `None`: not there, or not as netd makes it.
    pub filter: Option<Filter>,
    /// Something is there that bears the filter's name.
    pub filter_present: bool,
}

impl Observed {
    /// Index of a device of the host's namespace.
    pub fn host_index(&self, name: &str) -> Option<u32> {
        self.host.links.get(name).map(|l| l.index)
    }
}
