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
use model::{EndpointId, Mac, Vni};

use crate::classify::{Classifier, Hook};

/// A network namespace.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ns {
    /// The one that netd runs in.
    Host,
    /// A network's, by path: the routed shape keeps a network's VXLAN device and its tasks' devices in it.
    Sandbox(PathBuf),
    /// A task's, by path.
    Task(PathBuf),
}

impl fmt::Display for Ns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ns::Host => f.write_str("host"),
            Ns::Sandbox(path) | Ns::Task(path) => path.display().fmt(f),
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
    /// VXLAN of one network, in its sandbox. It is made in the host's namespace, so that its outer packets are the host's.
    Tunnel(Tunnel),
    /// Near side of a veth: of an endpoint's, or of the one between the host and a sandbox.
    Veth {
        /// Where its peer lies.
        far: Ns,
        /// The peer's name.
        peer: String,
    },
    /// Far side of a veth; made with its near side.
    Peer {
        /// Name of the near side.
        near: String,
    },
}

/// What tells the VXLAN device of a network from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tunnel {
    /// Network.
    pub vni: Vni,
    /// UDP port.
    pub port: u16,
    /// Source of the outer packets.
    pub local: IpAddr,
}

/// Key of a route: the kernel holds one of each.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteKey {
    /// Table; 254: main.
    pub table: u32,
    /// Destination.
    pub to: IpNet,
}

/// What a route does with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RouteKind {
    /// Sends it on.
    #[default]
    Unicast,
    /// Takes it in, as if its destination were an address of the namespace. The device is `lo`.
    Local,
    /// Answers that there is no way. The device is `lo`.
    Unreachable,
}

/// The rest of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// What it does.
    pub kind: RouteKind,
    /// Device.
    pub link: String,
    /// Gateway, always on the link; an IPv6 one serves both families.
    pub via: Option<IpAddr>,
    /// Preferred source.
    pub source: Option<IpAddr>,
}

impl Route {
    /// A route that sends packets out of a device.
    pub fn unicast(link: &str, via: Option<IpAddr>, source: Option<IpAddr>) -> Self {
        Route {
            kind: RouteKind::Unicast,
            link: link.to_owned(),
            via,
            source,
        }
    }

    /// A route that ends in the namespace itself.
    pub fn ends(kind: RouteKind) -> Self {
        Route {
            kind,
            link: "lo".to_owned(),
            via: None,
            source: None,
        }
    }
}

/// A mark on packets, under a mask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MaskedMark {
    /// Value.
    pub value: u32,
    /// Bits that are compared.
    pub mask: u32,
}

/// A policy rule: packets that match look into a table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// Place among the rules.
    pub priority: u32,
    /// Source; a prefix of no bits: any of the family.
    pub from: IpNet,
    /// Mark.
    pub mark: Option<MaskedMark>,
    /// Only packets of the namespace itself (`iif lo`).
    pub own: bool,
    /// Table.
    pub table: u32,
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
    /// Entries of VXLAN devices: where frames to a MAC are sent, (device, MAC) -> outer destination.
    pub fdb: BTreeMap<(String, Mac), IpAddr>,
    /// Filters at devices.
    pub classifiers: BTreeSet<(String, Classifier)>,
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
    /// Networks' namespaces.
    pub sandboxes: BTreeMap<PathBuf, Sandbox>,
    /// Folder of the sandboxes: one of ours in it that is not wanted is removed. `None`: nobody looks.
    pub sandbox_folder: Option<PathBuf>,
    /// Tasks' namespaces.
    pub tasks: BTreeMap<PathBuf, Space>,
    /// The packet filter.
    pub filter: Option<Filter>,
    /// `table inet netd` belongs to another plan: it is neither read nor changed.
    pub filter_elsewhere: bool,
    /// Endpoints that cannot be had, and why (two with one name, ...).
    pub refused: BTreeMap<EndpointId, String>,
}

/// A network's namespace as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// The owner's mark: the alias of its `lo`.
    pub alias: String,
    /// What it should hold.
    pub space: Space,
}

/// Where the other end of a veth lies.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum PeerIn {
    /// Nobody looked: an index alone tells (it does among the host's devices).
    #[default]
    Unasked,
    /// There.
    Known(Ns),
    /// In none of those where it should be.
    Elsewhere,
}

/// A device as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SeenLink {
    /// Index.
    pub index: u32,
    /// Alias.
    pub alias: Option<String>,
    /// `veth`, `vxlan`, ...
    pub kind: Option<String>,
    /// UDP port, of a VXLAN device in external mode that does not learn.
    pub vxlan_port: Option<u16>,
    /// What a VXLAN device of one network is, if it does not learn and its outer packets are another namespace's.
    pub tunnel: Option<Tunnel>,
    /// Index of a veth's peer in the peer's namespace.
    pub peer: Option<u32>,
    /// That namespace.
    pub peer_in: PeerIn,
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
    /// Entries of VXLAN devices with our alias: device, MAC, outer destination.
    pub fdb: BTreeSet<(String, Mac, IpAddr)>,
    /// Devices with our alias that have a clsact qdisc.
    pub clsact: BTreeSet<String>,
    /// Filters of netd's priorities at devices with our alias; `None`: one that netd does not make.
    pub classifiers: BTreeMap<ClassifierPlace, Option<Classifier>>,
    /// Settings that are wanted, as they are; absent: the kernel does not have the key (yet).
    pub sysctls: BTreeMap<String, String>,
}

/// Where a filter stands in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClassifierPlace {
    /// Device.
    pub link: String,
    /// Its direction.
    pub hook: Hook,
    /// Priority among the device's filters.
    pub priority: u16,
    /// The kernel's number for it within its priority.
    pub handle: u32,
}

/// A network's namespace, or what stands in its place.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(
    clippy::large_enum_variant,
    reason = "there is one a network, and nearly all are the large one"
)]
pub enum SeenSandbox {
    /// Nothing.
    Absent,
    /// Something that does not bear netd's mark.
    Foreign,
    /// Ours.
    Ours(SeenSpace),
}

/// A VXLAN device of ours in a namespace that no path leads to any more: it keeps its network's place in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stray {
    /// Number of the namespace in the host's.
    pub nsid: i32,
    /// Device.
    pub name: String,
}

/// What exists.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// The host's namespace.
    pub host: SeenSpace,
    /// Networks' namespaces by path: the wanted ones, and those of ours in the folder. Absent here: it could not be read,
    /// or nobody looked; what leads to it stays.
    pub sandboxes: BTreeMap<PathBuf, SeenSandbox>,
    /// VXLAN devices to be found again.
    pub strays: BTreeSet<Stray>,
    /// Tasks' namespaces by path; `None`: it is gone; absent: it could not be read, and what leads to it stays.
    pub tasks: BTreeMap<PathBuf, Option<SeenSpace>>,
    /// The packet filter; `None`: not there, or not as netd makes it.
    pub filter: Option<Filter>,
    /// Something is there that bears the filter's name.
    pub filter_present: bool,
}

impl Observed {
    /// What a namespace holds, if it could be read.
    pub fn space(&self, ns: &Ns) -> Option<&SeenSpace> {
        match ns {
            Ns::Host => Some(&self.host),
            Ns::Sandbox(path) => match self.sandboxes.get(path)? {
                SeenSandbox::Ours(space) => Some(space),
                SeenSandbox::Absent | SeenSandbox::Foreign => None,
            },
            Ns::Task(path) => self.tasks.get(path)?.as_ref(),
        }
    }

    /// Index of a device of the host's namespace.
    pub fn host_index(&self, name: &str) -> Option<u32> {
        self.host.links.get(name).map(|l| l.index)
    }
}
