//! Links, addresses, routes, neighbours and rules of one network namespace.
//!
//! [`Rtnl`] lists and carries out; the functions of [`request`] make what it carries out, so that many changes travel in
//! one system call. Everything blocks for as long as the kernel takes (microseconds; milliseconds for deletions).

mod decode;
mod events;
mod nsid;
pub mod request;
pub mod tc;
mod types;

use std::net::IpAddr;

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage as Message,
    address::AddressMessage,
    link::{LinkAttribute, LinkExtentMask, LinkMessage},
    neighbour::NeighbourMessage,
    route::{RouteAddress, RouteAttribute, RouteMessage},
    rule::RuleMessage,
};
use netlink_sys::protocols::NETLINK_ROUTE;

pub use self::{
    events::{Event, Events},
    types::{Address, Fdb, Link, Neighbour, PROTOCOL, Route, RouteKind, Rule, TABLE_MAIN, Vxlan, Way},
};
pub use crate::netlink::{NetlinkError, Refusal, Request};
use crate::{
    netlink::{Answer, Socket},
    netns::{Netns, NetnsError},
};

/// A failed question or change, with what was being done.
#[derive(Debug, thiserror::Error)]
pub enum RtnlError {
    /// A table could not be read.
    #[error("cannot list {what}")]
    List {
        /// Which.
        what: &'static str,
        /// Cause.
        #[source]
        source: NetlinkError,
    },
    /// No socket, or no answers.
    #[error("rtnetlink failed")]
    Socket(#[from] NetlinkError),
    /// The namespace could not be entered.
    #[error("cannot open an rtnetlink socket in a namespace")]
    Netns(#[from] NetnsError),
    /// A device that should be there is not.
    #[error("there is no device {0:?}; try: ip -br link")]
    NoLink(String),
    /// The kernel has no route.
    #[error("no route to {to}; try: ip route get {to}")]
    NoRoute {
        /// Destination.
        to: IpAddr,
        /// Cause.
        #[source]
        source: NetlinkError,
    },
}

/// An rtnetlink socket; it speaks for the namespace that it was opened in.
pub struct Rtnl {
    socket: Socket,
}

impl Rtnl {
    /// For the calling thread's namespace.
    pub fn open() -> Result<Self, RtnlError> {
        Ok(Rtnl {
            socket: Socket::open(NETLINK_ROUTE)?,
        })
    }

    /// For another namespace. The socket may be used from any thread.
    pub fn open_in(netns: &Netns) -> Result<Self, RtnlError> {
        crate::netns::run_in(netns, Self::open)?
    }

    /// Carries out requests in order; the result at index `i` is that of request `i`. The kernel goes on after a refusal.
    pub fn execute(&mut self, requests: &[Request]) -> Result<Vec<Result<(), Refusal>>, NetlinkError> {
        self.socket.execute(requests)
    }

    /// Carries out requests that must all succeed; the first refusal is the error (later ones were tried all the same).
    pub fn execute_all(&mut self, requests: &[Request]) -> Result<(), NetlinkError> {
        self.execute(requests)?
            .into_iter()
            .collect::<Result<(), _>>()
            .map_err(NetlinkError::Refused)
    }

    fn list(&mut self, what: &'static str, message: Message) -> Result<Vec<Answer>, RtnlError> {
        let source = self.socket.dump(&request::request(message, 0));
        source.map_err(|source| RtnlError::List { what, source })
    }

    /// All devices.
    pub fn links(&mut self) -> Result<Vec<Link>, RtnlError> {
        let mut m = LinkMessage::default();
        m.attributes
            .push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
        let answers = self.list("links", Message::GetLink(m))?;
        Ok(answers
            .iter()
            .filter_map(decode::message)
            .filter_map(|m| {
                if let Message::NewLink(l) = m {
                    Some(decode::link(l))
                } else {
                    None
                }
            })
            .collect())
    }

    fn get_link(&mut self, message: LinkMessage) -> Result<Option<Link>, RtnlError> {
        match self.socket.get(&request::request(Message::GetLink(message), 0)) {
            Ok(answer) => Ok(match decode::message(&answer) {
                Some(Message::NewLink(l)) => Some(decode::link(l)),
                _ => None,
            }),
            Err(e) if e.refusal().is_some_and(Refusal::is_absent) => Ok(None),
            Err(source) => Err(RtnlError::List { what: "a link", source }),
        }
    }

    /// One device by name.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, RtnlError> {
        let mut m = LinkMessage::default();
        m.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.get_link(m)
    }

    /// One device by index.
    pub fn link_by_index(&mut self, index: u32) -> Result<Option<Link>, RtnlError> {
        let mut m = LinkMessage::default();
        m.header.index = index;
        self.get_link(m)
    }

    /// All addresses, IPv4 and IPv6.
    pub fn addresses(&mut self) -> Result<Vec<Address>, RtnlError> {
        let answers = self.list("addresses", Message::GetAddress(AddressMessage::default()))?;
        Ok(answers
            .iter()
            .filter_map(decode::message)
            .filter_map(|m| {
                if let Message::NewAddress(a) = m {
                    decode::address(a)
                } else {
                    None
                }
            })
            .collect())
    }

    /// All unicast routes of all tables, IPv4 and IPv6; one with several next hops stands once for each.
    pub fn routes(&mut self) -> Result<Vec<Route>, RtnlError> {
        let mut all = self.routes_of_any_kind()?;
        all.retain(|r| r.kind == RouteKind::Unicast);
        Ok(all)
    }

    /// As [`Rtnl::routes`], with those that end here or lead nowhere.
    pub fn routes_of_any_kind(&mut self) -> Result<Vec<Route>, RtnlError> {
        let mut out = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut m = RouteMessage::default();
            m.header.address_family = family;
            // A kernel without IPv6 refuses the family.
            let answers = match self.list("routes", Message::GetRoute(m)) {
                Err(RtnlError::List { source, .. }) if family == AddressFamily::Inet6 && source.refusal().is_some() => {
                    continue;
                }
                other => other?,
            };
            let routes = answers.iter().filter_map(decode::message).flat_map(|m| match m {
                Message::NewRoute(r) => decode::routes(r),
                _ => Vec::new(),
            });
            out.extend(routes);
        }
        Ok(out)
    }

    /// All neighbour entries that have a MAC, IPv4 and IPv6.
    pub fn neighbours(&mut self) -> Result<Vec<Neighbour>, RtnlError> {
        let answers = self.list("neighbours", Message::GetNeighbour(NeighbourMessage::default()))?;
        Ok(answers
            .iter()
            .filter_map(decode::message)
            .filter_map(|m| {
                if let Message::NewNeighbour(n) = m {
                    decode::neighbour(n)
                } else {
                    None
                }
            })
            .collect())
    }

    /// Entries of all VXLAN devices that send to another host.
    pub fn fdb(&mut self) -> Result<Vec<Fdb>, RtnlError> {
        let mut m = NeighbourMessage::default();
        m.header.family = AddressFamily::Bridge;
        let answers = self.list("forwarding entries", Message::GetNeighbour(m))?;
        Ok(answers
            .iter()
            .filter_map(decode::message)
            .filter_map(|m| {
                if let Message::NewNeighbour(n) = m {
                    decode::fdb(n)
                } else {
                    None
                }
            })
            .collect())
    }

    /// All rules that lead to a table.
    pub fn rules(&mut self) -> Result<Vec<Rule>, RtnlError> {
        let answers = self.list("rules", Message::GetRule(RuleMessage::default()))?;
        Ok(answers
            .iter()
            .filter_map(decode::message)
            .filter_map(|m| {
                if let Message::NewRule(r) = m {
                    decode::rule(r)
                } else {
                    None
                }
            })
            .collect())
    }

    /// Where a packet to an address would leave, and how large it may be.
    pub fn way_to(&mut self, to: IpAddr) -> Result<Way, RtnlError> {
        let mut m = RouteMessage::default();
        let (family, bits) = if to.is_ipv4() {
            (AddressFamily::Inet, 32)
        } else {
            (AddressFamily::Inet6, 128)
        };
        m.header.address_family = family;
        m.header.destination_prefix_length = bits;
        m.attributes.push(RouteAttribute::Destination(RouteAddress::from(to)));
        let answer = self
            .socket
            .get(&request::request(Message::GetRoute(m), 0))
            .map_err(|source| RtnlError::NoRoute { to, source })?;
        let route = match decode::message(&answer) {
            Some(Message::NewRoute(r)) => {
                let mut all = decode::routes(r).into_iter();
                all.find(|r| r.kind != RouteKind::Unreachable)
            }
            _ => None,
        };
        let route = route.ok_or(RtnlError::NoRoute {
            to,
            source: NetlinkError::Short,
        })?;
        let link = self
            .link_by_index(route.index)?
            .ok_or_else(|| RtnlError::NoLink(route.index.to_string()))?;
        let mtu = route.mtu.filter(|m| *m > 0).unwrap_or(link.mtu);
        Ok(Way {
            via: route.via,
            source: route.source,
            mtu,
            local: route.kind == RouteKind::Local,
            link,
        })
    }

    /// Devices that a default route of the main table leaves by, without repetition.
    pub fn default_links(&mut self) -> Result<Vec<Link>, RtnlError> {
        let routes = self.routes()?;
        let indices: std::collections::BTreeSet<u32> = routes
            .iter()
            .filter(|r| r.to.prefix_len() == 0 && r.table == TABLE_MAIN)
            .map(|r| r.index)
            .collect();
        Ok(self
            .links()?
            .into_iter()
            .filter(|l| indices.contains(&l.index))
            .collect())
    }
}

#[cfg(test)]
mod tests;
