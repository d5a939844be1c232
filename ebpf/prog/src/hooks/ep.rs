//! Ingress of an endpoint's host side veth: what a task sends.

use ebpf_abi::{
    C_EP_OUTSIDE, C_EP_REPLY, C_EP_ROUTED, C_EP_SERVICE, D_CHECKSUM, D_INTERNAL, D_MALFORMED, D_METADATA,
    D_NO_ENDPOINT, D_NO_ROUTE, D_NO_TARGET, D_SPOOF, EP_BACKEND, EP_EXTRA, EP_INTERNAL, EpAddrKey, EpCfg, EpExtraKey,
    NodeCfg, ROUTE_LOCAL, ROUTE_NODE, ROUTE_VIP, RouteVal,
};

use crate::{
    clock::now,
    count::{count, drop},
    deliver, encap,
    hooks::forward,
    icmp::{answer, error},
    maps::{EP_BY_ADDR, EP_CONFIG, EP_EXTRA as EXTRA, REVERSE, config},
    neighbour,
    parse::{ARP, Packet, Seen, UDP, parse, same},
    pick::{Picked, in_pools, pick, published, service, wildcard},
    reverse::{Client, route_of},
    skb::{NEXT, SHOT, Skb, same_mac},
};

/// 169.254.169.254 in the host's order.
const METADATA: u32 = 0xa9fe_a9fe;
/// UDP port pairs of a DHCP server's answers, in the host's order: 67 -> 68, 547 -> 546.
const DHCP_SERVER: u32 = 67 << 16 | 68;
const DHCPV6_SERVER: u32 = 547 << 16 | 546;

#[inline(always)]
pub(crate) fn run(skb: Skb) -> i32 {
    let (Some(cfg), Some(ep)) = (config(), EP_CONFIG.get_ptr(skb.ifindex())) else {
        return drop(D_NO_ENDPOINT);
    };
    // SAFETY: an entry of a hash is freed after a grace period.
    let ep = unsafe { &*ep };
    let mut p = Packet::default();
    let seen = parse(skb, ep.vni, &mut p);
    let Some(src) = skb.src_mac() else {
        return drop(D_MALFORMED);
    };
    if !same_mac(&src, &ep.mac) || skb.vlan_present() != 0 {
        return drop(D_SPOOF);
    }
    match seen {
        Seen::NotIp if p.ethertype == ARP => return neighbour::arp(skb, cfg, ep),
        Seen::NotIp => return SHOT,
        Seen::Bad => return drop(D_MALFORMED),
        Seen::Icmp if p.v6 => {
            let mut kind = 0u8;
            if !skb.load(p.l4, &mut kind) {
                return drop(D_MALFORMED);
            }
            if matches!(kind, 133..=137) {
                return neighbour::discovery(skb, cfg, ep, &p, kind);
            }
        }
        _ => {}
    }
    if !owns(skb, ep, &p) {
        return foreign(ep, &p);
    }
    if let Some(verdict) = fenced(&p, seen) {
        return verdict;
    }
    if ep.flags & EP_BACKEND != 0 {
        let way = match seen {
            Seen::Ports => match REVERSE.get_ptr_mut(&p.flow) {
                // SAFETY: an entry of an LRU map stays readable during the run; a lost race on the timestamp costs
                // nothing.
                Some(v) => {
                    let v = unsafe { &mut *v };
                    let n = now();
                    if v.ts != n {
                        v.ts = n;
                    }
                    if !deliver::translate_back(skb, &p, v) {
                        return drop(D_CHECKSUM);
                    }
                    Some(&*v)
                }
                None => None,
            },
            Seen::Icmp => error::from_backend(skb, &p),
            _ => None,
        };
        if let Some(v) = way {
            count(C_EP_REPLY);
            return deliver::send_back(skb, cfg, ep.vni, p.kind(), v);
        }
    }
    let svc = match route_of(ep.vni, &p.flow.daddr) {
        Some(r) if r.kind == ROUTE_VIP => {
            if seen != Seen::Ports {
                return vip_control(skb, cfg, &p, seen);
            }
            match service(&p.flow, ep.vni) {
                Some(s) => s,
                None => match wildcard(&p.flow, ep.vni) {
                    Some(s) => s,
                    None => return answer::refuse(skb, &p),
                },
            }
        }
        Some(r) => return inside(skb, cfg, ep, &p, seen, r),
        None => {
            if ep.flags & EP_INTERNAL != 0 {
                return drop(D_INTERNAL);
            }
            // A published port of this node, or the world through the host's stack.
            p.flow.net_proto &= 0xff;
            match if seen == Seen::Ports {
                published(&p.flow, ep.vni)
            } else {
                None
            } {
                Some(s) => s,
                None if in_pools(&p.flow.daddr) => {
                    // The host has routes to its own tasks of every network: networks do not meet there.
                    count(D_NO_ROUTE);
                    return unreachable(skb, &p, seen);
                }
                None => {
                    count(C_EP_OUTSIDE);
                    return NEXT;
                }
            }
        }
    };
    match pick::<false>(&p, svc) {
        Picked::Backend(b) => {
            count(C_EP_SERVICE);
            let c = Client {
                vtep: 0,
                ifindex: skb.ifindex(),
                mac: [0; 3],
                flags: 0,
            };
            forward::<true>(skb, cfg, &p, svc, b, p.flow.saddr, c)
        }
        Picked::Nobody => answer::refuse(skb, &p),
        Picked::Spoofed => SHOT,
    }
}

/// Whether the source is one of the endpoint's own addresses.
#[inline(always)]
fn owns(skb: Skb, ep: &EpCfg, p: &Packet) -> bool {
    let own = if p.v6 {
        same(&p.flow.saddr, &ep.addr6) && ep.addr6.w[0] | ep.addr6.w[1] | ep.addr6.w[2] | ep.addr6.w[3] != 0
    } else {
        p.flow.saddr.w[3] == ep.addr4 && ep.addr4 != 0
    };
    own || (ep.flags & EP_EXTRA != 0
        && EXTRA
            .get_ptr(EpExtraKey {
                addr: p.flow.saddr,
                ifindex: skb.ifindex(),
            })
            .is_some())
}

/// Not its own: what belongs to the link (multicast reports, its link-local address) ends quietly.
#[inline(never)]
fn foreign(ep: &EpCfg, p: &Packet) -> i32 {
    let unspecified = p.flow.saddr.w[0] | p.flow.saddr.w[1] | p.flow.saddr.w[3] == 0;
    if p.v6 && (same(&p.flow.saddr, &ep.link6) || unspecified) {
        return SHOT;
    }
    drop(D_SPOOF)
}

/// Destinations that never leave the link, and the cloud's metadata address.
#[inline(always)]
fn fenced(p: &Packet, seen: Seen) -> Option<i32> {
    let ports = u32::from(u16::from_be(p.flow.sport)) << 16 | u32::from(u16::from_be(p.flow.dport));
    if seen == Seen::Ports && p.proto() == UDP && (ports == DHCP_SERVER || ports == DHCPV6_SERVER) {
        return Some(drop(D_SPOOF));
    }
    if p.v6 {
        let w = u32::from_be(p.flow.daddr.w[0]);
        // ff00::/8, fe80::/10, and ::/96 with the unspecified and the loopback address.
        let low = p.flow.daddr.w[0] | p.flow.daddr.w[1] | p.flow.daddr.w[2] == 0;
        return (w >> 24 == 0xff || w >> 22 == 0xfe80 >> 6 || low).then_some(SHOT);
    }
    let w = u32::from_be(p.flow.daddr.w[3]);
    if w >> 16 == METADATA >> 16 {
        return Some(if w == METADATA { drop(D_METADATA) } else { SHOT });
    }
    // 224.0.0.0/4, 240.0.0.0/4 with the broadcast address, 127.0.0.0/8, 0.0.0.0/8.
    (w >> 29 == 7 || w >> 24 == 127 || w >> 24 == 0).then_some(SHOT)
}

/// Within the network, to an endpoint.
#[inline(always)]
fn inside(skb: Skb, cfg: &NodeCfg, ep: &EpCfg, p: &Packet, seen: Seen, r: &RouteVal) -> i32 {
    match r.kind {
        ROUTE_NODE => {
            count(C_EP_ROUTED);
            encap::to_node_checked(skb, cfg, p, r.vtep, ep.vni, &r.mac)
        }
        ROUTE_LOCAL => {
            let Some(e) = EP_BY_ADDR.get_ptr(EpAddrKey {
                addr: p.flow.daddr,
                vni: ep.vni,
            }) else {
                count(D_NO_ENDPOINT);
                return unreachable(skb, p, seen);
            };
            // SAFETY: as above.
            let (ifindex, mac) = unsafe { ((*e).ifindex, (*e).mac) };
            if p.syn {
                super::overlay::forget(&p.flow);
            }
            count(C_EP_ROUTED);
            deliver::plain(skb, cfg, ifindex, &mac)
        }
        _ => {
            count(D_NO_ROUTE);
            unreachable(skb, p, seen)
        }
    }
}

/// Tells the sender, unless it speaks of an error itself (RFC 1122 3.2.2).
#[inline(always)]
fn unreachable(skb: Skb, p: &Packet, seen: Seen) -> i32 {
    let mut kind = 0u8;
    if seen == Seen::Icmp && (!skb.load(p.l4, &mut kind) || kind != if p.v6 { 128 } else { 8 }) {
        return SHOT;
    }
    answer::unreachable(skb, p)
}

/// Ping of a VIP, and errors about what it sent.
#[inline(never)]
fn vip_control(skb: Skb, cfg: &NodeCfg, p: &Packet, seen: Seen) -> i32 {
    let mut kind = 0u8;
    if seen != Seen::Icmp || !skb.load(p.l4, &mut kind) {
        return drop(D_NO_TARGET);
    }
    if kind == if p.v6 { 128 } else { 8 } {
        return answer::echo(skb, p);
    }
    match error::to_service(skb, cfg, p, p.flow.net_proto >> 8) {
        NEXT => drop(D_NO_TARGET),
        verdict => verdict,
    }
}
