//! Requests, ready to be chained. Links are named by index, or by name where the index is not known yet.

use std::{
    net::IpAddr,
    os::fd::{AsRawFd, BorrowedFd},
};

use model::Mac;
use netlink_packet_core::{DefaultNla, Emitable, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage as Message,
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage, AddressScope},
    link::{
        AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, InfoVxlan, LinkAttribute, LinkFlags,
        LinkInfo, LinkMessage,
    },
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    route::{
        RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteMetric, RouteProtocol, RouteScope, RouteType,
        RouteVia,
    },
    rule::{RuleAction, RuleAttribute, RuleMessage},
};

use super::types::{Address, Fdb, Neighbour, Route, RouteKind, Rule};
use crate::netlink::Request;

/// `NDA_PROTOCOL` of linux/neighbour.h.
const NDA_PROTOCOL: u16 = 12;

pub(super) fn request(message: Message, flags: u16) -> Request {
    let mut body = vec![0; Emitable::buffer_len(&message)];
    message.emit(&mut body);
    Request {
        kind: message.message_type(),
        flags,
        body,
    }
}

/// Which device a request is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which<'a> {
    /// By index.
    Index(u32),
    /// By name.
    Name(&'a str),
}

impl Which<'_> {
    fn message(&self) -> LinkMessage {
        let mut m = LinkMessage::default();
        match self {
            Which::Index(i) => m.header.index = *i,
            Which::Name(n) => m.attributes.push(LinkAttribute::IfName((*n).to_owned())),
        }
        m
    }
}

/// One end of a veth pair to be made.
#[derive(Debug, Clone, Copy)]
pub struct VethEnd<'a> {
    /// Name.
    pub name: &'a str,
    /// MAC; `None`: a random one.
    pub mac: Option<Mac>,
    /// MTU, octets; `None`: 1500.
    pub mtu: Option<u32>,
    /// Namespace; `None`: the socket's.
    pub netns: Option<BorrowedFd<'a>>,
}

impl VethEnd<'_> {
    fn attributes(&self) -> Vec<LinkAttribute> {
        let mut out = vec![LinkAttribute::IfName(self.name.to_owned())];
        out.extend(self.mac.map(|m| LinkAttribute::Address(m.0.to_vec())));
        out.extend(self.mtu.map(LinkAttribute::Mtu));
        out.extend(self.netns.map(|n| LinkAttribute::NetNsFd(n.as_raw_fd())));
        out
    }
}

fn new_link(mut attributes: Vec<LinkAttribute>, info: Vec<LinkInfo>) -> Request {
    let mut m = LinkMessage::default();
    attributes.push(LinkAttribute::LinkInfo(info));
    m.attributes = attributes;
    request(Message::NewLink(m), NLM_F_CREATE | NLM_F_EXCL)
}

/// Makes a veth pair. Both ends are down; a namespace given as file descriptor must stay open until the request is sent.
pub fn create_veth(near: &VethEnd<'_>, far: &VethEnd<'_>) -> Request {
    let mut peer = LinkMessage::default();
    peer.attributes = far.attributes();
    new_link(
        near.attributes(),
        vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ],
    )
}

/// Makes a VXLAN device in collect-metadata mode that listens on a UDP port and learns nothing. It is down.
pub fn create_external_vxlan(name: &str, port: u16, mac: Mac, mtu: u32) -> Request {
    let data = vec![
        InfoVxlan::CollectMetadata(true),
        InfoVxlan::Port(port),
        InfoVxlan::Learning(false),
    ];
    new_link(
        vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Address(mac.0.to_vec()),
            LinkAttribute::Mtu(mtu),
        ],
        vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(data))],
    )
}

/// Makes a VXLAN device of one network, as any kernel tool would (point to point, or with entries added later).
pub fn create_vxlan(
    name: &str,
    vni: u32,
    port: u16,
    local: IpAddr,
    remote: Option<IpAddr>,
    mac: Option<Mac>,
) -> Request {
    let mut data = vec![InfoVxlan::Id(vni), InfoVxlan::Port(port), InfoVxlan::Learning(false)];
    data.push(match local {
        IpAddr::V4(a) => InfoVxlan::Local(a),
        IpAddr::V6(a) => InfoVxlan::Local6(a),
    });
    if local.is_ipv4() {
        // As RFC 7348, 5 has it. The kernel would make one out of that of the packet inside, and who translates the outer
        // address before a device has finished that one would break it.
        data.push(InfoVxlan::UDPCsum(false));
    }
    data.extend(remote.map(|r| match r {
        IpAddr::V4(a) => InfoVxlan::Group(a),
        IpAddr::V6(a) => InfoVxlan::Group6(a),
    }));
    let mut attributes = vec![LinkAttribute::IfName(name.to_owned())];
    attributes.extend(mac.map(|m| LinkAttribute::Address(m.0.to_vec())));
    new_link(
        attributes,
        vec![LinkInfo::Kind(InfoKind::Vxlan), LinkInfo::Data(InfoData::Vxlan(data))],
    )
}

/// As [`create_vxlan`] without a remote, under an index of the caller's choice: what follows in the same chain can name
/// the device by it, and never meets somebody else's device of the same name.
pub fn create_vxlan_at(index: u32, name: &str, vni: u32, port: u16, local: IpAddr, mac: Mac) -> Request {
    let mut request = create_vxlan(name, vni, port, local, None, Some(mac));
    // `ifi_index` of `struct ifinfomsg`.
    if let Some(place) = request.body.get_mut(4..8) {
        place.copy_from_slice(&index.to_ne_bytes());
    }
    request
}

/// Makes a bridge.
pub fn create_bridge(name: &str) -> Request {
    new_link(
        vec![LinkAttribute::IfName(name.to_owned())],
        vec![LinkInfo::Kind(InfoKind::Bridge)],
    )
}

/// Changes to a device; what is `None` stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinkChange<'a> {
    /// Up or down.
    pub up: Option<bool>,
    /// Octets.
    pub mtu: Option<u32>,
    /// MAC.
    pub mac: Option<Mac>,
    /// Alias.
    pub alias: Option<&'a str>,
    /// Whether the kernel makes IPv6 addresses by itself.
    pub generates_addresses: Option<bool>,
    /// Index of the bridge that it becomes a port of; 0: of none.
    pub master: Option<u32>,
}

/// Changes a device.
pub fn change_link(which: &Which<'_>, change: &LinkChange<'_>) -> Request {
    let mut m = which.message();
    if let Some(up) = change.up {
        m.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        m.header.change_mask = LinkFlags::Up;
    }
    let a = &mut m.attributes;
    a.extend(change.mtu.map(LinkAttribute::Mtu));
    a.extend(change.mac.map(|mac| LinkAttribute::Address(mac.0.to_vec())));
    a.extend(change.alias.map(|alias| LinkAttribute::IfAlias(alias.to_owned())));
    a.extend(change.master.map(LinkAttribute::Controller));
    a.extend(change.generates_addresses.map(|yes| {
        let mode = if yes {
            In6AddrGenMode::Eui64
        } else {
            In6AddrGenMode::None
        };
        LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(mode)])])
    }));
    request(Message::NewLink(m), 0)
}

/// Moves a device into another namespace, under its name. It loses its addresses and goes down.
pub fn move_link(which: &Which<'_>, netns: BorrowedFd<'_>) -> Request {
    let mut m = which.message();
    m.attributes.push(LinkAttribute::NetNsFd(netns.as_raw_fd()));
    request(Message::NewLink(m), 0)
}

/// Most devices that [`delete_links`] takes: its requests must travel in one chain.
pub const DELETE_AT_ONCE: usize = 100;

/// Removes up to [`DELETE_AT_ONCE`] devices (and veths' other ends) at the price of one: the kernel waits for its readers,
/// some 30 ms, once a request and not once a device. They are put into a group, then the group is removed; the result of
/// request `i` is that of device `i`, the last one that of the removal.
///
/// Devices are given by index: a name that does not exist would make the kernel change the whole group instead.
pub fn delete_links(indices: &[u32]) -> Vec<Request> {
    /// A group (`ip link set group`) that nobody else uses: "netd" in ASCII.
    const DOOMED: u32 = u32::from_be_bytes(*b"netd");
    let in_group = |index: u32| {
        let mut m = Which::Index(index).message();
        m.attributes.push(LinkAttribute::Group(DOOMED));
        m
    };
    let known = indices.iter().filter(|i| **i > 0).take(DELETE_AT_ONCE);
    let mut out: Vec<Request> = known.map(|i| request(Message::NewLink(in_group(*i)), 0)).collect();
    out.push(request(Message::DelLink(in_group(0)), 0));
    out
}

/// Removes a device (and a veth's other end).
pub fn delete_link(which: &Which<'_>) -> Request {
    request(Message::DelLink(which.message()), 0)
}

/// Removes a device of another namespace, which is given by its number in the socket's.
pub fn delete_link_of(nsid: i32, name: &str) -> Request {
    let mut m = Which::Name(name).message();
    m.attributes.push(LinkAttribute::IfNetnsId(nsid));
    request(Message::DelLink(m), 0)
}

fn family(a: IpAddr) -> AddressFamily {
    if a.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    }
}

fn address(a: &Address) -> AddressMessage {
    let mut m = AddressMessage::default();
    m.header.family = family(a.net.addr());
    m.header.prefix_len = a.net.prefix_len();
    m.header.index = a.index;
    m.header.scope = match a.net.addr() {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => AddressScope::Link,
        _ => AddressScope::Universe,
    };
    // IPv4 deletes by local address, IPv6 knows only one of the two: both are given.
    m.attributes = vec![
        AddressAttribute::Local(a.net.addr()),
        AddressAttribute::Address(a.net.addr()),
    ];
    m
}

/// Gives a device an address, or changes the flags of the one that it has. IPv6 addresses are not checked for duplicates
/// (they come from the log, and a check would cost a second).
pub fn add_address(a: &Address) -> Request {
    let mut m = address(a);
    let mut flags = AddressFlags::empty();
    flags.set(AddressFlags::Noprefixroute, a.no_prefix_route);
    flags.set(AddressFlags::Nodad, a.net.addr().is_ipv6());
    m.header.flags = if a.net.addr().is_ipv6() {
        AddressHeaderFlags::Nodad
    } else {
        AddressHeaderFlags::empty()
    };
    m.attributes.push(AddressAttribute::Flags(flags));
    request(Message::NewAddress(m), NLM_F_CREATE | NLM_F_REPLACE)
}

/// Takes an address from a device.
pub fn delete_address(a: &Address) -> Request {
    request(Message::DelAddress(address(a)), 0)
}

fn route(r: &Route) -> RouteMessage {
    let mut m = RouteMessage::default();
    let h = &mut m.header;
    h.address_family = family(r.to.addr());
    h.destination_prefix_length = r.to.prefix_len();
    // The attribute holds the table; the octet is for tables below 256 (RT_TABLE_COMPAT 252 otherwise).
    h.table = u8::try_from(r.table).unwrap_or(252);
    h.protocol = RouteProtocol::from(r.protocol);
    h.kind = match r.kind {
        RouteKind::Unicast => RouteType::Unicast,
        RouteKind::Local => RouteType::Local,
        RouteKind::Unreachable => RouteType::Unreachable,
    };
    h.scope = match r.kind {
        _ if r.to.addr().is_ipv6() => RouteScope::Universe,
        RouteKind::Local => RouteScope::Host,
        RouteKind::Unicast if r.via.is_none() => RouteScope::Link,
        RouteKind::Unicast | RouteKind::Unreachable => RouteScope::Universe,
    };
    if r.onlink {
        h.flags = RouteFlags::Onlink;
    }
    let a = &mut m.attributes;
    a.push(RouteAttribute::Table(r.table));
    if r.to.prefix_len() > 0 {
        a.push(RouteAttribute::Destination(RouteAddress::from(r.to.network())));
    }
    a.extend(r.via.map(|v| {
        if v.is_ipv4() == r.to.addr().is_ipv4() {
            RouteAttribute::Gateway(RouteAddress::from(v))
        } else {
            RouteAttribute::Via(RouteVia::from(v))
        }
    }));
    // fib_create_info() of net/ipv4/fib_semantics.c refuses a device for a route that leads nowhere.
    if r.kind != RouteKind::Unreachable {
        a.push(RouteAttribute::Oif(r.index));
    }
    a.extend(r.source.map(|s| RouteAttribute::PrefSource(RouteAddress::from(s))));
    if r.metric > 0 {
        a.push(RouteAttribute::Priority(r.metric));
    }
    a.extend(r.mtu.map(|mtu| RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)])));
    m
}

/// Adds a route; refused (EEXIST) where one with the same table, destination and metric exists, whosever it is.
pub fn add_route(r: &Route) -> Request {
    request(Message::NewRoute(route(r)), NLM_F_CREATE | NLM_F_EXCL)
}

/// Puts a route in the place of the one with the same table, destination and metric.
pub fn replace_route(r: &Route) -> Request {
    request(Message::NewRoute(route(r)), NLM_F_CREATE | NLM_F_REPLACE)
}

/// Removes a route.
pub fn delete_route(r: &Route) -> Request {
    request(Message::DelRoute(route(r)), 0)
}

fn neighbour(n: &Neighbour) -> NeighbourMessage {
    let mut m = NeighbourMessage::default();
    m.header.family = family(n.address);
    m.header.ifindex = n.index;
    m.header.state = if n.permanent {
        NeighbourState::Permanent
    } else {
        NeighbourState::Reachable
    };
    m.header.kind = RouteType::Unicast;
    m.attributes = vec![
        NeighbourAttribute::Destination(NeighbourAddress::from(n.address)),
        NeighbourAttribute::LinkLayerAddress(n.mac.0.to_vec()),
        // The library's own variant writes the number of its enum; the raw form is the same octet.
        NeighbourAttribute::Other(DefaultNla::new(NDA_PROTOCOL, vec![n.protocol])),
    ];
    m
}

/// Sets a neighbour entry.
pub fn set_neighbour(n: &Neighbour) -> Request {
    request(Message::NewNeighbour(neighbour(n)), NLM_F_CREATE | NLM_F_REPLACE)
}

/// Removes a neighbour entry.
pub fn delete_neighbour(n: &Neighbour) -> Request {
    request(Message::DelNeighbour(neighbour(n)), 0)
}

fn fdb(f: &Fdb) -> NeighbourMessage {
    let mut m = NeighbourMessage::default();
    m.header.family = AddressFamily::Bridge;
    m.header.ifindex = f.index;
    m.header.state = NeighbourState::Permanent;
    m.header.flags = NeighbourFlags::Own;
    m.attributes = vec![
        NeighbourAttribute::Destination(NeighbourAddress::from(f.to)),
        NeighbourAttribute::LinkLayerAddress(f.mac.0.to_vec()),
    ];
    m
}

/// Says where a VXLAN device sends the frames to a MAC, in the place of where it sent them until now.
pub fn set_fdb(f: &Fdb) -> Request {
    request(Message::NewNeighbour(fdb(f)), NLM_F_CREATE | NLM_F_REPLACE)
}

/// Removes such an entry.
pub fn delete_fdb(f: &Fdb) -> Request {
    request(Message::DelNeighbour(fdb(f)), 0)
}

fn rule(r: &Rule) -> RuleMessage {
    let mut m = RuleMessage::default();
    m.header.family = family(r.from.addr());
    m.header.src_len = r.from.prefix_len();
    m.header.action = RuleAction::ToTable;
    m.attributes = vec![
        RuleAttribute::Table(r.table),
        RuleAttribute::Priority(r.priority),
        RuleAttribute::Protocol(RouteProtocol::from(r.protocol)),
    ];
    if r.from.prefix_len() > 0 {
        m.attributes.push(RuleAttribute::Source(r.from.network()));
    }
    if r.mark.1 > 0 {
        m.attributes
            .extend([RuleAttribute::FwMark(r.mark.0), RuleAttribute::FwMask(r.mark.1)]);
    }
    if r.own {
        m.attributes.push(RuleAttribute::Iifname("lo".to_owned()));
    }
    m
}

/// Adds a rule; refused (EEXIST) where the same one exists.
pub fn add_rule(r: &Rule) -> Request {
    request(Message::NewRule(rule(r)), NLM_F_CREATE | NLM_F_EXCL)
}

/// Removes a rule.
pub fn delete_rule(r: &Rule) -> Request {
    request(Message::DelRule(rule(r)), 0)
}
