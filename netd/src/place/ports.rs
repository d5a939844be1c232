//! Who holds the ports that a node needs: said before anything is half-made, with the flags that choose others.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use kernel::{
    netns::Netns,
    rtnl::{Link, Rtnl},
    sockdiag::{self, Holder},
};
use model::{ApiError, Code, On, PortSpec, Proto};
use overlay::names;

use crate::{daemon::internal, reconcile::host, rpc::Answer};

/// Ports that are about to be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortUse {
    /// Managers' RPC (TCP), when this node is to be a manager.
    pub rpc: Option<SocketAddr>,
    /// Gossip (TCP and UDP) on all addresses.
    pub gossip: u16,
    /// VXLAN (UDP), when the cluster's port is known.
    pub vxlan: Option<u16>,
    /// Folder of networks' namespaces: the VXLAN devices of IPVS are there.
    pub sandboxes: PathBuf,
}

/// Refuses if somebody else holds one of them. Blocking.
pub fn refuse_taken(ports: &PortUse) -> Result<(), ApiError> {
    let any = |port| SocketAddr::from(([0, 0, 0, 0], port));
    let mut taken = Vec::new();
    if let Some(at) = ports.rpc {
        taken.extend(held(Proto::Tcp, at, "the managers' port", |p| {
            format!("--listen-addr 0.0.0.0:{p}")
        })?);
    }
    for proto in [Proto::Tcp, Proto::Udp] {
        let flag = |p| format!("--gossip-port {p}");
        taken.extend(held(proto, any(ports.gossip), "gossip's port", flag)?);
    }
    if let Some(port) = ports.vxlan
        && let Some(who) = vxlan_holder(port, &ports.sandboxes)?
    {
        let what = format!("the data path's port {port}/udp is held by {who}");
        let (flag, later) = ("--data-path-port", "netctl cluster update data-path-port");
        let free = other(port);
        taken.push((what, format!("{flag} {free} (at init), or {later}={free} on a manager")));
    }
    if taken.is_empty() {
        return Ok(());
    }
    let (what, mut flags): (Vec<String>, Vec<String>) = taken.into_iter().unzip();
    flags.dedup();
    Err(ApiError::new(Code::Conflict, what.join("\n"), flags.join("\n")))
}

/// A port beside the usual one that is most likely free.
const fn other(port: u16) -> u16 {
    match port.checked_add(10_000) {
        Some(p) => p,
        None => port - 10_000,
    }
}

fn held(
    proto: Proto,
    at: SocketAddr,
    what: &str,
    flag: impl Fn(u16) -> String,
) -> Result<Option<(String, String)>, ApiError> {
    let holders = sockdiag::listening(proto, at.port()).map_err(|e| internal("who holds the ports", e))?;
    let clash = |h: &&Holder| {
        let same = |a: IpAddr, b: IpAddr| a.is_unspecified() || b.is_unspecified() || a == b;
        same(at.ip(), h.at.ip().to_canonical())
    };
    Ok(holders.iter().find(clash).map(|h| {
        let text = format!("{what} {}/{proto} is held by {h}", at.port());
        (text, flag(other(at.port())))
    }))
}

/// Who holds the port with something else than our own device.
fn vxlan_holder(port: u16, sandboxes: &Path) -> Result<Option<String>, ApiError> {
    let failed = |e| internal("who holds the ports", e);
    let links = Rtnl::open()
        .and_then(|mut r| r.links())
        .map_err(|e| failed(e.to_string()))?;
    let at = |l: &&Link| l.vxlan.is_some_and(|v| v.port == port);
    let mut tunnels = links.iter().filter(at);
    if tunnels.clone().any(|l| l.name == names::VXLAN) || in_sandbox(sandboxes, &at) {
        return Ok(None);
    }
    if let Some(l) = tunnels.next() {
        return Ok(Some(format!("the VXLAN device {}", l.name)));
    }
    let holders = sockdiag::listening(Proto::Udp, port).map_err(|e| failed(e.to_string()))?;
    Ok(holders.first().map(|h| match h.pid {
        Some(_) => h.to_string(),
        None => "a VXLAN device in another namespace (dockerd in swarm mode makes such, flannel too)".to_owned(),
    }))
}

/// Whether one of our devices in networks' namespaces is `such`. A cluster that this node was in may have left some, for a
/// node whose state is gone as well: they are taken up, or go with the first pass. One that cannot be read is not.
fn in_sandbox(folder: &Path, such: &dyn Fn(&&Link) -> bool) -> bool {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .map(|e| e.path())
        .filter_map(|path| Some((names::sandbox_of(&path)?, Netns::open(&path).ok()?)))
        .any(|(vni, ns)| {
            let links = Rtnl::open_in(&ns).and_then(|mut r| r.links()).unwrap_or_default();
            let ours = |l: &&Link| l.alias.as_deref() == Some(names::tunnel_alias(vni).as_str());
            links.iter().filter(ours).any(|l| such(&l))
        })
}

/// Whether a port can be published here, and who is in the way. Blocking.
pub fn port_use(port: &PortSpec) -> Answer {
    let mine = match addresses(port.on) {
        Ok(mine) => mine,
        Err(why) => return Answer::Failed { why },
    };
    if mine.as_ref().is_some_and(BTreeSet::is_empty) {
        return Answer::NotHere;
    }
    if port.is_auto() {
        return Answer::Free;
    }
    match sockdiag::holders(port.proto, port.published) {
        Ok(all) => match all.iter().find(|h| in_the_way(h.at.ip(), mine.as_ref())) {
            Some(holder) => Answer::Taken {
                owner: holder.to_string(),
            },
            None => Answer::Free,
        },
        Err(e) => Answer::Failed { why: e.to_string() },
    }
}

/// Whether a socket at an address gets packets for one of `mine`; none: for any.
fn in_the_way(at: IpAddr, mine: Option<&BTreeSet<IpAddr>>) -> bool {
    let at = at.to_canonical();
    let Some(mine) = mine else { return true };
    match at {
        // An unspecified IPv6 socket mostly takes IPv4 too.
        IpAddr::V6(a) if a.is_unspecified() => true,
        IpAddr::V4(a) if a.is_unspecified() => mine.iter().any(IpAddr::is_ipv4),
        at => mine.contains(&at),
    }
}

/// The addresses of this host that are meant; none: all.
fn addresses(on: On) -> Result<Option<BTreeSet<IpAddr>>, String> {
    let here = || -> Result<Vec<(String, IpAddr)>, String> {
        let all = host::local_addresses().map_err(|e| e.to_string())?;
        let own = all.into_iter().map(|l| (l.interface, l.address));
        Ok(own.chain([("lo".to_owned(), Ipv4Addr::LOCALHOST.into())]).collect())
    };
    let of = |fits: &dyn Fn(&str, IpAddr) -> bool| -> Result<Option<BTreeSet<IpAddr>>, String> {
        let all = here()?.into_iter().filter(|(name, a)| fits(name, *a));
        Ok(Some(all.map(|(_, a)| a).collect()))
    };
    match on {
        On::All => Ok(None),
        On::Address(ip) => of(&|_, a| a == ip),
        On::Device(d) => of(&|name, _| name == d.as_str()),
    }
}

/// Ports of [`PortSpec::AUTO`] that something here listens on or speaks from. Blocking.
pub fn auto_ports_in_use() -> Answer {
    match sockdiag::ports_in_use() {
        Ok(all) => {
            let ports: BTreeSet<u16> = all.into_iter().filter(|p| PortSpec::AUTO.contains(p)).collect();
            Answer::Ports {
                ports: ports.into_iter().collect(),
            }
        }
        Err(e) => Answer::Failed { why: e.to_string() },
    }
}
