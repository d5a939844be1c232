//! Namespaces as they are numbered in another one: what a device's `elsewhere` says, and how to reach a namespace that no
//! path leads to (linux/net_namespace.h).

use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_core::NLM_F_DUMP;
use netlink_packet_route::{
    RouteNetlinkMessage as Message,
    link::{LinkAttribute, LinkMessage},
};

use super::{Link, Rtnl, RtnlError};
use crate::netlink::{Attrs, Request, Writer};

const RTM_GETNSID: u16 = 90;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;
/// `struct rtgenmsg`, padded.
const HEADER: usize = 4;

fn number(body: &[u8]) -> Option<i32> {
    let value = Attrs(body.get(HEADER..)?).get(NETNSA_NSID)?;
    value.first_chunk().map(|b| i32::from_ne_bytes(*b))
}

impl Rtnl {
    /// Number of a namespace in the socket's; `None`: it has none, so no device here has its other end there.
    pub fn number_of(&mut self, netns: impl AsFd) -> Result<Option<i32>, RtnlError> {
        let mut w = Writer(vec![0; HEADER]);
        w.bytes(NETNSA_FD, &netns.as_fd().as_raw_fd().to_ne_bytes());
        let request = Request {
            kind: RTM_GETNSID,
            flags: 0,
            body: w.0,
        };
        let answer = self.socket.get(&request)?;
        // NETNSA_NSID_NOT_ASSIGNED is -1.
        Ok(number(&answer.body).filter(|n| *n >= 0))
    }

    /// All numbers that are given in the socket's namespace.
    pub fn numbers(&mut self) -> Result<Vec<i32>, RtnlError> {
        let request = Request {
            kind: RTM_GETNSID,
            flags: NLM_F_DUMP,
            body: vec![0; HEADER],
        };
        let answers = self.socket.dump(&request).map_err(|source| RtnlError::List {
            what: "namespaces",
            source,
        })?;
        Ok(answers.iter().filter_map(|a| number(&a.body)).collect())
    }

    /// A device of a numbered namespace, by name; `None`: it has none of this name, or ends just now.
    pub fn link_of(&mut self, nsid: i32, name: &str) -> Result<Option<Link>, RtnlError> {
        let mut m = LinkMessage::default();
        m.attributes
            .extend([LinkAttribute::IfName(name.to_owned()), LinkAttribute::IfNetnsId(nsid)]);
        match self.socket.get(&super::request::request(Message::GetLink(m), 0)) {
            Ok(answer) => Ok(match super::decode::message(&answer) {
                Some(Message::NewLink(l)) => Some(super::decode::link(l)),
                _ => None,
            }),
            // EINVAL: the number is not given any more.
            Err(e)
                if e.refusal()
                    .is_some_and(|r| r.is_absent() || r.errno == nix::errno::Errno::EINVAL) =>
            {
                Ok(None)
            }
            Err(source) => Err(RtnlError::List { what: "a link", source }),
        }
    }
}
