//! The packet: bounds, header access, redirects.

use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{
        bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer, bpf_skb_change_type, bpf_skb_load_bytes,
        bpf_skb_pull_data, bpf_skb_store_bytes,
    },
};
use ebpf_abi::Mac;

/// Let the packet go on: to the next program of the hook, then to the host (`TCX_NEXT`, `TC_ACT_UNSPEC`).
pub(crate) const NEXT: i32 = -1;
/// Drop (`TC_ACT_SHOT`).
pub(crate) const SHOT: i32 = 2;
/// Interface index of the loopback in every network namespace (`LOOPBACK_IFINDEX`, linux/net/loopback).
pub(crate) const LO: u32 = 1;
/// Octets of an Ethernet header.
pub(crate) const ETH: usize = 14;

const PACKET_HOST: u32 = 0;
const BPF_F_INGRESS: u64 = 1;

/// A packet at a tc hook.
#[derive(Clone, Copy)]
pub(crate) struct Skb {
    raw: *mut __sk_buff,
}

macro_rules! field {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[inline(always)]
        pub(crate) fn $name(self) -> u32 {
            // SAFETY: the context is valid for the whole run; the verifier rewrites the access.
            unsafe { (*self.raw).$name }
        }
    };
}

impl Skb {
    #[inline(always)]
    pub(crate) fn new(raw: *mut __sk_buff) -> Self {
        Skb { raw }
    }

    #[inline(always)]
    pub(crate) fn raw(self) -> *mut __sk_buff {
        self.raw
    }

    field!(/// Octets from the Ethernet header on.
        len);
    field!(/// Device at whose hook the program runs.
        ifindex);
    field!(/// Octets of payload per segment; 0 when it is one packet.
        gso_size);
    field!(/// Not 0: a VLAN tag travels beside the packet.
        vlan_present);

    #[inline(always)]
    fn bounds(self) -> (usize, usize) {
        // SAFETY: as above; the verifier turns both into packet pointers.
        unsafe { ((*self.raw).data as usize, (*self.raw).data_end as usize) }
    }

    /// Whether the device took it for this host: not for another one, and not for all.
    #[inline(always)]
    pub(crate) fn is_for_host(self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.raw).pkt_type == PACKET_HOST }
    }

    /// Octets that can be read without pulling.
    #[inline(always)]
    pub(crate) fn linear(self) -> usize {
        let (data, end) = self.bounds();
        end.wrapping_sub(data)
    }

    /// A `T` at `off`, if it lies within the linear part. The pointer dies with the next helper that moves the packet.
    #[inline(always)]
    pub(crate) fn at<T>(self, off: usize) -> Option<*mut T> {
        let (data, end) = self.bounds();
        if data + off + size_of::<T>() > end {
            None
        } else {
            Some((data + off) as *mut T)
        }
    }

    /// As [`Skb::at`] for an offset that was computed: masked to what the verifier can follow (511).
    #[inline(always)]
    pub(crate) fn at_l4<T>(self, off: u32) -> Option<*mut T> {
        // Opaque, so that the mask is applied to the very register that is added to the packet pointer.
        let off = core::hint::black_box(off) as usize & 0x1ff;
        self.at(off)
    }

    /// Makes the first `len` octets linear.
    #[inline(always)]
    pub(crate) fn pull(self, len: u32) -> bool {
        // SAFETY: plain helper call; packet pointers are taken again by every `at`.
        unsafe { bpf_skb_pull_data(self.raw, len) == 0 }
    }

    /// Copies from the packet.
    #[inline(always)]
    pub(crate) fn load<T>(self, off: u32, to: &mut T) -> bool {
        // SAFETY: `to` is writable for its own size.
        unsafe { bpf_skb_load_bytes(self.raw.cast(), off, (to as *mut T).cast(), size_of::<T>() as u32) == 0 }
    }

    /// Copies into the packet; checksums are the caller's.
    #[inline(always)]
    pub(crate) fn store<T>(self, off: u32, from: &T) -> bool {
        // SAFETY: `from` is readable for its own size.
        unsafe { bpf_skb_store_bytes(self.raw, off, (from as *const T).cast(), size_of::<T>() as u32, 0) == 0 }
    }

    /// Copies `len` octets into the packet; `len` is a constant and `from` readable for it.
    #[inline(always)]
    pub(crate) fn store_from(self, off: u32, from: *const u8, len: u32) -> bool {
        // SAFETY: the caller's promise; the verifier checks it once more.
        unsafe { bpf_skb_store_bytes(self.raw, off, from.cast(), len, 0) == 0 }
    }

    /// Source MAC.
    #[inline(always)]
    pub(crate) fn src_mac(self) -> Option<Mac> {
        let p: *mut Mac = self.at(6)?;
        // SAFETY: within the packet.
        Some(unsafe { *p })
    }

    /// Destination MAC.
    #[inline(always)]
    pub(crate) fn dst_mac(self) -> Option<Mac> {
        let p: *mut Mac = self.at(0)?;
        // SAFETY: within the packet.
        Some(unsafe { *p })
    }

    /// Writes both MACs.
    #[inline(always)]
    pub(crate) fn set_macs(self, dst: &Mac, src: &Mac) -> bool {
        let Some(p) = self.at::<[u16; 6]>(0) else { return false };
        // SAFETY: within the packet.
        unsafe { *p = [dst[0], dst[1], dst[2], src[0], src[1], src[2]] };
        true
    }

    /// Out through a device.
    #[inline(always)]
    pub(crate) fn redirect(self, ifindex: u32) -> i32 {
        // SAFETY: plain helper call.
        unsafe { bpf_redirect(ifindex, 0) as i32 }
    }

    /// Back out of the device that it came from; on `lo` that is in again, the host being the sender.
    #[inline(always)]
    pub(crate) fn turn_back(self) -> i32 {
        if self.ifindex() == LO {
            self.to_host()
        } else {
            self.redirect(self.ifindex())
        }
    }

    /// Into the host's own stack through its loopback.
    #[inline(always)]
    pub(crate) fn to_host(self) -> i32 {
        // SAFETY: plain helper call.
        unsafe { bpf_redirect(LO, BPF_F_INGRESS) as i32 }
    }

    /// Out through a device; the kernel finds the neighbour.
    #[inline(always)]
    pub(crate) fn redirect_neigh(self, ifindex: u32) -> i32 {
        // SAFETY: no parameters: the kernel looks the next hop up.
        unsafe { bpf_redirect_neigh(ifindex, core::ptr::null_mut(), 0, 0) as i32 }
    }

    /// Into the namespace at the other end of an endpoint's veth.
    #[inline(always)]
    pub(crate) fn to_peer(self, ifindex: u32) -> i32 {
        // SAFETY: plain helper calls. Whatever the MAC was on the device it came by, here it is for the endpoint;
        // its stack drops PACKET_OTHERHOST without a word.
        unsafe {
            if (*self.raw).pkt_type != PACKET_HOST {
                bpf_skb_change_type(self.raw, PACKET_HOST);
            }
            bpf_redirect_peer(ifindex, 0) as i32
        }
    }
}

/// Whether two MACs are the same, without a call to memcmp.
#[inline(always)]
pub(crate) fn same_mac(a: &Mac, b: &Mac) -> bool {
    (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) == 0
}
