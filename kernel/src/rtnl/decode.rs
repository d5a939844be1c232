//! From the kernel's messages to our types. What cannot be read is left out: it is not ours.

use std::net::IpAddr;

use ipnet::IpNet;
use model::Mac;
use netlink_packet_core::ParseableParametrized;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage as Message,
    address::{AddressAttribute, AddressFlags, AddressMessage},
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoVxlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
    },
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteType, RouteVia},
    rule::{RuleAction, RuleAttribute, RuleMessage},
};

use super::types::{Address, Fdb, Link, Neighbour, Route, RouteKind, Rule, Vxlan};
use crate::netlink::Answer;

pub(super) fn message(answer: &Answer) -> Option<Message> {
    match Message::parse_with_param(&answer.body, answer.kind) {
        Ok(m) => Some(m),
        Err(error) => {
            tracing::debug!(kind = answer.kind, %error, "unreadable rtnetlink message left out");
            None
        }
    }
}

fn mac(octets: &[u8]) -> Option<Mac> {
    octets.try_into().ok().map(Mac)
}

pub(super) fn link(m: LinkMessage) -> Link {
    let mut out = Link {
        index: m.header.index,
        up: m.header.flags.contains(LinkFlags::Up),
        carrier: m.header.flags.contains(LinkFlags::LowerUp),
        running: m.header.flags.contains(LinkFlags::Running),
        loopback: m.header.flags.contains(LinkFlags::Loopback),
        generates_addresses: true,
        ..Link::default()
    };
    for a in m.attributes {
        match a {
            LinkAttribute::IfName(n) => out.name = n,
            LinkAttribute::IfAlias(n) => out.alias = Some(n),
            LinkAttribute::Controller(i) => out.master = Some(i),
            LinkAttribute::Link(i) => out.lower = Some(i),
            LinkAttribute::LinkNetNsId(id) => (out.lower_elsewhere, out.elsewhere) = (true, Some(id)),
            LinkAttribute::Address(o) => out.mac = mac(&o),
            LinkAttribute::Mtu(n) => out.mtu = n,
            LinkAttribute::LinkInfo(infos) => infos.into_iter().for_each(|i| info(&mut out, i)),
            LinkAttribute::AfSpecUnspec(specs) => {
                let six = specs
                    .iter()
                    .filter_map(|s| if let AfSpecUnspec::Inet6(v) = s { Some(v) } else { None });
                if six
                    .flatten()
                    .any(|s| matches!(s, AfSpecInet6::AddrGenMode(In6AddrGenMode::None)))
                {
                    out.generates_addresses = false;
                }
            }
            _ => {}
        }
    }
    out
}

fn info(out: &mut Link, info: LinkInfo) {
    match info {
        LinkInfo::Kind(k) => out.kind = Some(k.to_string()),
        LinkInfo::Data(InfoData::Vxlan(data)) => {
            let mut v = Vxlan::default();
            for d in data {
                match d {
                    InfoVxlan::CollectMetadata(yes) => v.external = yes,
                    InfoVxlan::Port(p) => v.port = p,
                    InfoVxlan::Learning(yes) => v.learning = yes,
                    InfoVxlan::Id(n) => v.vni = n,
                    InfoVxlan::Local(a) => v.local = Some(a.into()),
                    InfoVxlan::Local6(a) => v.local = Some(a.into()),
                    _ => {}
                }
            }
            out.vxlan = Some(v);
        }
        _ => {}
    }
}

pub(super) fn address(m: AddressMessage) -> Option<Address> {
    let (mut near, mut far) = (None, None);
    let mut flags = AddressFlags::from_bits_retain(u32::from(m.header.flags.bits()));
    for a in m.attributes {
        match a {
            AddressAttribute::Local(ip) => near = Some(ip),
            AddressAttribute::Address(ip) => far = Some(ip),
            AddressAttribute::Flags(f) => flags = f,
            _ => {}
        }
    }
    // On a point-to-point device `Address` is the other end's; IPv6 gives `Address` alone.
    let net = IpNet::new(near.or(far)?, m.header.prefix_len).ok()?;
    Some(Address {
        index: m.header.index,
        net,
        no_prefix_route: flags.contains(AddressFlags::Noprefixroute),
        tentative: flags.intersects(AddressFlags::Tentative | AddressFlags::Dadfailed),
    })
}

fn ip(a: RouteAddress) -> Option<IpAddr> {
    match a {
        RouteAddress::Inet(v4) => Some(v4.into()),
        RouteAddress::Inet6(v6) => Some(v6.into()),
        _ => None,
    }
}

/// The route, once for each next hop. Empty for kinds that netd knows nothing of, and for nexthop objects that the kernel
/// does not spell out.
pub(super) fn routes(m: RouteMessage) -> Vec<Route> {
    route(m).unwrap_or_default()
}

fn via(a: RouteVia) -> Option<IpAddr> {
    match a {
        RouteVia::Inet(v4) => Some(v4.into()),
        RouteVia::Inet6(v6) => Some(v6.into()),
        _ => None,
    }
}

fn route(m: RouteMessage) -> Option<Vec<Route>> {
    let kind = match m.header.kind {
        RouteType::Unicast => RouteKind::Unicast,
        RouteType::Local => RouteKind::Local,
        RouteType::Unreachable => RouteKind::Unreachable,
        _ => return None,
    };
    let zero: IpAddr = match m.header.address_family {
        AddressFamily::Inet => std::net::Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let (mut to, mut index, mut hops) = (zero, None, Vec::new());
    let mut out = Route {
        kind,
        table: u32::from(m.header.table),
        to: IpNet::new(zero, 0).ok()?,
        via: None,
        index: 0,
        source: None,
        onlink: m.header.flags.contains(RouteFlags::Onlink),
        protocol: u8::from(m.header.protocol),
        metric: 0,
        mtu: None,
    };
    for a in m.attributes {
        match a {
            RouteAttribute::Table(t) => out.table = t,
            RouteAttribute::Destination(d) => to = ip(d)?,
            RouteAttribute::Gateway(g) => out.via = ip(g),
            RouteAttribute::Via(v) => out.via = via(v),
            RouteAttribute::Oif(i) => index = Some(i),
            RouteAttribute::MultiPath(list) => hops = list,
            RouteAttribute::PrefSource(s) => out.source = ip(s),
            RouteAttribute::Priority(p) => out.metric = p,
            RouteAttribute::Metrics(ms) => {
                out.mtu = ms
                    .iter()
                    .find_map(|m| if let RouteMetric::Mtu(n) = m { Some(*n) } else { None });
            }
            _ => {}
        }
    }
    out.to = IpNet::new(to, m.header.destination_prefix_length).ok()?;
    if hops.is_empty() {
        out.index = match kind {
            RouteKind::Unreachable => 0,
            RouteKind::Unicast | RouteKind::Local => index?,
        };
        return Some(vec![out]);
    }
    let each = hops.into_iter().map(|hop| {
        let via = hop.attributes.into_iter().find_map(|a| match a {
            RouteAttribute::Gateway(g) => ip(g),
            RouteAttribute::Via(v) => via(v),
            _ => None,
        });
        Route {
            index: hop.interface_index,
            via,
            ..out.clone()
        }
    });
    Some(each.collect())
}

pub(super) fn neighbour(m: NeighbourMessage) -> Option<Neighbour> {
    let (mut to, mut hw, mut protocol) = (None, None, 0);
    for a in m.attributes {
        match a {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => to = Some(IpAddr::V4(a)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => to = Some(IpAddr::V6(a)),
            NeighbourAttribute::LinkLayerAddress(o) => hw = mac(&o),
            NeighbourAttribute::Protocol(p) => protocol = u8::from(p),
            _ => {}
        }
    }
    let permanent = m.header.state == NeighbourState::Permanent;
    Some(Neighbour {
        index: m.header.ifindex,
        address: to?,
        mac: hw?,
        permanent,
        protocol,
    })
}

/// An entry of a VXLAN device that does not age, where it sends frames to another host.
pub(super) fn fdb(m: NeighbourMessage) -> Option<Fdb> {
    let (mut to, mut hw) = (None, None);
    for a in m.attributes {
        match a {
            // The family is that of bridges, so the library does not know the address' own.
            NeighbourAttribute::Destination(NeighbourAddress::Other(o)) => {
                let four = <[u8; 4]>::try_from(o.as_slice()).map(IpAddr::from);
                to = four
                    .or_else(|_| <[u8; 16]>::try_from(o.as_slice()).map(IpAddr::from))
                    .ok();
            }
            NeighbourAttribute::LinkLayerAddress(o) => hw = mac(&o),
            _ => {}
        }
    }
    Some(Fdb {
        index: m.header.ifindex,
        mac: hw?,
        to: to?,
    })
}

pub(super) fn rule(m: RuleMessage) -> Option<Rule> {
    if m.header.action != RuleAction::ToTable {
        return None;
    }
    let mut from: IpAddr = match m.header.family {
        AddressFamily::Inet => std::net::Ipv4Addr::UNSPECIFIED.into(),
        AddressFamily::Inet6 => std::net::Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let (mut table, mut priority, mut protocol) = (u32::from(m.header.table), 0, 0);
    let (mut mark, mut own) = ((0, 0), false);
    for a in m.attributes {
        match a {
            RuleAttribute::FwMark(m) => mark.0 = m,
            RuleAttribute::FwMask(m) => mark.1 = m,
            RuleAttribute::Iifname(name) => own = name == "lo",
            RuleAttribute::Source(ip) => from = ip,
            RuleAttribute::Table(t) => table = t,
            RuleAttribute::Priority(p) => priority = p,
            RuleAttribute::Protocol(p) => protocol = u8::from(p),
            _ => {}
        }
    }
    Some(Rule {
        from: IpNet::new(from, m.header.src_len).ok()?,
        mark,
        own,
        table,
        priority,
        protocol,
    })
}
