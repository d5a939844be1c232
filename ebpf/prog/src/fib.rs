//! To a client that the host's routing tables know the way to.

use aya_ebpf::{
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_SUCCESS,
        bpf_fib_lookup as FibParams,
    },
    helpers::generated::bpf_fib_lookup,
};
use ebpf_abi::{Addr, D_NO_ROUTE, Mac};

use crate::{
    count::drop,
    maps::config,
    skb::{SHOT, Skb},
};

/// Bit of `kind` in [`route`].
pub(crate) const V6: u32 = 0x100;

/// Sends the packet, whose ends are `src` and `dst`, where the host would: out of a device, or into the host itself.
/// `kind`: IP protocol, and bit 8 for IPv6; `ports`: source in the low half, destination in the high one.
#[inline(never)]
pub(crate) fn route(skb: Skb, kind: u32, src: &Addr, dst: &Addr, ports: u32) -> i32 {
    let Some(cfg) = config() else { return SHOT };
    // SAFETY: all zeros is a valid question.
    let mut q: FibParams = unsafe { core::mem::zeroed() };
    // Our own device, whichever it came by: it forwards, which the kernel asks for.
    q.ifindex = cfg.vxlan_ifindex;
    q.l4_protocol = kind as u8;
    q.sport = ports as u16;
    q.dport = (ports >> 16) as u16;
    if kind & V6 != 0 {
        q.family = 10;
        q.__bindgen_anon_3.ipv6_src = src.w;
        q.__bindgen_anon_4.ipv6_dst = dst.w;
    } else {
        q.family = 2;
        q.__bindgen_anon_3.ipv4_src = src.w[3];
        q.__bindgen_anon_4.ipv4_dst = dst.w[3];
    }
    // SAFETY: `q` is readable and writable for its size.
    let found = unsafe { bpf_fib_lookup(skb.raw().cast(), &mut q, size_of::<FibParams>() as i32, 0) } as u32;
    match found {
        BPF_FIB_LKUP_RET_SUCCESS => {
            if !skb.set_macs(&mac(&q.dmac), &mac(&q.smac)) {
                return drop(D_NO_ROUTE);
            }
            skb.redirect(q.ifindex)
        }
        // The neighbour is not known yet (or the device has none): the kernel asks for it.
        BPF_FIB_LKUP_RET_NO_NEIGH | BPF_FIB_LKUP_RET_FRAG_NEEDED => skb.redirect_neigh(q.ifindex),
        // An address of the host.
        BPF_FIB_LKUP_RET_NOT_FWDED => to_host(skb),
        _ => drop(D_NO_ROUTE),
    }
}

/// To a process of this node: in through the loopback, whose address is all zeros.
#[inline(always)]
pub(crate) fn to_host(skb: Skb) -> i32 {
    let zero = [0; 3];
    if !skb.set_macs(&zero, &zero) {
        return drop(D_NO_ROUTE);
    }
    skb.to_host()
}

#[inline(always)]
fn mac(o: &[u8; 6]) -> Mac {
    ebpf_abi::mac(*o)
}
