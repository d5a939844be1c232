//! What of this host the view needs: addresses, the underlay's MTU, the ways out. And whether the kernel can do it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use ipnet::IpNet;
use kernel::rtnl::{Address, Link, Rtnl, RtnlError};

use crate::place::Local;

/// Names of devices that netd makes on the host's side.
fn ours(name: &str) -> bool {
    name == overlay::names::VXLAN || name.starts_with("nv")
}

/// Addresses that others may reach this host by, in the kernel's order: not of loopback, link scope or our own devices.
pub fn local_addresses() -> Result<Vec<Local>, RtnlError> {
    let mut rtnl = Rtnl::open()?;
    let links = rtnl.links()?;
    let all = rtnl.addresses()?;
    let good = addresses(&links, &all);
    let name = |index| links.iter().find(|l| l.index == index).map(|l| l.name.clone());
    Ok(all
        .iter()
        .filter(|a| !a.tentative && !a.net.addr().is_loopback() && good.contains(&a.net.addr()))
        .filter_map(|a| {
            Some(Local {
                interface: name(a.index)?,
                address: a.net.addr(),
            })
        })
        .collect())
}

/// Address of this host that the kernel would choose to speak to `to`; nothing is sent.
pub fn source_towards(to: IpAddr) -> Option<IpAddr> {
    let way = Rtnl::open().and_then(|mut r| r.way_to(to)).ok()?;
    way.source.filter(|s| !s.is_loopback())
}

/// Every address that a packet for this host may bear, 127.0.0.1 among them. One that is still being checked for a
/// duplicate (RFC 4862, 5.4) is none yet: the kernel tells when it is.
fn addresses(links: &[Link], all: &[Address]) -> BTreeSet<IpAddr> {
    devices(links, all).into_values().flatten().collect()
}

/// [`addresses`] by device.
fn devices(links: &[Link], all: &[Address]) -> BTreeMap<String, BTreeSet<IpAddr>> {
    let by_index: BTreeMap<u32, &Link> = links.iter().map(|l| (l.index, l)).collect();
    let good = |a: &IpAddr| match a {
        IpAddr::V4(a) => !a.is_link_local() && (!a.is_loopback() || *a == Ipv4Addr::LOCALHOST),
        IpAddr::V6(a) => !a.is_loopback() && !a.is_unicast_link_local() && !a.is_multicast(),
    };
    let mut out: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
    for a in all.iter().filter(|a| !a.tentative) {
        let device = by_index.get(&a.index).filter(|l| !ours(&l.name));
        if let Some(l) = device.filter(|_| good(&a.net.addr())) {
            out.entry(l.name.clone()).or_default().insert(a.net.addr());
        }
    }
    out
}

/// The host as a pass sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// See [`addresses`].
    pub addresses: BTreeSet<IpAddr>,
    /// Those of each device.
    pub devices: BTreeMap<String, BTreeSet<IpAddr>>,
    /// Device that holds the data-path address, and its MTU in octets.
    pub underlay: Option<(String, u32)>,
    /// Devices of default routes, and the underlay's.
    pub uplinks: BTreeSet<String>,
    /// Index of every device that can receive for a local address, but loopback and ours.
    pub netdevs: BTreeSet<u32>,
}

/// Looks at the host.
pub fn look(rtnl: &mut Rtnl, vtep: IpAddr) -> Result<Host, RtnlError> {
    let links = rtnl.links()?;
    let all = rtnl.addresses()?;
    let by_index: BTreeMap<u32, &Link> = links.iter().map(|l| (l.index, l)).collect();
    let holder = all
        .iter()
        .find(|a| a.net.addr() == vtep)
        .and_then(|a| by_index.get(&a.index));
    let mut uplinks: BTreeSet<String> = rtnl.default_links()?.into_iter().map(|l| l.name).collect();
    uplinks.extend(holder.filter(|l| !l.loopback).map(|l| l.name.clone()));
    let with_address: BTreeSet<u32> = all.iter().map(|a| a.index).collect();
    let netdevs = links
        .iter()
        // The programs expect an Ethernet header.
        .filter(|l| !l.loopback && !ours(&l.name) && l.up && l.mac.is_some() && with_address.contains(&l.index))
        .map(|l| l.index)
        .collect();
    Ok(Host {
        addresses: addresses(&links, &all),
        devices: devices(&links, &all),
        underlay: holder.map(|l| (l.name.clone(), l.mtu)),
        uplinks,
        netdevs,
    })
}

/// Subnets that this host routes, but default routes, loopback and our own.
pub fn routed_subnets() -> Result<BTreeSet<IpNet>, RtnlError> {
    let mut rtnl = Rtnl::open()?;
    let links: BTreeMap<u32, Link> = rtnl.links()?.into_iter().map(|l| (l.index, l)).collect();
    let foreign = |index: u32| links.get(&index).is_none_or(|l| !ours(&l.name) && !l.loopback);
    let routes = rtnl.routes()?;
    Ok(routes
        .into_iter()
        .filter(|r| r.protocol != kernel::rtnl::PROTOCOL && foreign(r.index) && r.to.prefix_len() > 0)
        .map(|r| r.to.trunc())
        .filter(|n| match n {
            IpNet::V4(n) => !n.network().is_multicast() && !n.network().is_link_local() && !n.network().is_loopback(),
            IpNet::V6(n) => !n.network().is_multicast() && !n.network().is_unicast_link_local(),
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Who follows addresses is told by what is here that differs: had a tentative one been here all the time, nobody would
    /// be told that it may be used now.
    #[test]
    fn an_address_under_check_is_none_yet() {
        let links = [Link {
            index: 2,
            name: "eth0".to_owned(),
            ..Link::default()
        }];
        let mut all = ["198.18.0.1/24", "fd18::1/64", "fe80::1/64"].map(|net| Address {
            index: 2,
            net: net.parse().unwrap(),
            no_prefix_route: false,
            tentative: false,
        });
        let seen =
            |all: &[Address]| -> Vec<String> { addresses(&links, all).iter().map(ToString::to_string).collect() };
        assert_eq!(seen(&all), ["198.18.0.1", "fd18::1"]);
        all[1].tentative = true;
        assert_eq!(seen(&all), ["198.18.0.1"]);
    }
}
