//! The kernel programs of the eBPF data path: one per hook, each a walk through small rooms.
//!
//! | hook | attached to | module |
//! |---|---|---|
//! | `from_netdev` | ingress of every device that can receive for an address of the host | [`hooks::netdev`] |
//! | `from_host` | ingress of the host's `lo` | [`hooks::host`] |
//! | `from_overlay` | ingress of the external VXLAN device | [`hooks::overlay`] |
//! | `from_ep` | ingress of the host side veth of each endpoint | [`hooks::ep`] |
//!
//! Rules: what runs per packet is `#[inline(always)]`; what runs rarely (ICMP, new flows, neighbours) is
//! `#[inline(never)]`, takes at most five arguments and keeps the 512 octets of stack free for the walk. Every packet
//! pointer is taken again after a helper that may move the packet. Values of a hash map are copied before a helper
//! that can sleep in the map (an LRU entry can be given to another flow under us).
#![no_std]
#![no_main]
#![allow(missing_docs, unreachable_pub, reason = "the macro makes entry points of its own")]

mod clock;
mod count;
mod deliver;
mod encap;
mod fib;
mod hooks;
mod icmp;
mod maps;
mod nat;
mod neighbour;
mod parse;
mod pick;
mod reverse;
mod skb;
mod tunnel;

use aya_ebpf::{macros::classifier, programs::TcContext};

use crate::skb::Skb;

/// Ingress of a device of the host.
#[classifier]
pub fn from_netdev(ctx: TcContext) -> i32 {
    hooks::netdev::run(Skb::new(ctx.skb.skb))
}

/// Ingress of the host's loopback.
#[classifier]
pub fn from_host(ctx: TcContext) -> i32 {
    hooks::host::run(Skb::new(ctx.skb.skb))
}

/// Ingress of the external VXLAN device.
#[classifier]
pub fn from_overlay(ctx: TcContext) -> i32 {
    hooks::overlay::run(Skb::new(ctx.skb.skb))
}

/// Ingress of an endpoint's host side veth.
#[classifier]
pub fn from_ep(ctx: TcContext) -> i32 {
    hooks::ep::run(Skb::new(ctx.skb.skb))
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // Never reached: the verifier would refuse the loop, so the optimiser must have removed every panic.
    loop {}
}

/// `bpf_fib_lookup` and others are for programs under the GPL; this is what the kernel accepts for a dual licence.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
