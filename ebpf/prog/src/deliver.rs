//! To an endpoint: translation and what comes back from it, and plain delivery.

use ebpf_abi::{
    Addr, C_EARLY, D_CHECKSUM, D_NO_ROUTE, Flow, Mac, NodeCfg, REV_HAIRPIN, REV_HOST, REV_OUTSIDE, ROUTE_NODE, RevVal,
};

use crate::{
    count::{count, drop},
    encap, fib, nat,
    parse::{Packet, of_family, same},
    reverse::{self, Client, route_of},
    skb::{SHOT, Skb},
};

/// The backend's side.
pub(crate) struct Target {
    /// Address of the packet's family.
    pub(crate) addr: Addr,
    /// Port as on the wire; 0: as the client asked.
    pub(crate) port: u16,
    /// Data-path address of its node as on the wire; 0: this node.
    pub(crate) vtep: u32,
    /// Host side veth, on this node.
    pub(crate) ifindex: u32,
    /// Network.
    pub(crate) vni: u32,
    /// MAC, on this node.
    pub(crate) mac: Mac,
}

/// Translates to the backend, remembers the way back, and hands the packet over. `seen`: the client's address as the
/// backend shall see it.
#[inline(always)]
pub(crate) fn to_backend(skb: Skb, cfg: &NodeCfg, p: &Packet, t: &Target, mut seen: Addr, mut c: Client) -> i32 {
    let Some(mac) = skb.src_mac() else { return SHOT };
    c.mac = mac;
    let tport = if t.port == 0 { p.flow.dport } else { t.port };
    if same(&seen, &t.addr) {
        // A task that reaches itself: with its own address as the source the reply would never leave it.
        seen = of_family(p.v6, cfg.hairpin4, &cfg.hairpin6);
        c.flags |= REV_HAIRPIN;
    }
    let mut back = Flow {
        saddr: t.addr,
        daddr: seen,
        sport: tport,
        dport: p.flow.sport,
        net_proto: t.vni << 8 | p.proto(),
    };
    let node = match t.vtep {
        0 => None,
        _ => match route_of(t.vni, &t.addr) {
            Some(r) if r.kind == ROUTE_NODE && r.vtep == t.vtep => Some(r),
            _ => return drop(D_NO_ROUTE),
        },
    };
    if !reverse::remember(p, &mut back, &c) || (node.is_none() && !skb.set_macs(&t.mac, &cfg.mac)) {
        return SHOT;
    }
    let to = Flow {
        saddr: seen,
        daddr: t.addr,
        sport: back.dport,
        dport: tport,
        net_proto: 0,
    };
    if !nat::rewrite(skb, p, &to) {
        return drop(D_CHECKSUM);
    }
    if let Some(r) = node {
        count(C_EARLY);
        return encap::to_node(skb, cfg, r.vtep, t.vni, &r.mac);
    }
    skb.to_peer(t.ifindex)
}

/// A backend's reply becomes the service's.
#[inline(always)]
pub(crate) fn translate_back(skb: Skb, p: &Packet, v: &RevVal) -> bool {
    let to = Flow {
        saddr: v.oaddr,
        daddr: v.caddr,
        sport: v.oport,
        dport: v.cport,
        net_proto: 0,
    };
    nat::rewrite(skb, p, &to)
}

/// To the client of a translated flow. `kind`: the packet's, as [`fib::route`] takes it.
#[inline(always)]
pub(crate) fn send_back(skb: Skb, cfg: &NodeCfg, vni: u32, kind: u32, v: &RevVal) -> i32 {
    if v.flags & REV_HAIRPIN != 0 {
        return plain(skb, cfg, skb.ifindex(), &v.cmac);
    }
    if v.vtep != 0 {
        return encap::to_node(skb, cfg, v.vtep, vni, &v.cmac);
    }
    if v.flags & REV_HOST != 0 {
        return fib::to_host(skb);
    }
    if v.flags & REV_OUTSIDE != 0 {
        return fib::route(skb, kind, &v.oaddr, &v.caddr, nat::pair(v.oport, v.cport));
    }
    plain(skb, cfg, v.ifindex, &v.cmac)
}

/// Hands a packet over as it is.
#[inline(always)]
pub(crate) fn plain(skb: Skb, cfg: &NodeCfg, ifindex: u32, mac: &Mac) -> i32 {
    if !skb.set_macs(mac, &cfg.mac) {
        return SHOT;
    }
    skb.to_peer(ifindex)
}
