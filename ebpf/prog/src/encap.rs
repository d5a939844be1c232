//! Into the tunnel.

use aya_ebpf::{
    bindings::{BPF_F_ZERO_CSUM_TX, bpf_tunnel_key},
    helpers::generated::bpf_skb_set_tunnel_key,
};
use ebpf_abi::{C_TOO_BIG, CFG_DIRECT, D_TUNNEL, Mac, NodeCfg};

use crate::{
    count::{count, drop},
    icmp::answer,
    parse::Packet,
    skb::{ETH, Skb},
    tunnel,
};

/// Octets of `bpf_tunnel_key` that Linux 5.15 knows; the local address after them came with 6.0.
pub(crate) const KEY_5_15: u32 = 28;

/// Wraps the packet for another node: the inner destination MAC says who is meant there, the source is ours.
#[inline(always)]
pub(crate) fn to_node(skb: Skb, cfg: &NodeCfg, vtep: u32, vni: u32, dst: &Mac) -> i32 {
    if cfg.flags & CFG_DIRECT != 0 {
        let verdict = tunnel::send(skb, cfg, vtep, vni, dst);
        if verdict != tunnel::UNSENT {
            return verdict;
        }
    }
    if !skb.set_macs(dst, &cfg.mac) {
        return drop(D_TUNNEL);
    }
    // SAFETY: all zeros is a valid key.
    let mut key: bpf_tunnel_key = unsafe { core::mem::zeroed() };
    key.tunnel_id = vni;
    key.tunnel_ttl = 64;
    key.__bindgen_anon_1.remote_ipv4 = u32::from_be(vtep);
    // The receiver knows members by this address, whichever address the route would choose.
    key.__bindgen_anon_3.local_ipv4 = u32::from_be(cfg.vtep);
    let flags = u64::from(BPF_F_ZERO_CSUM_TX);
    // SAFETY: the key is readable for the size given.
    unsafe {
        if bpf_skb_set_tunnel_key(skb.raw(), &mut key, size_of::<bpf_tunnel_key>() as u32, flags) != 0
            && bpf_skb_set_tunnel_key(skb.raw(), &mut key, KEY_5_15, flags) != 0
        {
            return drop(D_TUNNEL);
        }
    }
    skb.redirect(cfg.vxlan_ifindex)
}

/// As [`to_node`], but tells the sender when the packet will not fit. Segments of a GSO packet were sized by the ends.
#[inline(always)]
pub(crate) fn to_node_checked(skb: Skb, cfg: &NodeCfg, p: &Packet, vtep: u32, vni: u32, dst: &Mac) -> i32 {
    if too_big(skb, cfg, p) {
        return tell(skb, cfg, p);
    }
    to_node(skb, cfg, vtep, vni, dst)
}

/// Whether the packet will not fit the tunnel.
#[inline(always)]
pub(crate) fn too_big(skb: Skb, cfg: &NodeCfg, p: &Packet) -> bool {
    skb.len() > u32::from(cfg.mtu) + ETH as u32 && skb.gso_size() == 0 && p.df
}

/// Tells the sender what would fit.
#[inline(always)]
pub(crate) fn tell(skb: Skb, cfg: &NodeCfg, p: &Packet) -> i32 {
    count(C_TOO_BIG);
    answer::too_big(skb, p, u32::from(cfg.mtu))
}
