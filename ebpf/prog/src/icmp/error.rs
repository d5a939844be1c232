//! ICMP errors about translated flows: led to the backend, or from it to the client.

use ebpf_abi::{Backend, C_ICMP_TRANSLATED, C_OVERLAY_RETURN, D_CHECKSUM, D_NO_ROUTE, Flow, NodeCfg, RevVal};

use crate::{
    count::{count, drop},
    deliver, encap,
    icmp::quote,
    maps::{FORWARD, REVERSE, Scratch, scratch},
    parse::{Packet, TCP, of_family, same},
    pick,
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
/// What its parts tell each other lies in the scratch: the stacks of a walk and of all it calls share 512 octets.
#[inline(always)]
pub(crate) fn to_service(skb: Skb, cfg: &NodeCfg, p: &Packet, vni: u32) -> i32 {
    let Some(b) = backend_of(skb, p, vni) else {
        return NEXT;
    };
    match aim(p, b) {
        LATE => count(C_ICMP_TRANSLATED),
        NOW => {
            let verdict = to_endpoint(skb, cfg, p);
            if verdict != TRANSLATED {
                return verdict;
            }
        }
        _ => return drop(D_NO_ROUTE),
    }
    let Some(s) = scratch() else { return NEXT };
    encap::to_node(skb, cfg, s.vtep, s.to.vni, &s.to.mac)
}

/// Reads the error and finds the backend of its flow.
#[inline(never)]
fn backend_of(skb: Skb, p: &Packet, vni: u32) -> Option<&'static Backend> {
    let s = scratch()?;
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
    let b = match pick::known(f, p.v6) {
        Some(b) => b,
        None => pick::choose(f, p.v6, f.net_proto & 0xff == TCP, svc)?,
    };
    s.to.port = pick::port_at(svc, f, b, p.v6);
    Some(b)
}

/// What [`aim`] says: the backend's node translates, this one does, its node is not known.
const LATE: u32 = 0;
const NOW: u32 = 1;
const NOWHERE: u32 = 2;

/// Makes a backend the one that the error is for.
#[inline(never)]
fn aim(p: &Packet, b: &Backend) -> u32 {
    let Some(s) = scratch() else { return NOWHERE };
    s.vtep = b.vtep;
    s.to.addr = of_family(p.v6, b.addr4, &b.addr6);
    (s.to.vni, s.to.mac) = (b.vni, b.mac);
    if b.vtep == 0 {
        s.to.ifindex = b.ifindex;
        return NOW;
    }
    s.to.ifindex = 0;
    if !pick::is_early(b) {
        return LATE;
    }
    match pick::node_of(b, p.v6) {
        Some(r) => s.to.mac = r.mac,
        None => return NOWHERE,
    }
    NOW
}

/// What [`to_endpoint`] gives for a backend of another node: the packet is translated, and still to be sent there.
const TRANSLATED: i32 = -2;

/// An error about a flow that this node translated, to its backend. The scratch holds whom it is for, the quoted flow, and
/// that flow as it arrived. [`NEXT`]: there is no such flow.
#[inline(never)]
pub(crate) fn to_endpoint(skb: Skb, cfg: &NodeCfg, p: &Packet) -> i32 {
    let Some(s) = scratch() else { return NEXT };
    s.back = s.quoted;
    s.back.saddr = s.to.addr;
    s.back.net_proto = s.to.vni << 8 | s.quoted.net_proto & 0xff;
    if s.to.port != 0 {
        s.back.sport = s.to.port;
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
    s.outer.daddr = s.to.addr;
    if !quote::rewrite(skb, p, &s.quoted, &s.outer, &s.back) {
        return drop(D_CHECKSUM);
    }
    count(C_ICMP_TRANSLATED);
    if s.to.ifindex == 0 {
        return TRANSLATED;
    }
    deliver::plain(skb, cfg, s.to.ifindex, &s.to.mac)
}

/// An error from the tunnel to a backend: reads what it is about into `s`, as the client's packets had it.
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
