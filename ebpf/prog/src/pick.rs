//! Choosing a backend: the flow's own, else the service's Maglev row.

use ebpf_abi::{
    Addr, AffVal, BACKEND_ACTIVE, BACKEND_EARLY, BACKEND_GONE, Backend, D_SPOOF_WIRE, Flow, ROUTE_NODE, RouteVal,
    SVC_NETWORKS, SVC_TARGETS, SvcKey, SvcVal, TARGET_HERE, TargetKey,
};

use crate::{
    clock::now,
    count::count,
    maps::{AFFINITY, BACKENDS, LUT, POOLS, SERVICES, TARGETS, pool_key},
    parse::{Packet, TCP, of_family},
    reverse::route_of,
};

/// Cells of the row that are tried before a client is refused: between a change of a backend's state and the row's
/// own change some cells lead to backends that take no new flows.
const TRIES: u32 = 4;

/// Outcome of [`pick`].
pub(crate) enum Picked {
    /// This one.
    Backend(&'static Backend),
    /// Nobody: refuse the client.
    Nobody,
    /// The source cannot be: drop.
    Spoofed,
}

/// The service at an address and port, if any.
#[inline(always)]
pub(crate) fn service(f: &Flow, vni: u32) -> Option<&'static SvcVal> {
    let key = SvcKey {
        addr: f.daddr,
        vni,
        port: f.dport,
        proto: f.net_proto as u16 & 0xff,
    };
    // SAFETY: an entry of a preallocated-on-demand hash stays readable during the run (freed after a grace period).
    SERVICES.get_ptr(key).map(|v| unsafe { &*v })
}

/// The published service that a task of network `vni` asks, if any.
#[inline(always)]
pub(crate) fn published(f: &Flow, vni: u32) -> Option<&'static SvcVal> {
    let svc = service(f, 0)?;
    if svc.flags & SVC_NETWORKS != 0 {
        if let Some(own) = service(f, vni) {
            return Some(own);
        }
    }
    Some(svc)
}

/// The port of a backend of this node for what the client asked, as on the wire; 0: the same.
#[inline(always)]
pub(crate) fn port_at(svc: &SvcVal, f: &Flow, b: &Backend, v6: bool) -> u16 {
    if svc.flags & SVC_TARGETS != 0 {
        let own = own_port(f, b, v6);
        if own != 0 {
            return own as u16;
        }
    }
    svc.tport
}

/// The port of a backend of this node that is not its service's; 0: it has the service's.
#[inline(never)]
fn own_port(f: &Flow, b: &Backend, v6: bool) -> u32 {
    let key = TargetKey {
        addr: of_family(v6, b.addr4, &b.addr6),
        vni: b.vni,
        port: f.dport,
        proto: f.net_proto as u16 & 0xff | TARGET_HERE,
    };
    // SAFETY: as in `service`.
    TARGETS.get_ptr(key).map_or(0, |t| unsafe { u32::from((*t).tport) })
}

/// Whether packets for a backend are translated here although it is elsewhere.
#[inline(always)]
pub(crate) fn is_early(b: &Backend) -> bool {
    b.vtep != 0 && b.ifindex == BACKEND_EARLY
}

/// The node of a backend elsewhere, as the network's routes know it.
#[inline(never)]
pub(crate) fn node_of(b: &Backend, v6: bool) -> Option<&'static RouteVal> {
    let addr = of_family(v6, b.addr4, &b.addr6);
    route_of(b.vni, &addr).filter(|r| r.kind == ROUTE_NODE && r.vtep == b.vtep)
}

/// The published service that a packet comes back from, if any.
#[inline(always)]
pub(crate) fn published_source(f: &Flow) -> bool {
    let key = SvcKey {
        addr: f.saddr,
        vni: 0,
        port: f.sport,
        proto: f.net_proto as u16 & 0xff,
    };
    SERVICES.get_ptr(key).is_some()
}

/// The entry for every port of a VIP.
#[inline(always)]
pub(crate) fn wildcard(f: &Flow, vni: u32) -> Option<&'static SvcVal> {
    let key = SvcKey {
        addr: f.daddr,
        vni,
        port: 0,
        proto: 0,
    };
    // SAFETY: as in `service`.
    SERVICES.get_ptr(key).map(|v| unsafe { &*v })
}

/// Chooses the backend of a packet. `WIRE`: it came from outside, where no source may lie in our pools.
#[inline(always)]
pub(crate) fn pick<const WIRE: bool>(p: &Packet, svc: &SvcVal) -> Picked {
    if !p.syn {
        if let Some(b) = known(&p.flow, p.v6) {
            return Picked::Backend(b);
        }
    }
    if WIRE && in_pools(&p.flow.saddr) {
        count(D_SPOOF_WIRE);
        return Picked::Spoofed;
    }
    // An established TCP flow may go on to a draining backend.
    match choose(&p.flow, p.v6, !p.syn && p.proto() == TCP, svc) {
        Some(b) => Picked::Backend(b),
        None => Picked::Nobody,
    }
}

/// The backend that the flow has, while it is active or draining.
#[inline(always)]
pub(crate) fn known(f: &Flow, v6: bool) -> Option<&'static Backend> {
    let a = AFFINITY.get_ptr_mut(f)?;
    // SAFETY: see `service`; a lost race on the timestamp costs nothing.
    let cell = unsafe {
        let n = now();
        if (*a).ts != n {
            (*a).ts = n;
        }
        (*a).backend
    };
    let b = backend(cell, v6)?;
    (b.state != BACKEND_GONE).then_some(b)
}

/// A cell of the array that has an address of the family.
#[inline(always)]
fn backend(cell: u32, v6: bool) -> Option<&'static Backend> {
    let b = BACKENDS.get_ptr(cell)?;
    // SAFETY: a cell of an array map lives as long as the map.
    let b = unsafe { &*b };
    let has = if v6 {
        b.addr6.w[0] | b.addr6.w[1] | b.addr6.w[2] | b.addr6.w[3]
    } else {
        b.addr4
    };
    (has != 0).then_some(b)
}

/// Whether an address lies inside one of our networks.
#[inline(always)]
pub(crate) fn in_pools(a: &Addr) -> bool {
    POOLS.get(&pool_key(a)).is_some()
}

/// A new flow, or one whose entry was lost: Maglev leads a flow to the same backend on every node.
#[inline(always)]
pub(crate) fn choose(f: &Flow, v6: bool, established: bool, svc: &SvcVal) -> Option<&'static Backend> {
    let (off, len) = (svc.lut_off, svc.lut_len);
    if len == 0 {
        return None;
    }
    let mut h = hash(f, v6);
    let mut n = 0;
    while n < TRIES {
        n += 1;
        if let Some(cell) = LUT.get(off.wrapping_add(h % len)) {
            let cell = *cell;
            if let Some(b) = backend(cell, v6) {
                if b.state == BACKEND_ACTIVE || (established && b.state != BACKEND_GONE) {
                    let _ = AFFINITY.insert(
                        f,
                        AffVal {
                            backend: cell,
                            ts: now(),
                        },
                        0,
                    );
                    return Some(b);
                }
            }
        }
        h = h.wrapping_mul(0x9e37_79b1).rotate_left(15).wrapping_add(n);
    }
    None
}

/// Hash of a flow, the same on every node.
#[inline(always)]
fn hash(f: &Flow, v6: bool) -> u32 {
    let ports = u32::from_be(u32::from(f.sport) | u32::from(f.dport) << 16);
    let (mut a, mut b, mut c) = (f.saddr.w[3], f.daddr.w[3], ports ^ f.net_proto);
    if v6 {
        let h = mix(f.saddr.w[0], f.saddr.w[1], f.saddr.w[2]);
        a ^= h;
        b ^= mix(f.daddr.w[0], f.daddr.w[1], f.daddr.w[2] ^ h);
        c = c.wrapping_add(h);
    }
    mix(a, b, c)
}

/// `jhash_3words` of include/linux/jhash.h.
#[inline(always)]
fn mix(mut a: u32, mut b: u32, mut c: u32) -> u32 {
    const INIT: u32 = 0xdead_beef;
    (a, b, c) = (a.wrapping_add(INIT), b.wrapping_add(INIT), c.wrapping_add(INIT));
    c = (c ^ b).wrapping_sub(b.rotate_left(14));
    a = (a ^ c).wrapping_sub(c.rotate_left(11));
    b = (b ^ a).wrapping_sub(a.rotate_left(25));
    c = (c ^ b).wrapping_sub(b.rotate_left(16));
    a = (a ^ c).wrapping_sub(c.rotate_left(4));
    b = (b ^ a).wrapping_sub(a.rotate_left(14));
    (c ^ b).wrapping_sub(b.rotate_left(24))
}
