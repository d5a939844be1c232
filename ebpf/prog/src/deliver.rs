//! To an endpoint: translation and what comes back from it, and plain delivery.

use ebpf_abi::{Addr, D_CHECKSUM, Flow, Mac, NodeCfg, REV_HAIRPIN, REV_HOST, REV_OUTSIDE, RevVal};

use crate::{
    count::drop,
    encap, fib, nat,
    parse::{Packet, of_family, same},
    reverse::{self, Client},
    skb::{SHOT, Skb},
};

/// The backend's side.
pub(crate) struct Target {
    /// Address of the packet's family.
    pub(crate) addr: Addr,
    /// Port as on the wire; 0: as the client asked.
    pub(crate) port: u16,
    /// Host side veth; none: it is on another node.
    pub(crate) ifindex: u32,
    /// Network.
    pub(crate) vni: u32,
    /// MAC.
    pub(crate) mac: Mac,
}

/// Translates to the backend, and remembers the way back. `seen`: the client's address as the backend shall see it. Err: the
/// packet ends here.
#[inline(always)]
pub(crate) fn translate(
    skb: Skb,
    cfg: &NodeCfg,
    p: &Packet,
    t: &Target,
    mut seen: Addr,
    mut c: Client,
) -> Result<(), i32> {
    let Some(mac) = skb.src_mac() else { return Err(SHOT) };
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
    if !reverse::remember(p, &mut back, &c) {
        return Err(SHOT);
    }
    let to = Flow {
        saddr: seen,
        daddr: t.addr,
        sport: back.dport,
        dport: tport,
        net_proto: 0,
    };
    if !nat::rewrite(skb, p, &to) {
        return Err(drop(D_CHECKSUM));
    }
    Ok(())
}

/// To a backend of this node: [`translate`], then over to it.
#[inline(always)]
pub(crate) fn to_backend(skb: Skb, cfg: &NodeCfg, p: &Packet, t: &Target, seen: Addr, c: Client) -> i32 {
    match translate(skb, cfg, p, t, seen, c) {
        Ok(()) => plain(skb, cfg, t.ifindex, &t.mac),
        Err(verdict) => verdict,
    }
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
