//! One change of the kernel, as data.

use std::{fmt, net::IpAddr, path::PathBuf};

use ipnet::IpNet;
use model::Mac;

use crate::{
    classify::Classifier,
    objects::{ClassifierPlace, Filter, Ns, Route, RouteKey, RouteKind, Rule, Stray, Tunnel},
};

/// Changes to a device; what is `None` or `false` stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Change {
    /// New MAC.
    pub mac: Option<Mac>,
    /// New MTU, octets.
    pub mtu: Option<u32>,
    /// New alias.
    pub alias: Option<String>,
    /// Keeps the kernel from making IPv6 addresses.
    pub no_generated_addresses: bool,
    /// Brings it up.
    pub up: bool,
}

/// One change. Each may be repeated: what is there is accepted, what is gone is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Makes the external VXLAN device in the host's namespace.
    CreateVxlan {
        /// Name.
        name: String,
        /// UDP port.
        port: u16,
        /// MAC.
        mac: Mac,
        /// Octets.
        mtu: u32,
        /// Mark.
        alias: String,
    },
    /// Makes a network's namespace, with its mark.
    CreateSandbox {
        /// Where its file is.
        path: PathBuf,
        /// Mark: the alias of its `lo`.
        alias: String,
    },
    /// Takes a network's namespace away.
    RemoveSandbox {
        /// Where its file is.
        path: PathBuf,
    },
    /// Makes a network's VXLAN device in the host's namespace and moves it into the sandbox.
    CreateTunnel {
        /// The sandbox.
        sandbox: PathBuf,
        /// Name.
        name: String,
        /// What it is.
        tunnel: Tunnel,
        /// MAC.
        mac: Mac,
        /// Octets.
        mtu: u32,
        /// Mark.
        alias: String,
    },
    /// Removes a VXLAN device of ours that no path leads to.
    DeleteStray(Stray),
    /// Makes a veth over two namespaces.
    CreateVeth {
        /// Where the near side is, and the step is carried out.
        ns: Ns,
        /// Near side.
        name: String,
        /// MAC of the near side.
        mac: Mac,
        /// Octets, both sides.
        mtu: u32,
        /// Mark of the near side.
        alias: String,
        /// Where the far side is.
        far: Ns,
        /// Far side.
        peer: String,
        /// MAC of the far side.
        peer_mac: Mac,
    },
    /// Changes a device.
    ChangeLink {
        /// Where.
        ns: Ns,
        /// Device.
        name: String,
        /// What.
        change: Change,
    },
    /// Removes a device, with all that hangs on it.
    DeleteLink {
        /// Where.
        ns: Ns,
        /// Device.
        name: String,
    },
    /// Writes a setting.
    SetSysctl {
        /// Where.
        ns: Ns,
        /// Path below `/proc/sys`.
        key: String,
        /// Value.
        value: String,
    },
    /// Gives a device an address without a prefix route.
    AddAddress {
        /// Where.
        ns: Ns,
        /// Device.
        link: String,
        /// Address and prefix.
        net: IpNet,
    },
    /// Takes an address away.
    DeleteAddress {
        /// Where.
        ns: Ns,
        /// Device.
        link: String,
        /// Address and prefix.
        net: IpNet,
    },
    /// Sets a permanent neighbour.
    SetNeighbour {
        /// Where.
        ns: Ns,
        /// Device.
        link: String,
        /// Address.
        address: IpAddr,
        /// MAC.
        mac: Mac,
    },
    /// Removes a neighbour.
    DeleteNeighbour {
        /// Where.
        ns: Ns,
        /// Device.
        link: String,
        /// Address.
        address: IpAddr,
    },
    /// Says where a VXLAN device sends the frames to a MAC, in the place of what it held.
    SetFdb {
        /// Where.
        ns: Ns,
        /// Device.
        link: String,
        /// MAC.
        mac: Mac,
        /// Outer destination.
        to: IpAddr,
    },
    /// Removes such an entry.
    DeleteFdb {
        /// Where.
        ns: Ns,
        /// Device.
        link: String,
        /// MAC.
        mac: Mac,
        /// Outer destination.
        to: IpAddr,
    },
    /// Gives a device its hooks for filters.
    AddClsact {
        /// Where.
        ns: Ns,
        /// Device.
        link: String,
    },
    /// Adds a filter.
    AddClassifier {
        /// Where.
        ns: Ns,
        /// Device.
        link: String,
        /// Filter.
        classifier: Classifier,
    },
    /// Removes a filter.
    DeleteClassifier {
        /// Where.
        ns: Ns,
        /// Which.
        place: ClassifierPlace,
    },
    /// Adds a route.
    AddRoute {
        /// Where.
        ns: Ns,
        /// Key.
        key: RouteKey,
        /// Rest.
        route: Route,
        /// In the place of our own older one; else a route with the same key (somebody else's) is an error.
        replace: bool,
    },
    /// Removes a route.
    DeleteRoute {
        /// Where.
        ns: Ns,
        /// Key.
        key: RouteKey,
        /// Rest.
        route: Route,
    },
    /// Adds a rule.
    AddRule {
        /// Where.
        ns: Ns,
        /// Rule.
        rule: Rule,
    },
    /// Removes a rule.
    DeleteRule {
        /// Where.
        ns: Ns,
        /// Rule.
        rule: Rule,
    },
    /// Makes the packet filter what it should be, in one transaction.
    SetFilter(Filter),
    /// Removes the packet filter.
    RemoveFilter,
}

impl Step {
    /// Where it happens.
    pub fn ns(&self) -> &Ns {
        match self {
            Step::CreateVxlan { .. }
            | Step::CreateSandbox { .. }
            | Step::RemoveSandbox { .. }
            | Step::CreateTunnel { .. }
            | Step::DeleteStray(_)
            | Step::SetFilter(_)
            | Step::RemoveFilter => &Ns::Host,
            Step::CreateVeth { ns, .. }
            | Step::SetFdb { ns, .. }
            | Step::DeleteFdb { ns, .. }
            | Step::AddClsact { ns, .. }
            | Step::AddClassifier { ns, .. }
            | Step::DeleteClassifier { ns, .. }
            | Step::ChangeLink { ns, .. }
            | Step::DeleteLink { ns, .. }
            | Step::SetSysctl { ns, .. }
            | Step::AddAddress { ns, .. }
            | Step::DeleteAddress { ns, .. }
            | Step::SetNeighbour { ns, .. }
            | Step::DeleteNeighbour { ns, .. }
            | Step::AddRoute { ns, .. }
            | Step::DeleteRoute { ns, .. }
            | Step::AddRule { ns, .. }
            | Step::DeleteRule { ns, .. } => ns,
        }
    }

    /// The device of [`Step::ns`] that it is about, where it needs one.
    pub fn link(&self) -> Option<&str> {
        match self {
            Step::CreateVxlan { name, .. }
            | Step::CreateVeth { name, .. }
            | Step::ChangeLink { name, .. }
            | Step::DeleteLink { name, .. } => Some(name),
            Step::AddAddress { link, .. }
            | Step::DeleteAddress { link, .. }
            | Step::SetNeighbour { link, .. }
            | Step::DeleteNeighbour { link, .. }
            | Step::SetFdb { link, .. }
            | Step::DeleteFdb { link, .. }
            | Step::AddClsact { link, .. }
            | Step::AddClassifier { link, .. } => Some(link),
            Step::DeleteClassifier { place, .. } => Some(&place.link),
            Step::AddRoute { route, .. } | Step::DeleteRoute { route, .. } => Some(&route.link),
            Step::SetSysctl { key, .. } => device_of(key),
            Step::CreateSandbox { .. }
            | Step::RemoveSandbox { .. }
            | Step::CreateTunnel { .. }
            | Step::DeleteStray(_)
            | Step::AddRule { .. }
            | Step::DeleteRule { .. }
            | Step::SetFilter(_)
            | Step::RemoveFilter => None,
        }
    }
}

/// The device that a setting belongs to: `net/ipv4/conf/<device>/forwarding`.
pub fn device_of(key: &str) -> Option<&str> {
    let mut parts = key.split('/').skip(2);
    let device = parts.next().filter(|p| *p == "conf").and_then(|_| parts.next());
    device.filter(|name| !matches!(*name, "all" | "default"))
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(mac) = self.mac {
            write!(f, " mac {mac}")?;
        }
        if let Some(mtu) = self.mtu {
            write!(f, " mtu {mtu}")?;
        }
        if let Some(alias) = &self.alias {
            write!(f, " alias {alias}")?;
        }
        if self.no_generated_addresses {
            f.write_str(" addrgenmode none")?;
        }
        if self.up { f.write_str(" up") } else { Ok(()) }
    }
}

/// `10.0.0.0/8 via 169.254.1.1 dev eth0 src 10.77.0.5 table 7`, `ip route`'s words.
struct RouteText<'a>(&'a RouteKey, &'a Route);

impl fmt::Display for RouteText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let RouteText(key, route) = self;
        match route.kind {
            RouteKind::Unicast => {}
            RouteKind::Local => f.write_str("local ")?,
            RouteKind::Unreachable => f.write_str("unreachable ")?,
        }
        write!(f, "{}", key.to)?;
        if let Some(via) = route.via {
            write!(f, " via {via}")?;
        }
        write!(f, " dev {}", route.link)?;
        if let Some(source) = route.source {
            write!(f, " src {source}")?;
        }
        write!(f, " table {}", key.table)
    }
}

/// `1100 from 10.77.0.5/32 table 7`, `ip rule`'s words.
struct RuleText<'a>(&'a Rule);

impl fmt::Display for RuleText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rule = self.0;
        write!(f, "{} from {}", rule.priority, rule.from)?;
        if rule.own {
            f.write_str(" iif lo")?;
        }
        if let Some(mark) = rule.mark {
            write!(f, " fwmark {:#x}/{:#x}", mark.value, mark.mask)?;
        }
        write!(f, " table {}", rule.table)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] ", self.ns())?;
        match self {
            Step::CreateVxlan {
                name, port, mac, mtu, ..
            } => write!(f, "create vxlan {name} external port {port} mac {mac} mtu {mtu}"),
            Step::CreateSandbox { path, .. } => write!(f, "create namespace {}", path.display()),
            Step::RemoveSandbox { path } => write!(f, "remove namespace {}", path.display()),
            Step::CreateTunnel {
                sandbox,
                name,
                tunnel: Tunnel { vni, port, local },
                mac,
                mtu,
                ..
            } => {
                write!(
                    f,
                    "create vxlan {name} id {vni} port {port} local {local} mac {mac} mtu {mtu} in {}",
                    sandbox.display()
                )
            }
            Step::DeleteStray(Stray { nsid, name }) => write!(f, "delete link {name} of namespace {nsid}"),
            Step::CreateVeth {
                name,
                far,
                peer,
                peer_mac,
                mtu,
                ..
            } => {
                write!(f, "create veth {name} mtu {mtu} peer {peer} mac {peer_mac} in {far}")
            }
            Step::ChangeLink { name, change, .. } => write!(f, "change link {name}{change}"),
            Step::DeleteLink { name, .. } => write!(f, "delete link {name}"),
            Step::SetSysctl { key, value, .. } => write!(f, "set {key} = {value}"),
            Step::AddAddress { link, net, .. } => write!(f, "add address {net} dev {link}"),
            Step::DeleteAddress { link, net, .. } => write!(f, "delete address {net} dev {link}"),
            Step::SetNeighbour { link, address, mac, .. } => write!(f, "set neighbour {address} dev {link} mac {mac}"),
            Step::DeleteNeighbour { link, address, .. } => write!(f, "delete neighbour {address} dev {link}"),
            Step::AddRoute {
                key, route, replace, ..
            } => write!(
                f,
                "{} route {}",
                if *replace { "replace" } else { "add" },
                RouteText(key, route)
            ),
            Step::DeleteRoute { key, route, .. } => write!(f, "delete route {}", RouteText(key, route)),
            Step::AddRule { rule, .. } => write!(f, "add rule {}", RuleText(rule)),
            Step::DeleteRule { rule, .. } => write!(f, "delete rule {}", RuleText(rule)),
            Step::SetFdb { link, mac, to, .. } => write!(f, "set fdb {mac} dev {link} dst {to}"),
            Step::DeleteFdb { link, mac, to, .. } => write!(f, "delete fdb {mac} dev {link} dst {to}"),
            Step::AddClsact { link, .. } => write!(f, "add clsact dev {link}"),
            Step::AddClassifier { link, classifier, .. } => write!(f, "add filter dev {link} {classifier}"),
            Step::DeleteClassifier { place, .. } => write!(
                f,
                "delete filter dev {} pref {} handle {:#x}",
                place.link, place.priority, place.handle
            ),
            Step::SetFilter(filter) => write!(
                f,
                "set table inet netd: {} pools, {} of them reach outside",
                filter.pools.len(),
                filter.outside.len()
            ),
            Step::RemoveFilter => f.write_str("remove table inet netd"),
        }
    }
}
