//! Packets turned round: an error to their sender (RFC 792, RFC 4443), an echo reply.

use aya_ebpf::{
    bindings::bpf_adj_room_mode::BPF_ADJ_ROOM_MAC,
    helpers::generated::{bpf_csum_diff, bpf_l4_csum_replace, bpf_skb_adjust_room, bpf_skb_change_tail},
};
use ebpf_abi::{C_REFUSED, C_VIP_PING};

use crate::{
    count::count,
    nat::fold16,
    parse::{ICMP, ICMPV6, Packet},
    skb::{ETH, SHOT, Skb},
};

/// Type and code, IPv4 in the high half and IPv6 in the low one.
const PORT: u32 = 0x0303_0104;
const HOST: u32 = 0x0301_0103;
const TOO_BIG: u32 = 0x0304_0200;

/// Octets cut off in front of an answer. A packet that a local socket sent has its checksum still to be made at an
/// offset that means nothing in the answer; the kernel forgets about it when that offset falls off the front
/// (`__skb_postpull_rcsum`). More than Ethernet + IPv6, the deepest place where it can start.
const CUT: u32 = 64;
const TTL: u32 = 64;

/// "Fragmentation needed" or "packet too big".
#[inline(always)]
pub(crate) fn too_big(skb: Skb, p: &Packet, mtu: u32) -> i32 {
    say(skb, p, TOO_BIG, mtu.to_be())
}

/// "Port unreachable": what a TCP or UDP socket reports as "connection refused".
#[inline(always)]
pub(crate) fn refuse(skb: Skb, p: &Packet) -> i32 {
    count(C_REFUSED);
    say(skb, p, PORT, 0)
}

/// "Host unreachable".
#[inline(always)]
pub(crate) fn unreachable(skb: Skb, p: &Packet) -> i32 {
    say(skb, p, HOST, 0)
}

#[inline(always)]
fn say(skb: Skb, p: &Packet, kind: u32, rest: u32) -> i32 {
    if p.later {
        return SHOT;
    }
    // The longer quotes reach the ports behind options and extension headers; the shorter ones fit any packet.
    match (p.v6, p.l4 == ETH as u32 + if p.v6 { 40 } else { 20 }) {
        (false, true) => answer4::<7>(skb, kind >> 16, rest),
        (false, false) => answer4::<12>(skb, kind >> 16, rest),
        (true, true) => answer6::<12>(skb, kind & 0xffff, rest),
        (true, false) => answer6::<16>(skb, kind & 0xffff, rest),
    }
}

/// What follows the Ethernet header.
#[repr(C)]
struct Answer4<const Q: usize> {
    ip: [u32; 5],
    icmp: [u32; 2],
    quote: [u32; Q],
}

#[repr(C)]
struct Answer6<const Q: usize> {
    ip: [u32; 10],
    icmp: [u32; 2],
    quote: [u32; Q],
}

/// One's complement sum of words, folded.
#[inline(always)]
fn sum<T>(words: &T, seed: u32) -> u32 {
    // SAFETY: readable for its size, which is a multiple of four.
    unsafe {
        bpf_csum_diff(
            core::ptr::null_mut(),
            0,
            (words as *const T).cast_mut().cast(),
            size_of::<T>() as u32,
            seed,
        ) as u32
    }
}

#[inline(never)]
fn answer4<const Q: usize>(skb: Skb, kind: u32, rest: u32) -> i32 {
    let mut a = Answer4 {
        ip: [0; 5],
        icmp: [0; 2],
        quote: [0u32; Q],
    };
    if !skb.load(ETH as u32, &mut a.quote) {
        return SHOT;
    }
    let len = 28 + 4 * Q as u32;
    a.ip[0] = (0x4500_0000 | len).to_be();
    a.ip[3] = a.quote[4];
    a.ip[4] = a.quote[3];
    a.ip[2] = (TTL << 24 | ICMP << 16).to_be();
    // The checksum stands in the low half of the third word.
    let check = !fold16(u64::from(sum(&a.ip, 0)));
    a.ip[2] |= (u32::from(u16::from_be(check))).to_be();
    a.icmp[0] = (kind << 16).to_be();
    a.icmp[1] = rest;
    let check = !fold16(u64::from(sum(&a.icmp, sum(&a.quote, 0))));
    a.icmp[0] |= (u32::from(u16::from_be(check))).to_be();
    replace(skb, (&raw const a).cast(), len)
}

#[inline(never)]
fn answer6<const Q: usize>(skb: Skb, kind: u32, rest: u32) -> i32 {
    let mut a = Answer6 {
        ip: [0; 10],
        icmp: [0; 2],
        quote: [0u32; Q],
    };
    if !skb.load(ETH as u32, &mut a.quote) {
        return SHOT;
    }
    let len = 8 + 4 * Q as u32;
    let mut i = 0;
    while i < 4 {
        a.ip[2 + i] = a.quote[6 + i];
        a.ip[6 + i] = a.quote[2 + i];
        i += 1;
    }
    a.icmp[0] = (kind << 16).to_be();
    a.icmp[1] = rest;
    // The pseudo header (RFC 8200 8.1) is the IPv6 header with the length and the protocol alone in its first words.
    (a.ip[0], a.ip[1]) = (len.to_be(), ICMPV6.to_be());
    let check = !fold16(u64::from(sum(&a.ip, sum(&a.icmp, sum(&a.quote, 0)))));
    a.icmp[0] |= (u32::from(u16::from_be(check))).to_be();
    (a.ip[0], a.ip[1]) = (0x6000_0000_u32.to_be(), (len << 16 | ICMPV6 << 8 | TTL).to_be());
    replace(skb, (&raw const a).cast(), 40 + len)
}

/// Makes the packet an Ethernet header, its ends swapped, and `ip`, `len` octets; sends it back.
#[inline(always)]
fn replace(skb: Skb, ip: *const u8, len: u32) -> i32 {
    // An answer goes from the receiver to the sender.
    let (Some(dst), Some(src)) = (skb.src_mac(), skb.dst_mac()) else {
        return SHOT;
    };
    if !skb.set_macs(&dst, &src) {
        return SHOT;
    }
    let whole = ETH as u32 + len;
    // SAFETY: helper calls.
    unsafe {
        if bpf_skb_change_tail(skb.raw(), whole + CUT, 0) != 0 {
            return SHOT;
        }
        let cut = bpf_skb_adjust_room(skb.raw(), -(CUT as i32), BPF_ADJ_ROOM_MAC, 0);
        if cut != 0 && bpf_skb_change_tail(skb.raw(), whole, 0) != 0 {
            return SHOT;
        }
    }
    if !skb.store_from(ETH as u32, ip, len) {
        return SHOT;
    }
    skb.turn_back()
}

/// Answers an echo request in place. Swapping the ends changes no checksum.
#[inline(never)]
pub(crate) fn echo(skb: Skb, p: &Packet) -> i32 {
    let (Some(dst), Some(src)) = (skb.src_mac(), skb.dst_mac()) else {
        return SHOT;
    };
    if !skb.set_macs(&dst, &src) {
        return SHOT;
    }
    let (ends, old, new) = if p.v6 { (22, 128_u16, 129_u16) } else { (26, 8, 0) };
    let stored = if p.v6 {
        let swapped = [p.flow.daddr, p.flow.saddr];
        skb.store(ends, &swapped)
    } else {
        let swapped = [p.flow.daddr.w[3], p.flow.saddr.w[3]];
        skb.store(ends, &swapped)
    };
    // SAFETY: helper call.
    let check = unsafe {
        bpf_l4_csum_replace(
            skb.raw(),
            p.l4 + 2,
            u64::from((old << 8).to_be()),
            u64::from((new << 8).to_be()),
            2,
        )
    };
    if !stored || check != 0 || !skb.store(p.l4, &(new as u8)) {
        return SHOT;
    }
    count(C_VIP_PING);
    skb.turn_back()
}
