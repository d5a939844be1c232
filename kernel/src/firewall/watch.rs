//! Seeing what others do to our rules.

use std::{
    collections::BTreeSet,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use mesh::lower::ipvs::{Family, rules::TableName};
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, socket};

use super::{FirewallError, nft};
use crate::netlink::{NetlinkError, Socket};

/// `NFNLGRP_NFTABLES` of linux/netfilter/nfnetlink.h.
const GROUP: u32 = 7;

/// Tells that something happened to our rules since it was asked last.
pub(super) struct Watch(Kind);

enum Kind {
    /// nf_tables tells each change.
    Events(Socket),
    /// iptables tells nothing: the sizes of its tables are compared. Two system calls a table and family, no program; a
    /// change that leaves a table exactly as long as it was is found by the next look alone.
    Poll {
        sockets: Vec<(Family, OwnedFd)>,
        seen: Vec<(TableName, Family, Option<Info>)>,
    },
}

impl Watch {
    /// Of the calling thread's namespace.
    pub(super) fn events() -> Result<Self, FirewallError> {
        let failed = |source| FirewallError::Netlink {
            doing: "watch",
            what: "changes".into(),
            source,
        };
        let mut socket = Socket::open(NETLINK_NETFILTER).map_err(failed)?;
        socket.join(GROUP).map_err(failed)?;
        Ok(Watch(Kind::Events(socket)))
    }

    /// Of the calling thread's namespace. A table that is not there is made, empty.
    pub(super) fn poll(tables: &BTreeSet<(TableName, Family)>) -> Result<Self, FirewallError> {
        let families: BTreeSet<Family> = tables.iter().map(|(_, f)| *f).collect();
        let open = |f: Family| raw_socket(f).map(|s| (f, s)).map_err(FirewallError::Look);
        let sockets = families.into_iter().map(open).collect::<Result<_, _>>()?;
        let mut watch = Watch(Kind::Poll {
            sockets,
            seen: tables.iter().map(|(t, f)| (*t, *f, None)).collect(),
        });
        watch.changed()?;
        Ok(watch)
    }

    /// Whether something happened since.
    pub(super) fn changed(&mut self) -> Result<bool, FirewallError> {
        match &mut self.0 {
            Kind::Events(socket) => events(socket),
            Kind::Poll { sockets, seen } => {
                let mut changed = false;
                for (table, family, held) in seen {
                    let socket = sockets.iter().find(|(f, _)| f == family);
                    let now = socket.and_then(|(_, s)| info(s.as_fd(), *family, *table).ok());
                    changed |= *held != now;
                    *held = now;
                }
                Ok(changed)
            }
        }
    }

    /// What can be read when there may have been a change.
    pub(super) fn readable(&self) -> Option<BorrowedFd<'_>> {
        match &self.0 {
            Kind::Events(socket) => Some(socket.as_fd()),
            Kind::Poll { .. } => None,
        }
    }
}

fn events(socket: &mut Socket) -> Result<bool, FirewallError> {
    let mut changed = false;
    loop {
        let taken = socket.receive(MsgFlags::MSG_DONTWAIT, |header, body| {
            changed |= nft::is_about_ours(header.kind, body);
            Ok(())
        });
        match taken {
            Ok(true) => {}
            Ok(false) => return Ok(changed),
            // What was lost may have been about us.
            Err(NetlinkError::Overrun) => changed = true,
            Err(source) => {
                return Err(FirewallError::Netlink {
                    doing: "watch",
                    what: "changes".into(),
                    source,
                });
            }
        }
    }
}

/// A socket to ask iptables by, for the calling thread's namespace: nothing is sent through it, and IPPROTO_RAW takes no
/// protocol's packets in.
pub(super) fn raw_socket(family: Family) -> io::Result<OwnedFd> {
    let domain = match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    Ok(socket(
        domain,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::Raw,
    )?)
}

pub(super) fn level(family: Family) -> libc::c_int {
    match family {
        Family::V4 => libc::IPPROTO_IP,
        Family::V6 => libc::IPPROTO_IPV6,
    }
}

/// `struct ipt_getinfo` of linux/netfilter_ipv4/ip_tables.h; that of IPv6 is the same.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Info {
    pub(super) name: [u8; 32],
    valid_hooks: u32,
    hook_entry: [u32; 5],
    pub(super) underflow: [u32; 5],
    entries: u32,
    pub(super) size: u32,
}

/// `IPT_SO_GET_INFO` and `IP6T_SO_GET_INFO`.
const GET_INFO: libc::c_int = 64;

pub(super) fn info(socket: BorrowedFd<'_>, family: Family, table: TableName) -> io::Result<Info> {
    let mut info = Info {
        name: [0; 32],
        valid_hooks: 0,
        hook_entry: [0; 5],
        underflow: [0; 5],
        entries: 0,
        size: 0,
    };
    for (to, from) in info.name.iter_mut().zip(table.as_str().bytes()) {
        *to = from;
    }
    let mut length = size_of::<Info>() as libc::socklen_t;
    // SAFETY: the kernel reads the name and writes at most `length` octets, which is the size of `info`; any octets make
    // a valid `Info`.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level(family),
            GET_INFO,
            (&raw mut info).cast(),
            &raw mut length,
        )
    };
    if answer == 0 {
        Ok(info)
    } else {
        Err(io::Error::last_os_error())
    }
}
