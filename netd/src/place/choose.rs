//! Which of the host's addresses: a pure function of what was asked for and what is there.

use std::net::{IpAddr, SocketAddr};

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

/// An address of this host that others could use.
fn fits(here: &[Local], six: bool) -> impl Iterator<Item = &Local> {
    let of_family = move |l: &&Local| l.address.is_ipv6() == six && !inward(&l.interface);
    here.iter().filter(of_family)
}

/// Whether an address that nobody had to name is an IPv6 one: where the data path carries it (`able`), and this node had one;
/// or it is new, and the manager has one, or there is no other. A node whose address is gone waits for another of its family:
/// it is mostly about to come, and with the other family the node would reach nobody.
fn takes_six(place: &Place, here: &[Local], able: bool) -> bool {
    if !able || fits(here, true).next().is_none() {
        return false;
    }
    match (place.advertise, place.toward) {
        (Some(had), _) => had.is_ipv6(),
        _ if fits(here, false).next().is_none() => true,
        (None, toward) => toward.is_some_and(|a| a.is_ipv6()),
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
fn by_itself(place: &Place, here: &[Local], way: Option<IpAddr>, flag: &str, six: bool) -> Result<IpAddr, ApiError> {
    let fit: Vec<&Local> = fits(here, six).collect();
    let has = |a: IpAddr| fit.iter().any(|l| l.address == a);
    // What it was it stays; an address that was replaced is looked for where the last one was.
    if let Some(a) = place.advertise.filter(|a| has(*a)) {
        return Ok(a);
    }
    match fit.as_slice() {
        [] => {
            let family = if six { "IPv6" } else { "IPv4" };
            let other = match !six && fits(here, true).next().is_some() {
                true => ", or [datapath] mode = \"ipvs\" in netd's configuration, which carries IPv6",
                false => "",
            };
            return Err(ApiError::new(
                Code::Conflict,
                format!(
                    "this host has no {family} address that others could use; it has: {}",
                    listed(here)
                ),
                format!("ip address add, then again, or {flag}{other}"),
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

/// Where this node is now. `way`: source that the kernel would choose towards the managers. `able`: the data path carries
/// an IPv6 underlay.
pub fn choose(
    place: &Place,
    config: &Config,
    here: &[Local],
    way: Option<IpAddr>,
    able: bool,
) -> Result<Addresses, ApiError> {
    let six = takes_six(place, here, able);
    let advertise = match &config.cluster.advertise {
        Some(Where::Address(a)) => *a,
        Some(Where::Interface(name)) => of_interface(here, name, false)?,
        // Who names the data path's address alone means the node's; who joins comes from where the manager is.
        None => match config.datapath.address.as_ref().filter(|_| place.toward.is_none()) {
            Some(Where::Address(a)) => *a,
            Some(Where::Interface(name)) => of_interface(here, name, !able)?,
            None => by_itself(place, here, way, "--advertise-addr", six)?,
        },
    };
    let is_here = |a: IpAddr| here.iter().any(|l| l.address == a);
    let data_path = match &config.datapath.address {
        Some(Where::Address(a)) => *a,
        Some(Where::Interface(name)) => of_interface(here, name, !able)?,
        None => advertise,
    };
    if data_path.is_ipv6() && !able {
        return Err(ApiError::new(
            Code::Unsupported,
            format!(
                "{data_path} cannot be the data path's address: eBPF, the data path of this node, sends to IPv4 alone"
            ),
            "--data-path-addr, or [datapath] address, with an IPv4 address or device; or [datapath] mode = \"ipvs\"",
        ));
    }
    let source = match is_here(data_path) {
        true => data_path,
        false => behind_nat(place, here, way, data_path.is_ipv6())?,
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
fn behind_nat(place: &Place, here: &[Local], way: Option<IpAddr>, six: bool) -> Result<IpAddr, ApiError> {
    let mine = |a: &IpAddr| a.is_ipv6() == six && here.iter().any(|l| l.address == *a);
    match way.filter(mine) {
        Some(a) => Ok(a),
        None => by_itself(place, here, None, "--data-path-addr", six),
    }
}
