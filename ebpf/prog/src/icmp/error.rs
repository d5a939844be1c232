//! ICMP errors about translated flows: led to the backend, or from it to the client.

use ebpf_abi::{
    BACKEND_EARLY, Backend, C_ICMP_TRANSLATED, C_OVERLAY_RETURN, D_CHECKSUM, D_NO_ROUTE, Flow, NodeCfg, ROUTE_NODE, RevVal,
};

use crate::{
    count::{count, drop},
    deliver::Target,
    encap,
    icmp::quote,
    maps::{FORWARD, REVERSE, Scratch, scratch},
    parse::{Packet, TCP, of_family, same},
    pick,
    reverse::route_of,
    skb::{NEXT, Skb},
};

/// The other direction of a flow.
#[inline(always)]
fn turn(f: &Flow, into: &mut Flow) {
    (into.saddr, into.daddr) = (f.daddr, f.saddr);
    (into.sport, into.dport) = (f.dport, f.sport);
    into.net_proto = f.net_proto;
}

/// An error about what a service sent to its client: to the backend of that flow. [`NEXT`]: not about a service.
#[inline(always)]
pub(crate) fn to_service(skb: Skb, cfg: &NodeCfg, p: &Packet, vni: u32) -> i32 {
    let Some(s) = scratch() else { return NEXT };
    let mut tport = 0;
    let Some(b) = backend_of(skb, p, vni, s, &mut tport) else {
        return NEXT;
    };
    let early = b.vtep != 0 && b.ifindex == BACKEND_EARLY;
    let mut mac = &b.mac;
    if b.vtep == 0 || early {
        let t = Target {
            addr: of_family(p.v6, b.addr4, &b.addr6),
            port: tport,
            ifindex: if early { 0 } else { b.ifindex },
            vni: b.vni,
            mac: b.mac,
        };
        let verdict = to_endpoint(skb, cfg, p, &t, s);
        if !early || verdict != TRANSLATED {
            return verdict;
        }
        match route_of(b.vni, &of_family(p.v6, b.addr4, &b.addr6)) {
            Some(r) if r.kind == ROUTE_NODE => mac = &r.mac,
            _ => return drop(D_NO_ROUTE),
        }
    } else {
        count(C_ICMP_TRANSLATED);
    }
    encap::to_node(skb, cfg, b.vtep, b.vni, mac)
}

/// Reads the error into `s` and finds the backend of its flow.
#[inline(never)]
fn backend_of(skb: Skb, p: &Packet, vni: u32, s: &mut Scratch, tport: &mut u16) -> Option<&'static Backend> {
    if !quote::read(skb, p, vni, &mut s.quoted) || !same(&s.quoted.saddr, &p.flow.daddr) {
        return None;
    }
    turn(&s.quoted, &mut s.arrived.flow);
    s.arrived.vtep = 0;
    let f = &s.arrived.flow;
    let svc = match pick::service(f, vni) {
        Some(svc) => svc,
        None if vni != 0 => pick::wildcard(f, vni)?,
        None => return None,
    };
    *tport = svc.tport;
    match pick::known(f, p.v6) {
        Some(b) => Some(b),
        None => pick::choose(f, p.v6, f.net_proto & 0xff == TCP, svc),
    }
}

/// What [`to_endpoint`] gives for a backend of another node: the packet is translated, and still to be sent there.
const TRANSLATED: i32 = -2;

/// An error about a flow that this node translated, to its backend `t`. `s` holds the quoted flow, and that flow as it
/// arrived. [`NEXT`]: there is no such flow.
#[inline(never)]
pub(crate) fn to_endpoint(skb: Skb, cfg: &NodeCfg, p: &Packet, t: &Target, s: &mut Scratch) -> i32 {
    s.back = s.quoted;
    s.back.saddr = t.addr;
    s.back.net_proto = t.vni << 8 | s.quoted.net_proto & 0xff;
    if t.port != 0 {
        s.back.sport = t.port;
    }
    if let Some(f) = FORWARD.get_ptr(&s.arrived) {
        // SAFETY: an entry of an LRU map stays readable during the run.
        s.back.dport = unsafe { (*f).sport };
    }
    let Some(v) = REVERSE.get_ptr(&s.back) else { return NEXT };
    // SAFETY: as above.
    let v = unsafe { &*v };
    if !same(&v.oaddr, &s.quoted.saddr) || v.oport != s.quoted.sport || v.cport != s.quoted.dport {
        return NEXT;
    }
    s.outer.saddr = p.flow.saddr;
    s.outer.daddr = t.addr;
    if !quote::rewrite(skb, p, &s.quoted, &s.outer, &s.back) {
        return drop(D_CHECKSUM);
    }
    count(C_ICMP_TRANSLATED);
    if t.ifindex == 0 {
        return TRANSLATED;
    }
    if !skb.set_macs(&t.mac, &cfg.mac) {
        return drop(D_CHECKSUM);
    }
    skb.to_peer(t.ifindex)
}

/// An error from the tunnel to the backend `t`: reads what it is about into `s`, as the client's packets had it.
#[inline(never)]
pub(crate) fn read_late(skb: Skb, p: &Packet, vtep: u32, s: &mut Scratch) -> bool {
    if !quote::read(skb, p, p.flow.net_proto >> 8, &mut s.quoted) {
        return false;
    }
    turn(&s.quoted, &mut s.arrived.flow);
    s.arrived.vtep = vtep;
    true
}

/// An error that a backend sends about what it received: becomes the service's. Gives the flow's way back; `None`: not
/// about a translated flow.
#[inline(never)]
pub(crate) fn from_backend(skb: Skb, p: &Packet) -> Option<&'static RevVal> {
    let s = scratch()?;
    if !quote::read(skb, p, p.flow.net_proto >> 8, &mut s.quoted) {
        return None;
    }
    turn(&s.quoted, &mut s.back);
    let r = REVERSE.get_ptr(&s.back)?;
    // SAFETY: an entry of an LRU map stays readable during the run.
    s.way = unsafe { *r };
    if !same(&p.flow.saddr, &s.back.saddr) || !same(&p.flow.daddr, &s.back.daddr) {
        return None;
    }
    let v = &s.way;
    s.inner = Flow {
        saddr: v.caddr,
        daddr: v.oaddr,
        sport: v.cport,
        dport: v.oport,
        net_proto: 0,
    };
    turn(&s.inner, &mut s.outer);
    if !quote::rewrite(skb, p, &s.quoted, &s.outer, &s.inner) {
        return None;
    }
    count(C_ICMP_TRANSLATED);
    Some(&s.way)
}

/// Whether an error from the tunnel comes back from a published port: it quotes what a client sent there.
#[inline(never)]
pub(crate) fn is_return(skb: Skb, p: &Packet) -> bool {
    let Some(s) = scratch() else { return false };
    if !quote::read(skb, p, 0, &mut s.quoted)
        || !same(&s.quoted.daddr, &p.flow.saddr)
        || !same(&s.quoted.saddr, &p.flow.daddr)
    {
        return false;
    }
    let found = pick::service(&s.quoted, 0).is_some();
    if found {
        count(C_OVERLAY_RETURN);
    }
    found
}
