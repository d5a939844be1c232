//! Ingress of the external VXLAN device: what other nodes send.

use aya_ebpf::helpers::generated::bpf_skb_get_tunnel_key;
use ebpf_abi::{
    Addr, C_EARLY_RETURN, C_OVERLAY_EARLY, C_OVERLAY_PLAIN, C_OVERLAY_RETURN, C_OVERLAY_SERVICE, CFG_EARLY, D_CHECKSUM,
    D_MALFORMED, D_NO_ENDPOINT, D_NO_TARGET, D_NOT_MEMBER, D_SPOOF_MEMBER, D_TUNNEL, EpAddrKey, EpAddrVal, EpMacKey,
    EpMacVal, Flow, NodeCfg, REV_HOST, REV_OUTSIDE, ROUTE_NODE, ROUTE_VIP, RevVal, TARGET_EARLY, TargetKey,
};

use crate::{
    clock::now,
    count::{count, drop},
    deliver::{self, Target},
    encap::KEY_5_15,
    fib,
    icmp::error,
    maps::{EP_BY_ADDR, EP_BY_MAC, MEMBERS, REVERSE, TARGETS, config, scratch},
    nat,
    parse::{Packet, Seen, of_family, parse},
    pick::published_source,
    reverse::{Client, route_of},
    skb::{NEXT, SHOT, Skb, same_mac},
};

/// 127.0.0.1 as on the wire.
const LOCALHOST: u32 = u32::from_ne_bytes([127, 0, 0, 1]);

#[inline(always)]
pub(crate) fn run(skb: Skb) -> i32 {
    let Some(cfg) = config() else { return SHOT };
    let mut key = [0u32; KEY_5_15 as usize / 4];
    // SAFETY: `bpf_tunnel_key` as Linux 5.15 knows it: the VNI, the remote address, and what is not looked at.
    if unsafe { bpf_skb_get_tunnel_key(skb.raw(), key.as_mut_ptr().cast(), KEY_5_15, 0) } != 0 {
        return drop(D_TUNNEL);
    }
    // Without BPF_F_TUNINFO_IPV6 the helper fails on an IPv6 tunnel.
    let (vni, vtep) = (key[0], key[1].to_be());
    if MEMBERS.get_ptr(vtep).is_none() {
        return drop(D_NOT_MEMBER);
    }
    walk(skb, cfg, vni, vtep)
}

/// A packet out of the tunnel, sent by member `vtep` into network `vni`.
#[inline(always)]
pub(super) fn walk(skb: Skb, cfg: &NodeCfg, vni: u32, vtep: u32) -> i32 {
    let mut p = Packet::default();
    let seen = parse(skb, vni, &mut p);
    if matches!(seen, Seen::Bad | Seen::NotIp) {
        return drop(D_MALFORMED);
    }
    let Some(dst) = skb.dst_mac() else {
        return drop(D_MALFORMED);
    };
    let t = if same_mac(&dst, &cfg.mac) {
        let e = match to_this_node(skb, cfg, &p, seen, vtep) {
            Ok(verdict) => return verdict,
            Err(e) => e,
        };
        match seen {
            Seen::Ports if is_early_target(&p) => {}
            Seen::Icmp => return early_error(skb, cfg, &p, vtep, e),
            _ => return drop(D_NO_TARGET),
        }
        count(C_OVERLAY_EARLY);
        Target {
            addr: p.flow.daddr,
            port: 0,
            ifindex: e.ifindex,
            vni,
            mac: e.mac,
        }
    } else {
        let Some(e) = EP_BY_MAC.get_ptr(EpMacKey { vni, mac: dst, pad: 0 }) else {
            return drop(D_NO_ENDPOINT);
        };
        // SAFETY: an entry of a hash is freed after a grace period.
        let e = unsafe { &*e };
        match seen {
            Seen::Ports => {}
            Seen::Icmp => return late_error(skb, cfg, &p, vtep, e),
            _ => return drop(D_NO_TARGET),
        }
        let addr = of_family(p.v6, e.addr4, &e.addr6);
        let Some(port) = target(&p.flow, &addr, p.flow.dport) else {
            return drop(D_NO_TARGET);
        };
        count(C_OVERLAY_SERVICE);
        Target {
            addr,
            port,
            ifindex: e.ifindex,
            vni,
            mac: dst,
        }
    };
    // A service packet: it names its backend by MAC and still bears the address that the client connected to, or comes
    // translated.
    let c = Client {
        vtep,
        ifindex: 0,
        mac: [0; 3],
        flags: REV_OUTSIDE,
    };
    deliver::to_backend(skb, cfg, &p, &t, p.flow.saddr, c)
}

/// Plain traffic between tasks, and what comes back to a client here. Err: to an endpoint, from outside by a node that
/// translates itself.
#[inline(always)]
fn to_this_node(skb: Skb, cfg: &NodeCfg, p: &Packet, seen: Seen, vtep: u32) -> Result<i32, &'static EpAddrVal> {
    let vni = p.flow.net_proto >> 8;
    let early = cfg.flags & CFG_EARLY != 0;
    // Who begins a flow from there is no reply of an older one.
    if early && !p.syn {
        let verdict = early_return(skb, cfg, p, seen, vtep);
        if verdict != NEXT {
            return Ok(verdict);
        }
    }
    // Addresses do not overlap within a cluster, so one look under network 0 tells the endpoint and its network.
    let e = EP_BY_ADDR.get_ptr(EpAddrKey {
        addr: p.flow.daddr,
        vni: 0,
    });
    if let Some(e) = e {
        // SAFETY: as above.
        let e = unsafe { &*e };
        let outside = e.vni == vni && {
            match route_of(vni, &p.flow.saddr) {
                Some(r) => {
                    // A VIP's replies were translated back by the backend's node.
                    if !(r.kind == ROUTE_NODE && r.vtep == vtep || r.kind == ROUTE_VIP) {
                        return Ok(drop(D_SPOOF_MEMBER));
                    }
                    if p.syn {
                        // The same client port may have served a translated flow before.
                        forget(&p.flow);
                    }
                    count(C_OVERLAY_PLAIN);
                    return Ok(deliver::plain(skb, cfg, e.ifindex, &e.mac));
                }
                None => true,
            }
        };
        if is_return(skb, p, seen) {
            return Ok(deliver::plain(skb, cfg, e.ifindex, &e.mac));
        }
        return if early && outside {
            Err(e)
        } else {
            Ok(drop(D_SPOOF_MEMBER))
        };
    }
    if !is_return(skb, p, seen) {
        return Ok(drop(D_NO_ENDPOINT));
    }
    Ok(to_client(skb, cfg, p))
}

/// What a backend of a node that does not translate sends back: it becomes the service's here. [`NEXT`]: no such flow.
/// Its rare and its large parts are functions, one after the other: their stacks are not added up.
#[inline(always)]
fn early_return(skb: Skb, cfg: &NodeCfg, p: &Packet, seen: Seen, vtep: u32) -> i32 {
    let v = match seen {
        Seen::Ports => {
            let Some(v) = REVERSE.get_ptr_mut(&p.flow) else {
                return NEXT;
            };
            // SAFETY: an entry of an LRU map stays readable during the run; a lost race on the timestamp costs nothing.
            let v = unsafe { &mut *v };
            if !is_of_node(&p.flow, vtep) {
                return drop(D_SPOOF_MEMBER);
            }
            let n = now();
            if v.ts != n {
                v.ts = n;
            }
            if !translate_back(skb, p, v) {
                return drop(D_CHECKSUM);
            }
            &*v
        }
        Seen::Icmp => match error::from_backend(skb, p) {
            Some(v) if is_of_node(&p.flow, vtep) => v,
            Some(_) => return drop(D_SPOOF_MEMBER),
            None => return NEXT,
        },
        _ => return NEXT,
    };
    count(C_EARLY_RETURN);
    // Made here, so the client is here.
    if v.flags & REV_HOST != 0 {
        return fib::to_host(skb);
    }
    if v.flags & REV_OUTSIDE != 0 {
        return fib::route(skb, p.kind(), &v.oaddr, &v.caddr, nat::pair(v.oport, v.cport));
    }
    deliver::plain(skb, cfg, v.ifindex, &v.cmac)
}

#[inline(never)]
fn translate_back(skb: Skb, p: &Packet, v: &RevVal) -> bool {
    deliver::translate_back(skb, p, v)
}

/// Whether the source of a flow is a member's, within the flow's network.
#[inline(never)]
fn is_of_node(f: &Flow, vtep: u32) -> bool {
    match route_of(f.net_proto >> 8, &f.saddr) {
        Some(r) => r.kind == ROUTE_NODE && r.vtep == vtep,
        None => false,
    }
}

/// An error of a client outside about what the backend `e` sent.
#[inline(never)]
fn early_error(skb: Skb, cfg: &NodeCfg, p: &Packet, vtep: u32, e: &EpAddrVal) -> i32 {
    let Some(s) = scratch() else { return SHOT };
    if !error::read_late(skb, p, vtep, s) {
        return drop(D_NO_TARGET);
    }
    s.to.addr = p.flow.daddr;
    s.to.port = 0;
    (s.to.ifindex, s.to.vni, s.to.mac) = (e.ifindex, e.vni, e.mac);
    match error::to_endpoint(skb, cfg, p) {
        NEXT => drop(D_NO_TARGET),
        verdict => verdict,
    }
}

/// Whether the endpoint offers the very port that is asked for.
#[inline(never)]
fn is_early_target(p: &Packet) -> bool {
    let key = TargetKey {
        addr: p.flow.daddr,
        vni: p.flow.net_proto >> 8,
        port: p.flow.dport,
        proto: p.flow.net_proto as u16 & 0xff | TARGET_EARLY,
    };
    TARGETS.get_ptr(key).is_some()
}

/// Whether it comes back from one of our own published ports.
#[inline(always)]
fn is_return(skb: Skb, p: &Packet, seen: Seen) -> bool {
    match seen {
        Seen::Ports => {
            let found = published_source(&p.flow);
            if found {
                count(C_OVERLAY_RETURN);
            }
            found
        }
        Seen::Icmp => error::is_return(skb, p),
        _ => false,
    }
}

/// To a client outside or to a process of this node.
#[inline(always)]
fn to_client(skb: Skb, cfg: &NodeCfg, p: &Packet) -> i32 {
    if !p.v6 && p.flow.saddr.w[3] == LOCALHOST {
        // The process spoke from 127.0.0.1; the backend knew it by the node's address.
        if p.flow.daddr.w[3] != cfg.vtep {
            return drop(D_SPOOF_MEMBER);
        }
        return to_localhost(skb, p);
    }
    fib::route(
        skb,
        p.kind(),
        &p.flow.saddr,
        &p.flow.daddr,
        nat::pair(p.flow.sport, p.flow.dport),
    )
}

#[inline(never)]
fn to_localhost(skb: Skb, p: &Packet) -> i32 {
    let to = Flow {
        daddr: Addr::v4_word(LOCALHOST),
        ..p.flow
    };
    if !nat::rewrite(skb, p, &to) {
        return SHOT;
    }
    fib::to_host(skb)
}

/// Deletes the way back of a translated flow between the same ends.
#[inline(never)]
pub(super) fn forget(f: &Flow) {
    let back = Flow {
        saddr: f.daddr,
        daddr: f.saddr,
        sport: f.dport,
        dport: f.sport,
        net_proto: f.net_proto,
    };
    let _ = REVERSE.remove(back);
}

/// The port that the endpoint offers for what the client asked; 0: the same.
#[inline(always)]
fn target(f: &Flow, addr: &Addr, port: u16) -> Option<u16> {
    let vni = f.net_proto >> 8;
    let key = TargetKey {
        addr: *addr,
        vni,
        port,
        proto: f.net_proto as u16 & 0xff,
    };
    if let Some(t) = TARGETS.get_ptr(key) {
        // SAFETY: as above.
        return Some(unsafe { (*t).tport });
    }
    any_port(f, addr)
}

/// Every port, offered through a VIP alone.
#[inline(never)]
fn any_port(f: &Flow, addr: &Addr) -> Option<u16> {
    let vni = f.net_proto >> 8;
    if route_of(vni, &f.daddr)?.kind != ROUTE_VIP {
        return None;
    }
    let t = TARGETS.get_ptr(TargetKey {
        addr: *addr,
        vni,
        port: 0,
        proto: 0,
    })?;
    // SAFETY: as above.
    Some(unsafe { (*t).tport })
}

/// An error about what the backend sent.
#[inline(never)]
fn late_error(skb: Skb, cfg: &NodeCfg, p: &Packet, vtep: u32, e: &EpMacVal) -> i32 {
    let (Some(s), Some(mac)) = (scratch(), skb.dst_mac()) else {
        return SHOT;
    };
    if !error::read_late(skb, p, vtep, s) {
        return drop(D_NO_TARGET);
    }
    let addr = of_family(p.v6, e.addr4, &e.addr6);
    let Some(port) = target(&s.arrived.flow, &addr, s.arrived.flow.dport) else {
        return drop(D_NO_TARGET);
    };
    (s.to.addr, s.to.port) = (addr, port);
    (s.to.ifindex, s.to.vni, s.to.mac) = (e.ifindex, p.flow.net_proto >> 8, mac);
    match error::to_endpoint(skb, cfg, p) {
        NEXT => drop(D_NO_TARGET),
        verdict => verdict,
    }
}
