//! The packet that an ICMP error quotes.

use aya_ebpf::helpers::generated::{bpf_l3_csum_replace, bpf_l4_csum_replace};
use ebpf_abi::{Addr, Flow};

use crate::{
    nat::{addr_diff, fold32, pair, word_diff},
    parse::{Packet, TCP, UDP},
    skb::{ETH, Skb},
};

/// Offsets of the quoted IP header and of its ports, for headers without options: all that is translated.
const QUOTE4: u32 = ETH as u32 + 20 + 8;
const PORTS4: u32 = QUOTE4 + 20;
const QUOTE6: u32 = ETH as u32 + 40 + 8;
const PORTS6: u32 = QUOTE6 + 40;

/// Reads the flow that an ICMP error is about, as its sender saw it; false: no error, or nothing that we translate.
#[inline(never)]
pub(crate) fn read(skb: Skb, p: &Packet, vni: u32, q: &mut Flow) -> bool {
    let mut kind = 0u8;
    let mut ports = [0u16; 2];
    let proto;
    if p.v6 {
        let mut ip = [0u32; 10];
        if p.l4 != ETH as u32 + 40 || !skb.load(p.l4, &mut kind) || !matches!(kind, 1..=4) {
            return false;
        }
        if !skb.load(QUOTE6, &mut ip) || !skb.load(PORTS6, &mut ports) {
            return false;
        }
        proto = u32::from_be(ip[1]) >> 8 & 0xff;
        q.saddr = Addr {
            w: [ip[2], ip[3], ip[4], ip[5]],
        };
        q.daddr = Addr {
            w: [ip[6], ip[7], ip[8], ip[9]],
        };
    } else {
        let mut ip = [0u32; 5];
        // Destination unreachable, time exceeded, parameter problem.
        if p.l4 != ETH as u32 + 20 || !skb.load(p.l4, &mut kind) || !matches!(kind, 3 | 11 | 12) {
            return false;
        }
        if !skb.load(QUOTE4, &mut ip) || !skb.load(PORTS4, &mut ports) {
            return false;
        }
        if u32::from_be(ip[0]) >> 24 != 0x45 || u32::from_be(ip[1]) & 0x1fff != 0 {
            return false;
        }
        proto = u32::from_be(ip[2]) >> 16 & 0xff;
        q.saddr = Addr::v4_word(ip[3]);
        q.daddr = Addr::v4_word(ip[4]);
    }
    (q.sport, q.dport) = (ports[0], ports[1]);
    q.net_proto = vni << 8 | proto;
    proto == TCP || proto == UDP
}

/// Rewrites the error's own addresses to those of `outer` and the quoted ends from `q` to `inner`.
#[inline(never)]
pub(crate) fn rewrite(skb: Skb, p: &Packet, q: &Flow, outer: &Flow, inner: &Flow) -> bool {
    let ports = word_diff(pair(q.sport, q.dport), pair(inner.sport, inner.dport));
    let ends = addr_diff(p.v6, &p.flow.saddr, &outer.saddr) + addr_diff(p.v6, &p.flow.daddr, &outer.daddr);
    let quoted = addr_diff(p.v6, &q.saddr, &inner.saddr) + addr_diff(p.v6, &q.daddr, &inner.daddr);
    let new_ports = [inner.sport, inner.dport];
    // SAFETY: helper calls on the packet at hand.
    unsafe {
        if p.v6 {
            // ICMPv6 sums its pseudo header, the quoted header and the ports; nothing else has a checksum.
            let diff = fold32(ends + quoted + ports);
            bpf_l4_csum_replace(skb.raw(), ETH as u32 + 42, 0, diff, 0) == 0
                && skb.store(22, &outer.saddr)
                && skb.store(38, &outer.daddr)
                && skb.store(QUOTE6 + 8, &inner.saddr)
                && skb.store(QUOTE6 + 24, &inner.daddr)
                && skb.store(PORTS6, &new_ports)
        } else {
            // Each IPv4 header balances its own addresses, so ICMP's sum sees the ports alone.
            bpf_l3_csum_replace(skb.raw(), 24, 0, fold32(ends), 0) == 0
                && bpf_l3_csum_replace(skb.raw(), QUOTE4 + 10, 0, fold32(quoted), 0) == 0
                && bpf_l4_csum_replace(skb.raw(), ETH as u32 + 22, 0, fold32(ports), 0) == 0
                && skb.store(26, &[outer.saddr.w[3], outer.daddr.w[3]])
                && skb.store(QUOTE4 + 12, &[inner.saddr.w[3], inner.daddr.w[3]])
                && skb.store(PORTS4, &new_ports)
        }
    }
}
