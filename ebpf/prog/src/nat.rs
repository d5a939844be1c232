//! Rewriting addresses and ports with their checksums.
//!
//! Checksums are changed by difference (RFC 1624), never computed anew, so partial checksums (a packet that a local
//! socket sent), complete ones (as a NIC counted them) and UDP's "none" all stay what they were.

use aya_ebpf::{
    bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR},
    helpers::generated::{bpf_csum_update, bpf_l4_csum_replace},
};
use ebpf_abi::{Addr, Flow};

use crate::{
    parse::{Packet, TCP, UDP},
    skb::{ETH, Skb},
};

/// One's complement difference between words: what a checksum over `old` must be changed by.
#[inline(always)]
pub(crate) fn word_diff(old: u32, new: u32) -> u64 {
    u64::from(!old) + u64::from(new)
}

/// The same for whole addresses (an IPv4-mapped pair differs in its last word alone).
#[inline(always)]
pub(crate) fn addr_diff(v6: bool, old: &Addr, new: &Addr) -> u64 {
    let last = word_diff(old.w[3], new.w[3]);
    if !v6 {
        return last;
    }
    last + word_diff(old.w[0], new.w[0]) + word_diff(old.w[1], new.w[1]) + word_diff(old.w[2], new.w[2])
}

/// Folds a sum of differences to the 32 bits that the helpers take.
#[inline(always)]
pub(crate) fn fold32(s: u64) -> u64 {
    let s = (s & 0xffff_ffff) + (s >> 32);
    (s & 0xffff_ffff) + (s >> 32)
}

/// Folds to 16 bits, not inverted.
#[inline(always)]
pub(crate) fn fold16(s: u64) -> u16 {
    let s = fold32(s);
    let s = (s & 0xffff) + (s >> 16);
    let s = (s & 0xffff) + (s >> 16);
    s as u16
}

/// Gives the packet other ends. `to` is what its flow shall be; what is equal costs nothing.
#[inline(always)]
pub(crate) fn rewrite(skb: Skb, p: &Packet, to: &Flow) -> bool {
    let from = &p.flow;
    let addrs;
    if p.v6 {
        let Some(ip) = skb.at::<[u32; 10]>(ETH) else {
            return false;
        };
        addrs = addr_diff(true, &from.saddr, &to.saddr) + addr_diff(true, &from.daddr, &to.daddr);
        // SAFETY: within the packet.
        let ip = unsafe { &mut *ip };
        (ip[2], ip[3], ip[4], ip[5]) = (to.saddr.w[0], to.saddr.w[1], to.saddr.w[2], to.saddr.w[3]);
        (ip[6], ip[7], ip[8], ip[9]) = (to.daddr.w[0], to.daddr.w[1], to.daddr.w[2], to.daddr.w[3]);
    } else {
        let Some(ip) = skb.at::<[u32; 5]>(ETH) else {
            return false;
        };
        addrs = addr_diff(false, &from.saddr, &to.saddr) + addr_diff(false, &from.daddr, &to.daddr);
        // SAFETY: within the packet; the header checksum is the second half of the third word.
        unsafe {
            (*ip)[3] = to.saddr.w[3];
            (*ip)[4] = to.daddr.w[3];
            let check = (ip as *mut u16).add(5);
            *check = !fold16(u64::from(!*check) + fold32(addrs));
        }
    }
    if p.later {
        return true;
    }
    let ports = from.sport != to.sport || from.dport != to.dport;
    if ports {
        let Some(l4) = skb.at_l4::<[u16; 2]>(p.l4) else {
            return false;
        };
        // SAFETY: within the packet.
        unsafe { *l4 = [to.sport, to.dport] };
    }
    let (check, zero) = match p.proto() {
        TCP => (p.l4 + 16, 0),
        UDP => (p.l4 + 6, u64::from(BPF_F_MARK_MANGLED_0)),
        _ => return true,
    };
    // SAFETY: helper calls on the packet at hand; no packet pointer is used afterwards.
    unsafe {
        if ports {
            let diff = word_diff(pair(from.sport, from.dport), pair(to.sport, to.dport));
            if bpf_l4_csum_replace(skb.raw(), check, 0, fold32(diff), zero) != 0 {
                return false;
            }
        }
        let diff = fold32(addrs);
        if bpf_l4_csum_replace(skb.raw(), check, 0, diff, zero | u64::from(BPF_F_PSEUDO_HDR)) != 0 {
            return false;
        }
        if p.v6 {
            // With CHECKSUM_COMPLETE the helper also takes the difference out of the sum over the packet, as is right
            // for IPv4, whose header checksum balances the address. IPv6 has none: put it back (BPF_F_IPV6 does the
            // same from Linux 6.16 on). Any other kind of checksum: refused, and nothing happens.
            bpf_csum_update(skb.raw(), diff as u32);
        }
    }
    true
}

/// Two ports as one word, as they lie in the packet.
#[inline(always)]
pub(crate) fn pair(sport: u16, dport: u16) -> u32 {
    u32::from(sport) | u32::from(dport) << 16
}
