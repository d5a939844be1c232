//! Changes as they happen, so that the daemon looks when there is something to see.

use std::os::fd::{AsFd, BorrowedFd};

use netlink_packet_route::RouteNetlinkMessage as Message;
use netlink_sys::protocols::NETLINK_ROUTE;
use nix::sys::socket::MsgFlags;

use super::{PROTOCOL, RtnlError, decode};
use crate::netlink::{Answer, NetlinkError, Socket};

/// Multicast groups, `RTNLGRP_*` of linux/rtnetlink.h: links, IPv4 and IPv6 addresses, IPv4 and IPv6 routes.
const GROUPS: [u32; 5] = [1, 5, 9, 7, 11];

/// A change in the namespace. Routes of netd's own protocol are not told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A device appeared or changed.
    Link(super::Link),
    /// A device is gone.
    LinkGone(super::Link),
    /// An address came or went.
    Address {
        /// Device.
        index: u32,
    },
    /// A route of somebody else came or went.
    Route,
    /// Events were lost (the reader was too slow): look at everything.
    Lost,
}

/// A subscription. Waiting is done on its file descriptor, or by [`Events::next`].
pub struct Events {
    socket: Socket,
}

impl Events {
    /// Subscribes in the calling thread's namespace. Nothing that happens after the return is missed.
    pub fn open() -> Result<Self, RtnlError> {
        let mut socket = Socket::open(NETLINK_ROUTE)?;
        for group in GROUPS {
            socket.join(group)?;
        }
        socket.wait_for_ever()?;
        Ok(Events { socket })
    }

    /// Waits for the next events; the answer may be empty (only our own were seen).
    #[allow(
        clippy::should_implement_trait,
        reason = "an iterator would hide that it blocks and fails"
    )]
    pub fn next(&mut self) -> Result<Vec<Event>, RtnlError> {
        self.take(MsgFlags::empty())
    }

    /// What has arrived by now; empty: nothing. For readers that wait on the file descriptor.
    pub fn ready(&mut self) -> Result<Vec<Event>, RtnlError> {
        self.take(MsgFlags::MSG_DONTWAIT)
    }

    fn take(&mut self, flags: MsgFlags) -> Result<Vec<Event>, RtnlError> {
        let mut out = Vec::new();
        let taken = self.socket.receive(flags, |header, body| {
            out.extend(event(&Answer {
                kind: header.kind,
                body: body.to_vec(),
            }));
            Ok(())
        });
        match taken {
            Ok(_) => Ok(out),
            Err(NetlinkError::Overrun) => Ok(vec![Event::Lost]),
            Err(e) => Err(e.into()),
        }
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn event(answer: &Answer) -> Option<Event> {
    match decode::message(answer)? {
        Message::NewLink(l) => Some(Event::Link(decode::link(l))),
        Message::DelLink(l) => Some(Event::LinkGone(decode::link(l))),
        Message::NewAddress(a) | Message::DelAddress(a) => Some(Event::Address { index: a.header.index }),
        Message::NewRoute(r) | Message::DelRoute(r) if u8::from(r.header.protocol) != PROTOCOL => Some(Event::Route),
        _ => None,
    }
}
