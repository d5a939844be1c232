//! The outer headers, read and written here instead of by the VXLAN device (`CFG_DIRECT`).
//!
//! A packet that comes by the device passes the host's IP and UDP input, its firewall hooks and a second receive queue
//! before `from_overlay` sees it; on its way out it passes the output hooks and a second device. Here both are one step
//! of the program that has the packet anyway. Whatever is not the plain case (fragments, outer checksums, congestion
//! marks, strangers, no neighbour yet, a path that is too narrow) is left to the device, which handles all of them.

use core::mem::offset_of;

use aya_ebpf::{
    bindings::{
        BPF_F_ADJ_ROOM_ENCAP_L2_ETH, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
        BPF_F_ADJ_ROOM_FIXED_GSO, BPF_F_ADJ_ROOM_NO_CSUM_RESET, BPF_F_RECOMPUTE_CSUM, BPF_FIB_LKUP_RET_SUCCESS,
        bpf_adj_room_mode::BPF_ADJ_ROOM_MAC, bpf_fib_lookup as FibParams,
    },
    helpers::generated::{
        bpf_fib_lookup, bpf_get_hash_recalc, bpf_get_prandom_u32, bpf_skb_adjust_room, bpf_skb_store_bytes,
    },
};
use ebpf_abi::{D_TUNNEL, Mac, NodeCfg};

use crate::{
    clock::now,
    count::drop,
    maps::{BURSTS, MEMBERS},
    parse::{IPV4, IPV6, Packet, UDP},
    skb::{ETH, Skb},
};

/// Octets in front of the inner Ethernet header, without the outer one: IPv4 20, UDP 8, VXLAN 8 (RFC 7348 5).
const HEADERS: usize = 36;
/// What the tunnel adds to a packet: [`HEADERS`] and the inner Ethernet header.
const OVERHEAD: usize = HEADERS + ETH;
/// First word of the VXLAN header: the VNI is valid, nothing else is said (RFC 7348 5).
const VNI_VALID: u32 = 0x0800_0000_u32.to_be();
/// ECN bits of the traffic class (RFC 3168 5), and the codepoint "congestion experienced".
const ECN: u32 = 3;
const CE: u32 = 3;
/// `BPF_F_ADJ_ROOM_DECAP_L3_IPV6` (Linux 6.3): what is left is IPv6.
const DECAP_IPV6: u64 = 1 << 8;
const TTL: u32 = 64;
/// `AF_INET`.
const INET: u8 = 2;
/// Units of [`now`] for which a flow that came in bursts keeps to the device. Packets of several segments go by the
/// device, whose receive queue a single one would overtake; the queue is empty long before this has passed.
const STICKY: u32 = 2;

/// What the outer headers said.
pub(crate) struct From {
    pub(crate) vni: u32,
    /// The sending member, as on the wire.
    pub(crate) vtep: u32,
}

/// Outer IPv4, UDP and VXLAN header, inner Ethernet header: what follows the outer Ethernet header.
#[repr(C)]
#[derive(Clone, Copy)]
struct Outer {
    ip: [u32; 5],
    udp: [u16; 4],
    vxlan: [u32; 2],
    dst: Mac,
    src: Mac,
    ethertype: u16,
}

/// The question to the host's tables, and then in its place the headers: before Linux 6.9 the stacks of a program and of
/// the functions that it is in, each rounded up to 32 octets, share 512.
#[repr(C)]
union Room {
    hop: FibParams,
    outer: Outer,
}

// The MACs of the answer outlast it.
const _: () = assert!(
    size_of::<Outer>() <= offset_of!(FibParams, smac) && offset_of!(FibParams, smac) < offset_of!(FibParams, dmac)
);

/// Takes the outer headers off a VXLAN packet for this node, `p` being its outer ends. `None`: nothing was changed, the
/// device takes it.
#[inline(always)]
pub(crate) fn take(skb: Skb, cfg: &NodeCfg, p: &Packet) -> Option<From> {
    if p.v6 || p.l4 != (ETH + 20) as u32 || p.flow.daddr.w[3] != cfg.vtep || !skb.is_for_host() {
        return None;
    }
    let sport = u16::from_be(p.flow.sport);
    if skb.gso_size() != 0 {
        if let Some(at) = BURSTS.get_ptr_mut(u32::from(sport)) {
            // SAFETY: a cell of an array map lives as long as the map; racing writers say the same.
            unsafe { *at = now() };
        }
        return None;
    }
    // SAFETY: as above.
    let at = unsafe { *BURSTS.get_ptr(u32::from(sport))? };
    if now().wrapping_sub(at) < STICKY || MEMBERS.get_ptr(p.flow.saddr.w[3]).is_none() {
        return None;
    }
    // The inner IP header must be at hand too.
    if skb.linear() < ETH + OVERHEAD && !skb.pull((ETH + OVERHEAD) as u32) {
        return None;
    }
    // SAFETY: within the packet, by `at`.
    let outer = unsafe { &*skb.at::<Outer>(ETH)? };
    let total = u32::from_be(outer.ip[0]) & 0xffff;
    let plain = total as usize + ETH == skb.len() as usize
        && u32::from_be(outer.ip[0]) >> 16 & ECN != CE
        // Neither a fragment nor one of several.
        && u32::from_be(outer.ip[1]) & 0x3fff == 0
        && fold(sum(&outer.ip)) == 0xffff
        && u32::from(u16::from_be(outer.udp[2])) + 20 == total
        && outer.udp[3] == 0
        && outer.vxlan[0] == VNI_VALID
        && u32::from_be(outer.vxlan[1]) & 0xff == 0;
    let (dst, src, ethertype) = (outer.dst, outer.src, outer.ethertype);
    let from = From {
        vni: u32::from_be(outer.vxlan[1]) >> 8,
        vtep: p.flow.saddr.w[3],
    };
    let flags = match ethertype {
        IPV4 => 0,
        IPV6 => DECAP_IPV6,
        _ => return None,
    };
    // SAFETY: helper call; packet pointers are taken anew below. What the device of the wire said of checksums was said
    // of the outer ones, so it is forgotten (no BPF_F_ADJ_ROOM_NO_CSUM_RESET).
    if !plain || unsafe { bpf_skb_adjust_room(skb.raw(), -(OVERHEAD as i32), BPF_ADJ_ROOM_MAC, flags) } != 0 {
        return None;
    }
    // Fails only if the packet had become shorter than its Ethernet header; then nothing below finds anything in it.
    skb.set_macs(&dst, &src);
    if let Some(at) = skb.at::<u16>(12) {
        // SAFETY: within the packet.
        unsafe { *at = ethertype };
    }
    Some(from)
}

/// Wraps a packet that fits and sends it the way that the host's tables tell. `None`: nothing was changed, the device
/// takes it.
#[inline(never)]
pub(crate) fn send(skb: Skb, cfg: &NodeCfg, vtep: u32, vni: u32, dst: &Mac) -> i32 {
    let total = skb.len() + HEADERS as u32;
    // SAFETY: plain helper call. The same hash that the kernel would take the port from (RFC 7348 5).
    let hash = unsafe { bpf_get_hash_recalc(skb.raw()) };
    let sport = (0x8000 | (hash ^ hash >> 16) & 0x7fff) as u16;
    let Some(inner) = skb.at::<[u32; 2]>(ETH) else { return UNSENT };
    let Some(ethertype) = skb.at::<u16>(12) else { return UNSENT };
    // SAFETY: within the packet, both.
    let (first, ethertype) = unsafe { (u32::from_be((*inner)[0]), *ethertype) };
    let ecn = match ethertype {
        IPV4 => first >> 16 & ECN,
        IPV6 => first >> 20 & ECN,
        _ => return UNSENT,
    };
    // An outer header cannot say that congestion was met before it (RFC 6040 4.1, compatibility).
    let ecn = if ecn == CE { 2 } else { ecn };
    if total > 0xffff {
        return UNSENT;
    }
    // SAFETY: all zeros is a valid question.
    let mut room: Room = unsafe { core::mem::zeroed() };
    // SAFETY: it holds the question.
    let q = unsafe { &mut room.hop };
    q.family = INET;
    q.l4_protocol = UDP as u8;
    q.sport = sport.to_be();
    q.dport = cfg.vxlan_port as u16;
    q.ifindex = cfg.vxlan_ifindex;
    q.__bindgen_anon_3.ipv4_src = cfg.vtep;
    q.__bindgen_anon_4.ipv4_dst = vtep;
    if skb.gso_size() == 0 {
        q.__bindgen_anon_1.tot_len = total as u16;
    }
    // SAFETY: `q` is readable and writable for its size.
    let found = unsafe { bpf_fib_lookup(skb.raw().cast(), q, size_of::<FibParams>() as i32, 0) } as u32;
    if found != BPF_FIB_LKUP_RET_SUCCESS {
        return UNSENT;
    }
    let ifindex = q.ifindex;
    // SAFETY: helper call.
    let id = unsafe { bpf_get_prandom_u32() } & 0xffff;
    room.outer = Outer {
        ip: [
            (0x4500_0000 | ecn << 16 | total).to_be(),
            // May be fragmented on its way, so it needs an id (RFC 6864 4).
            (id << 16).to_be(),
            (TTL << 24 | UDP << 16).to_be(),
            cfg.vtep,
            vtep,
        ],
        udp: [sport.to_be(), cfg.vxlan_port as u16, (total as u16 - 20).to_be(), 0],
        vxlan: [VNI_VALID, (vni << 8).to_be()],
        dst: *dst,
        src: cfg.mac,
        ethertype,
    };
    // SAFETY: it holds the headers.
    let outer = unsafe { &mut room.outer };
    let check = !fold(sum(&outer.ip)) & 0xffff;
    // Summed as it lies, so it is stored as it lies: the second half of the third word.
    outer.ip[2] |= if cfg!(target_endian = "little") { check << 16 } else { check };
    let flags = BPF_F_ADJ_ROOM_FIXED_GSO
        | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4
        | BPF_F_ADJ_ROOM_ENCAP_L4_UDP
        | BPF_F_ADJ_ROOM_ENCAP_L2_ETH
        | BPF_F_ADJ_ROOM_NO_CSUM_RESET;
    // The inner Ethernet header's length lies in bits 56 to 63 (BPF_F_ADJ_ROOM_ENCAP_L2).
    let flags = u64::from(flags) | (ETH as u64) << 56;
    // SAFETY: helper calls; `outer` is readable for the size given.
    unsafe {
        if bpf_skb_adjust_room(skb.raw(), OVERHEAD as i32, BPF_ADJ_ROOM_MAC, flags) != 0 {
            return UNSENT;
        }
        let at = (&raw const *outer).cast();
        if bpf_skb_store_bytes(skb.raw(), ETH as u32, at, OVERHEAD as u32, u64::from(BPF_F_RECOMPUTE_CSUM)) != 0 {
            return drop(D_TUNNEL);
        }
    }
    // SAFETY: behind the headers the answer is as it was.
    let (dmac, smac) = unsafe { (ebpf_abi::mac(room.hop.dmac), ebpf_abi::mac(room.hop.smac)) };
    if !skb.set_macs(&dmac, &smac) {
        return drop(D_TUNNEL);
    }
    if let Some(at) = skb.at::<u16>(12) {
        // SAFETY: within the packet.
        unsafe { *at = IPV4 };
    }
    skb.redirect(ifindex)
}

/// What [`send`] says when it has left the packet alone: no verdict of tc.
pub(crate) const UNSENT: i32 = -2;

/// Sum of an IPv4 header without options, as it lies.
#[inline(always)]
fn sum(ip: &[u32; 5]) -> u64 {
    u64::from(ip[0]) + u64::from(ip[1]) + u64::from(ip[2]) + u64::from(ip[3]) + u64::from(ip[4])
}

/// Folds to 16 bits, not inverted.
#[inline(always)]
fn fold(s: u64) -> u32 {
    u32::from(crate::nat::fold16(s))
}
