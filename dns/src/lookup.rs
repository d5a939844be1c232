//! Which names are ours, and what they stand for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use model::{Proto, Vni};

use crate::{
    ports,
    table::{Addresses, Form, Names, Pointer, Table, View},
    wire::QName,
};

/// What a name is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found<'t> {
    /// Somebody else's: to be forwarded.
    Foreign,
    /// Ours, and there is no such name.
    Nothing,
    /// Ours; it has no records of its own (a network's name, part of a reverse name).
    Empty,
    /// A service, its tasks, or one of them.
    Addresses(&'t Addresses),
    /// A published port of a service.
    Port {
        vni: Vni,
        service: &'t [u8],
        port: u16,
        addresses: &'t Addresses,
    },
    /// An address's name.
    Pointer(&'t Pointer),
    /// `localhost` (RFC 6761 6.3).
    Localhost,
    /// Address of `localhost`.
    LocalhostPointer,
}

/// The service part of a name: what stands before the network, or the whole name.
enum Part<'n> {
    Service(&'n [u8], Form),
    Port(&'n [u8], Proto, &'n [u8]),
}

impl<'n> Part<'n> {
    fn parse(labels: &[&'n [u8]]) -> Option<Self> {
        match labels {
            [service] => Some(Part::Service(service, Form::Vip)),
            [b"tasks", service] => Some(Part::Service(service, Form::Tasks)),
            [slot, service] => ports::number(slot).map(|n| Part::Service(service, Form::Slot(n))),
            [[b'_', port @ ..], proto, service] => {
                let proto = match *proto {
                    b"_tcp" => Proto::Tcp,
                    b"_udp" => Proto::Udp,
                    b"_sctp" => Proto::Sctp,
                    _ => return None,
                };
                Some(Part::Port(port, proto, service))
            }
            _ => None,
        }
    }

    fn service(&self) -> &'n [u8] {
        match self {
            Part::Service(service, _) | Part::Port(_, _, service) => service,
        }
    }
}

/// Finds a name in a view. A name that belongs to the cluster but not to the view does not exist for the asker, and is
/// not forwarded either: what others call their services is nobody's business, here or upstream.
pub(crate) fn find<'t>(table: &'t Table, view: &View, name: &QName) -> Found<'t> {
    let all: Vec<&[u8]> = name.labels().collect();
    match all.as_slice() {
        [] => return Found::Foreign,
        [.., b"localhost"] => return Found::Localhost,
        [rest @ .., b"in-addr", b"arpa"] => return reverse4(table, view, rest),
        [rest @ .., b"ip6", b"arpa"] => return reverse6(table, view, rest),
        _ => {}
    }
    let known = Part::parse(&all).filter(|part| table.services.contains_key(part.service()));
    if let Some(part) = known {
        let found = view.networks.iter().find_map(|vni| on_network(table, *vni, &part));
        if let Some(found) = found {
            return found;
        }
    }
    match all.as_slice() {
        [rest @ .., network] if table.networks.contains_key(*network) => match table.networks.get(*network) {
            Some(vni) if view.networks.contains(vni) => match rest {
                [] => Found::Empty,
                _ => Part::parse(rest)
                    .and_then(|part| on_network(table, *vni, &part))
                    .unwrap_or(Found::Nothing),
            },
            _ => Found::Nothing,
        },
        [_] | [b"tasks", _] | [[b'_', ..], b"_tcp" | b"_udp", _] => Found::Nothing,
        [slot, service] if table.services.contains_key(*service) && ports::number(slot).is_some() => Found::Nothing,
        _ => Found::Foreign,
    }
}

/// The service part on one network; none: the service is not on it. A port or slot that a service does not have is
/// said here, so that it is not looked for on the next network.
fn on_network<'t>(table: &'t Table, vni: Vni, part: &Part<'_>) -> Option<Found<'t>> {
    let (service, names) = table.services.get_key_value(part.service())?;
    let on: &Names = names.on.get(&vni)?;
    Some(match part {
        Part::Service(_, Form::Vip) if names.itself => Found::Addresses(&on.tasks),
        Part::Service(_, Form::Vip) => Found::Addresses(&on.vip),
        Part::Service(_, Form::Tasks) => Found::Addresses(&on.tasks),
        Part::Service(_, Form::Slot(n)) => on.slots.get(n).map_or(Found::Nothing, Found::Addresses),
        Part::Port(label, proto, _) => ports::port(label)
            .filter(|port| names.ports.iter().any(|p| p.published == *port && p.proto == *proto))
            .map_or(Found::Nothing, |port| Found::Port {
                vni,
                service,
                port,
                addresses: &on.vip,
            }),
    })
}

/// Reads the numbers of a reverse name, nearest to the root first, as long as they are numbers; at most `most`.
fn numbers<const MOST: usize>(labels: &[&[u8]], read: impl Fn(&[u8]) -> Option<u8>) -> ([u8; MOST], usize) {
    let mut out = [0; MOST];
    let mut n = 0;
    for (to, value) in out.iter_mut().zip(labels.iter().rev().map_while(|l| read(l))) {
        *to = value;
        n += 1;
    }
    (out, n)
}

fn reverse4<'t>(table: &'t Table, view: &View, labels: &[&[u8]]) -> Found<'t> {
    let octet = |l: &[u8]| ports::number(l).and_then(|n| u8::try_from(n).ok());
    let (octets, n) = numbers::<4>(labels, octet);
    let Ok(prefix) = Ipv4Net::new(Ipv4Addr::from(octets), 8 * n as u8) else {
        return Found::Foreign;
    };
    // The loopback's names are everybody's own (RFC 6303 4.2).
    let loopback = n > 0 && prefix.addr().is_loopback();
    reverse(table, view, prefix.into(), n == 4, labels.len() == n, loopback)
}

fn reverse6<'t>(table: &'t Table, view: &View, labels: &[&[u8]]) -> Found<'t> {
    let nibble = |l: &[u8]| match l {
        [d @ b'0'..=b'9'] => Some(d - b'0'),
        [x @ b'a'..=b'f'] => Some(x - b'a' + 10),
        _ => None,
    };
    let (nibbles, n) = numbers::<32>(labels, nibble);
    let bits = nibbles.iter().fold(0u128, |bits, d| bits << 4 | u128::from(*d));
    let Ok(prefix) = Ipv6Net::new(Ipv6Addr::from(bits), 4 * n as u8) else {
        return Found::Foreign;
    };
    let loopback = n == 32 && prefix.addr().is_loopback();
    reverse(table, view, prefix.into(), n == 32, labels.len() == n, loopback)
}

/// `whole`: the prefix is one address. `exact`: no labels stand before it.
fn reverse<'t>(table: &'t Table, view: &View, prefix: IpNet, whole: bool, exact: bool, loopback: bool) -> Found<'t> {
    if !loopback && !table.subnets.iter().any(|s| s.contains(&prefix)) {
        return Found::Foreign;
    }
    if !exact {
        return Found::Nothing;
    }
    if !whole {
        return Found::Empty;
    }
    if prefix.addr() == IpAddr::V4(Ipv4Addr::LOCALHOST) || prefix.addr() == IpAddr::V6(Ipv6Addr::LOCALHOST) {
        return Found::LocalhostPointer;
    }
    table
        .reverse
        .get(&prefix.addr())
        .filter(|p| view.networks.contains(&p.vni))
        .map_or(Found::Nothing, Found::Pointer)
}
