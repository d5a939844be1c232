//! Which of the host's addresses: a pure function of what was asked for and what is there.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use model::{ApiError, Code};

use super::{Addresses, Place, Where};
use crate::config::Config;

/// An address of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Local {
    /// Device.
    pub interface: String,
    /// Address: not of loopback, not link-local, not of a device of ours.
    pub address: IpAddr,
}

/// Bridges that container engines and hypervisors make: nobody outside reaches this host by their addresses, so they are
/// taken only when asked for.
fn inward(interface: &str) -> bool {
    const NAMES: [&str; 2] = ["docker0", "docker_gwbridge"];
    const PREFIXES: [&str; 5] = ["br-", "virbr", "cni", "podman", "lxcbr"];
    NAMES.contains(&interface) || PREFIXES.iter().any(|p| interface.starts_with(p))
}

fn listed(here: &[Local]) -> String {
    let all: Vec<String> = here
        .iter()
        .map(|l| format!("{} ({})", l.address, l.interface))
        .collect();
    match all.is_empty() {
        true => "none".to_owned(),
        false => all.join(", "),
    }
}

/// The first address of a device, IPv4 before IPv6.
pub(super) fn of_interface(here: &[Local], name: &str, only_v4: bool) -> Result<IpAddr, ApiError> {
    let mine = || here.iter().filter(|l| l.interface == name).map(|l| l.address);
    let found = mine()
        .find(IpAddr::is_ipv4)
        .or_else(|| mine().next().filter(|_| !only_v4));
    found.ok_or_else(|| {
        let what = if only_v4 { "IPv4 address" } else { "address" };
        ApiError::new(
            Code::Invalid,
            format!("{name:?} is no device of this host with an {what}"),
            format!("one of: {}", listed(here)),
        )
    })
}

/// Of the host's own addresses the one that nobody had to name.
fn by_itself(place: &Place, here: &[Local], way: Option<IpAddr>, flag: &str) -> Result<IpAddr, ApiError> {
    let fit: Vec<&Local> = here
        .iter()
        .filter(|l| l.address.is_ipv4() && !inward(&l.interface))
        .collect();
    let has = |a: IpAddr| fit.iter().any(|l| l.address == a);
    // What it was it stays; an address that was replaced is looked for where the last one was.
    if let Some(a) = place.advertise.filter(|a| has(*a)) {
        return Ok(a);
    }
    match fit.as_slice() {
        [] => {
            return Err(ApiError::new(
                Code::Conflict,
                format!(
                    "this host has no IPv4 address that others could use; it has: {}",
                    listed(here)
                ),
                format!("ip address add, then again, or {flag}"),
            ));
        }
        [one] => return Ok(one.address),
        _ => {}
    }
    if place.toward.is_some()
        && let Some(a) = way.filter(|a| has(*a))
    {
        return Ok(a);
    }
    if let Some(l) = fit.iter().find(|l| place.interface.as_ref() == Some(&l.interface)) {
        return Ok(l.address);
    }
    let all: Vec<Local> = fit.into_iter().cloned().collect();
    Err(ApiError::new(
        Code::Ambiguous,
        format!("this host has several addresses: {}", listed(&all)),
        all.iter()
            .map(|l| format!("{flag} {}", l.address))
            .collect::<Vec<_>>()
            .join("\n"),
    ))
}

/// Where this node is now. `way`: source that the kernel would choose towards the managers.
pub fn choose(place: &Place, config: &Config, here: &[Local], way: Option<IpAddr>) -> Result<Addresses, ApiError> {
    let advertise = match &config.cluster.advertise {
        Some(Where::Address(a)) => *a,
        Some(Where::Interface(name)) => of_interface(here, name, false)?,
        // Who names the data path's address alone means the node's; who joins comes from where the manager is.
        None => match config.datapath.address.as_ref().filter(|_| place.toward.is_none()) {
            Some(Where::Address(a)) => *a,
            Some(Where::Interface(name)) => of_interface(here, name, true)?,
            None => by_itself(place, here, way, "--advertise-addr")?,
        },
    };
    let is_here = |a: IpAddr| here.iter().any(|l| l.address == a);
    let data_path = match &config.datapath.address {
        Some(Where::Address(a)) => *a,
        Some(Where::Interface(name)) => of_interface(here, name, true)?,
        None => advertise,
    };
    let IpAddr::V4(data_path) = data_path else {
        return Err(ApiError::new(
            Code::Unsupported,
            format!("{data_path} cannot be the data path's address: VXLAN between nodes is IPv4 in this version"),
            "--data-path-addr, or [datapath] address, with an IPv4 address or device",
        ));
    };
    let source = match is_here(data_path.into()) {
        true => data_path,
        false => behind_nat(place, here, way)?,
    };
    let port = place.port.unwrap_or(config.cluster.listen.port());
    Ok(Addresses {
        advertise,
        interface: here
            .iter()
            .find(|l| l.address == advertise)
            .map(|l| l.interface.clone()),
        rpc: SocketAddr::new(advertise, port),
        gossip: SocketAddr::new(advertise, config.cluster.gossip_port),
        data_path,
        source,
    })
}

/// The others know this host by an address that it does not have: its packets leave with one that it has.
fn behind_nat(place: &Place, here: &[Local], way: Option<IpAddr>) -> Result<Ipv4Addr, ApiError> {
    let mine = |a: &IpAddr| here.iter().any(|l| l.address == *a);
    let found = match way.filter(mine) {
        Some(a) => a,
        None => by_itself(place, here, None, "--data-path-addr")?,
    };
    match found {
        IpAddr::V4(a) => Ok(a),
        IpAddr::V6(_) => by_itself(place, here, None, "--data-path-addr").and_then(|a| match a {
            IpAddr::V4(a) => Ok(a),
            IpAddr::V6(_) => Err(crate::daemon::internal("the data path's address", "no IPv4 address")),
        }),
    }
}
