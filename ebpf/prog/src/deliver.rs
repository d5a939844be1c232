//! To an endpoint of this node: late translation, and plain delivery.

use ebpf_abi::{Addr, D_CHECKSUM, Flow, Mac, NodeCfg, REV_HAIRPIN};

use crate::{
    count::drop,
    nat,
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
    /// Host side veth.
    pub(crate) ifindex: u32,
    /// Network.
    pub(crate) vni: u32,
    /// MAC.
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
    if !reverse::remember(p, &mut back, &c) || !skb.set_macs(&t.mac, &cfg.mac) {
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
    skb.to_peer(t.ifindex)
}

/// Hands a packet over as it is.
#[inline(always)]
pub(crate) fn plain(skb: Skb, cfg: &NodeCfg, ifindex: u32, mac: &Mac) -> i32 {
    if !skb.set_macs(mac, &cfg.mac) {
        return SHOT;
    }
    skb.to_peer(ifindex)
}
