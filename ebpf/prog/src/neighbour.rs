//! ARP (RFC 826) and neighbour discovery (RFC 4861) of an endpoint: every address but its own is behind the node.

use aya_ebpf::helpers::generated::{bpf_csum_diff, bpf_skb_change_tail};
use ebpf_abi::{Addr, C_NEIGHBOUR, EpCfg, NodeCfg};

use crate::{
    count::count,
    maps::scratch,
    nat::fold16,
    parse::{ICMPV6, Packet, same},
    skb::{SHOT, Skb},
};

const REQUEST: u16 = 1_u16.to_be();
const REPLY: u16 = 2_u16.to_be();
const SOLICITATION: u8 = 135;
/// Neighbour advertisement with the flags solicited and override.
const ADVERTISEMENT: u32 = 136 << 24;
const SOLICITED_OVERRIDE: u32 = 0x6000_0000;

/// An ARP packet with its Ethernet header, as half words.
type Arp = [u16; 21];

/// Answers an ARP request with the node's MAC; everything else is dropped.
#[inline(never)]
pub(crate) fn arp(skb: Skb, cfg: &NodeCfg, ep: &EpCfg) -> i32 {
    let mut a: Arp = [0; 21];
    if !skb.load(0, &mut a) || a[10] != REQUEST || a[7] != 1_u16.to_be() || a[8] != 0x0800_u16.to_be() {
        return SHOT;
    }
    let target = u32::from(a[19]) | u32::from(a[20]) << 16;
    // A probe for the endpoint's own address (RFC 5227) must stay unanswered.
    if target == ep.addr4 {
        return SHOT;
    }
    let to = [a[11], a[12], a[13]];
    let sender = [a[14], a[15]];
    [a[0], a[1], a[2]] = to;
    [a[3], a[4], a[5]] = cfg.mac;
    a[10] = REPLY;
    [a[11], a[12], a[13]] = cfg.mac;
    [a[14], a[15]] = [a[19], a[20]];
    [a[16], a[17], a[18]] = to;
    [a[19], a[20]] = sender;
    if !skb.store(0, &a) {
        return SHOT;
    }
    count(C_NEIGHBOUR);
    skb.turn_back()
}

/// Octets of an advertisement with its option: Ethernet, IPv6, ICMPv6, target, link-layer address.
const FRAME: u32 = 14 + 72;

/// Handles ICMPv6 types 133-137, which belong to the link: a solicitation for another address is answered with the
/// node's MAC, everything else (router and redirect tricks, duplicate address detection) ends here.
#[inline(never)]
pub(crate) fn discovery(skb: Skb, cfg: &NodeCfg, ep: &EpCfg, p: &Packet, kind: u8) -> i32 {
    let mut target = Addr::default();
    if kind != SOLICITATION || !skb.load(p.l4 + 8, &mut target) {
        return SHOT;
    }
    let own = same(&target, &ep.addr6) || same(&target, &ep.link6);
    let unspecified = p.flow.saddr.w[0] | p.flow.saddr.w[1] | p.flow.saddr.w[2] | p.flow.saddr.w[3] == 0;
    let known = same(&p.flow.saddr, &ep.addr6) || same(&p.flow.saddr, &ep.link6);
    // Only an address of the sender's may be told anything; extra addresses ask with one of these two.
    if own || unspecified || !known {
        return SHOT;
    }
    let Some(scratch) = scratch() else { return SHOT };
    let a = &mut scratch.ip;
    // First as pseudo header: length, protocol, ends (RFC 8200 8.1).
    (a[0], a[1]) = (32_u32.to_be(), ICMPV6.to_be());
    let mut i = 0;
    while i < 4 {
        a[2 + i] = target.w[i];
        a[6 + i] = p.flow.saddr.w[i];
        a[12 + i] = target.w[i];
        i += 1;
    }
    (a[10], a[11]) = (ADVERTISEMENT.to_be(), SOLICITED_OVERRIDE.to_be());
    // Option 2: target link-layer address.
    a[16] = u32::from(0x0201_u16.to_be()) | u32::from(cfg.mac[0]) << 16;
    a[17] = u32::from(cfg.mac[1]) | u32::from(cfg.mac[2]) << 16;
    // SAFETY: 72 readable octets.
    let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, a.as_mut_ptr(), 72, 0) } as u32;
    let check = !fold16(u64::from(sum));
    a[10] |= u32::from(u16::from_be(check)).to_be();
    (a[0], a[1]) = (0x6000_0000_u32.to_be(), (32 << 16 | ICMPV6 << 8 | 255).to_be());
    // SAFETY: helper call; a solicitation has no checksum left to be made (kernel sockets sum ICMPv6 themselves).
    if skb.len() != FRAME && unsafe { bpf_skb_change_tail(skb.raw(), FRAME, 0) } != 0 {
        return SHOT;
    }
    if !skb.store(14, a) || !skb.set_macs(&ep.mac, &cfg.mac) {
        return SHOT;
    }
    count(C_NEIGHBOUR);
    skb.turn_back()
}
