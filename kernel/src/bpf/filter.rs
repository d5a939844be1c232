//! What tc says of a device: our filter, the clsact qdisc (linux/pkt_sched.h, linux/rtnetlink.h).

use std::io;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST};

use crate::netlink::{Request, Socket};

const NETLINK_ROUTE: isize = 0;
const RTM_GETQDISC: u16 = 38;
const RTM_GETTFILTER: u16 = 46;
const TC_H_CLSACT: u32 = 0xffff_fff1;
/// Ingress of a clsact qdisc: `TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS)`.
const INGRESS: u32 = 0xffff_fff2;
/// Octets of `struct tcmsg`.
const TCMSG: usize = 20;

/// The fixed part of an answer.
struct Tc {
    ifindex: u32,
    handle: u32,
    parent: u32,
    info: u32,
}

fn dump(kind: u16, ifindex: u32, parent: u32) -> io::Result<Vec<Tc>> {
    let mut body = vec![0u8; 4];
    for word in [ifindex, 0, parent, 0] {
        body.extend(word.to_ne_bytes());
    }
    let mut socket = Socket::open(NETLINK_ROUTE).map_err(io::Error::other)?;
    let request = Request {
        kind,
        flags: NLM_F_REQUEST | NLM_F_DUMP,
        body,
    };
    let answers = socket.dump(&request).map_err(io::Error::other)?;
    Ok(answers
        .iter()
        .filter_map(|a| parse(a.body.get(..TCMSG)?))
        .filter(|t| t.ifindex == ifindex)
        .collect())
}

fn parse(b: &[u8]) -> Option<Tc> {
    let word = |at: usize| Some(u32::from_ne_bytes(b.get(at..at + 4)?.try_into().ok()?));
    Some(Tc {
        ifindex: word(4)?,
        handle: word(8)?,
        parent: word(12)?,
        info: word(16)?,
    })
}

/// Whether a filter of this priority and handle is at the ingress of a device.
pub(super) fn exists(ifindex: u32, priority: u16, handle: u16) -> io::Result<bool> {
    let found = dump(RTM_GETTFILTER, ifindex, INGRESS)?;
    Ok(found
        .iter()
        .any(|t| t.info >> 16 == u32::from(priority) && t.handle == u32::from(handle)))
}

/// Whether a device has a clsact qdisc.
pub(super) fn has_clsact(ifindex: u32) -> io::Result<bool> {
    Ok(dump(RTM_GETQDISC, ifindex, 0)?.iter().any(|t| t.parent == TC_H_CLSACT))
}
