//! One change of the kernel, as data.

use std::{fmt, net::IpAddr, path::PathBuf};

use ipnet::IpNet;
use model::Mac;

use crate::objects::{Filter, Ns, Route, RouteKey, Rule};

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
    /// Makes an endpoint's veth: one end in the host's namespace, the other in the task's.
    CreateVeth {
        /// Host side.
        name: String,
        /// MAC of the host side.
        mac: Mac,
        /// Octets, both sides.
        mtu: u32,
        /// Mark.
        alias: String,
        /// Task's namespace.
        task: PathBuf,
        /// Task side.
        peer: String,
        /// MAC of the task side.
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
            Step::CreateVxlan { .. } | Step::CreateVeth { .. } | Step::SetFilter(_) | Step::RemoveFilter => &Ns::Host,
            Step::ChangeLink { ns, .. }
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

    /// The device that it is about, where it needs one.
    pub fn link(&self) -> Option<&str> {
        match self {
            Step::CreateVxlan { name, .. }
            | Step::CreateVeth { name, .. }
            | Step::ChangeLink { name, .. }
            | Step::DeleteLink { name, .. } => Some(name),
            Step::AddAddress { link, .. }
            | Step::DeleteAddress { link, .. }
            | Step::SetNeighbour { link, .. }
            | Step::DeleteNeighbour { link, .. } => Some(link),
            Step::AddRoute { route, .. } | Step::DeleteRoute { route, .. } => Some(&route.link),
            Step::SetSysctl { key, .. } => device_of(key),
            Step::AddRule { .. } | Step::DeleteRule { .. } | Step::SetFilter(_) | Step::RemoveFilter => None,
        }
    }
}

/// The device that a setting belongs to: `net/ipv4/conf/<device>/forwarding`.
pub fn device_of(key: &str) -> Option<&str> {
    key.split('/').nth(3).filter(|name| !matches!(*name, "all" | "default"))
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

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] ", self.ns())?;
        match self {
            Step::CreateVxlan {
                name, port, mac, mtu, ..
            } => write!(f, "create vxlan {name} external port {port} mac {mac} mtu {mtu}"),
            Step::CreateVeth {
                name,
                task,
                peer,
                peer_mac,
                mtu,
                ..
            } => {
                write!(
                    f,
                    "create veth {name} mtu {mtu} peer {peer} mac {peer_mac} in {}",
                    task.display()
                )
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
            Step::AddRule { rule, .. } => {
                write!(f, "add rule {} from {} table {}", rule.priority, rule.from, rule.table)
            }
            Step::DeleteRule { rule, .. } => write!(
                f,
                "delete rule {} from {} table {}",
                rule.priority, rule.from, rule.table
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
