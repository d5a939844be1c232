//! What a backend's node remembers of a flow: how its replies become the service's again, and where they go.

use aya_ebpf::helpers::generated::bpf_get_prandom_u32;
use ebpf_abi::{
    C_PORT_REWRITTEN, C_REVERSE_NEW, D_NO_PORT, D_SPOOF_MEMBER, Flow, FwdVal, Mac, REV_PORT, ROUTE_LOCAL, ROUTE_NODE,
    ROUTE_VIP, RevVal, RouteVal,
};

use crate::{
    clock::now,
    count::count,
    maps::{FORWARD, REVERSE, ROUTES, route_key, scratch},
    parse::{Packet, TCP, same},
    pick::in_pools,
};

const BPF_NOEXIST: u64 = 1;
/// Seconds (of 1.07 s) after which a silent flow gives up its client port.
const TCP_IDLE: u32 = 120;
const UDP_IDLE: u32 = 30;
/// Ports tried for a client whose own is taken.
const PORT_TRIES: u32 = 16;

/// The route of an address within a network.
#[inline(always)]
pub(crate) fn route_of(vni: u32, addr: &ebpf_abi::Addr) -> Option<&'static RouteVal> {
    // SAFETY: an entry of the trie is freed after a grace period.
    ROUTES
        .get(&route_key(vni, addr))
        .map(|r| unsafe { &*(r as *const RouteVal) })
}

/// Where the client of a flow is.
#[repr(C)]
pub(crate) struct Client {
    /// Ingress node; 0: this one.
    pub(crate) vtep: u32,
    /// Its veth, when it is a task of this node.
    pub(crate) ifindex: u32,
    /// Source MAC of its packets.
    pub(crate) mac: Mac,
    /// `REV_*`.
    pub(crate) flags: u16,
}

/// Whether `r` is the way back of the flow that `p` belongs to.
#[inline(always)]
fn is_of(r: &RevVal, p: &Packet, vtep: u32) -> bool {
    same(&r.oaddr, &p.flow.daddr) && r.oport == p.flow.dport && r.vtep == vtep && r.cport == p.flow.sport
}

/// Remembers the way back of `p`, whose replies will be `back`; its destination port becomes the client's port as the
/// backend shall see it. False: the packet must be dropped (and is counted).
#[inline(always)]
pub(crate) fn remember(p: &Packet, back: &mut Flow, c: &Client) -> bool {
    if let Some(r) = REVERSE.get_ptr_mut(&*back) {
        // SAFETY: an entry of an LRU map stays readable during the run; racing timestamps are equal or nearly so.
        let r = unsafe { &mut *r };
        if is_of(r, p, c.vtep) {
            let n = now();
            if r.ts != n {
                r.ts = n;
            }
            return true;
        }
    }
    new_flow(p, back, c)
}

/// The slow half: a flow that has no entry under its own port.
#[inline(never)]
fn new_flow(p: &Packet, back: &mut Flow, c: &Client) -> bool {
    let Some(s) = scratch() else { return false };
    let n = now();
    s.way = RevVal {
        oaddr: p.flow.daddr,
        caddr: p.flow.saddr,
        oport: p.flow.dport,
        cport: p.flow.sport,
        vtep: c.vtep,
        ifindex: c.ifindex,
        ts: n,
        cmac: c.mac,
        flags: c.flags,
    };
    (s.arrived.flow, s.arrived.vtep) = (p.flow, c.vtep);
    if let Some(f) = FORWARD.get_ptr_mut(&s.arrived) {
        // SAFETY: as above.
        let f = unsafe { &mut *f };
        f.ts = n;
        back.dport = f.sport;
        s.way.flags |= REV_PORT;
        match REVERSE.get_ptr_mut(&*back) {
            Some(r) => {
                // SAFETY: as above.
                let r = unsafe { &mut *r };
                if is_of(r, p, c.vtep) {
                    r.ts = n;
                    return true;
                }
                // Another flow holds that port by now: choose anew.
                back.dport = p.flow.sport;
                s.way.flags &= !REV_PORT;
            }
            None => return REVERSE.insert(&*back, &s.way, 0).is_ok(),
        }
    }
    if c.vtep != 0 && !admitted(&p.flow, back.net_proto >> 8, c.vtep) {
        count(D_SPOOF_MEMBER);
        return false;
    }
    let idle = if p.proto() == TCP { TCP_IDLE } else { UDP_IDLE };
    let taken = match REVERSE.get_ptr(&*back) {
        // SAFETY: as above.
        Some(r) => unsafe { !is_of(&*r, p, c.vtep) && n.wrapping_sub((*r).ts) < idle },
        None => false,
    };
    if !taken {
        count(C_REVERSE_NEW);
        return REVERSE.insert(&*back, &s.way, 0).is_ok();
    }
    s.way.flags |= REV_PORT;
    // SAFETY: no arguments.
    let start = unsafe { bpf_get_prandom_u32() };
    let mut i = 0;
    while i < PORT_TRIES {
        // 32768-65535: as the kernel's own ephemeral ports, away from well-known ones that a backend might judge by.
        back.dport = (0x8000 | (start.wrapping_add(i.wrapping_mul(0x61c9)) & 0x7fff) as u16).to_be();
        if REVERSE.insert(&*back, &s.way, BPF_NOEXIST).is_ok() {
            count(C_REVERSE_NEW);
            count(C_PORT_REWRITTEN);
            let _ = FORWARD.insert(
                &s.arrived,
                FwdVal {
                    ts: n,
                    sport: back.dport,
                    pad: 0,
                },
                0,
            );
            return true;
        }
        i += 1;
    }
    count(D_NO_PORT);
    false
}

/// Whether a packet from the tunnel may open a flow to a backend here (CONTRACTS, On the wire): a source inside the
/// network must be of the sending node; one of another network, or of outside, may not use a VIP.
#[inline(never)]
fn admitted(f: &Flow, vni: u32, vtep: u32) -> bool {
    if let Some(r) = route_of(vni, &f.saddr) {
        return r.kind == ROUTE_NODE && r.vtep == vtep;
    }
    match route_of(vni, &f.daddr) {
        // Translated already, by a node that must: the way is that of a published port, like the last one.
        Some(r) if r.kind == ROUTE_LOCAL => true,
        Some(r) => r.kind != ROUTE_VIP && !in_pools(&f.saddr),
        None => true,
    }
}
