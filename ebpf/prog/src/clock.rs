//! Time, as coarse as idle times need.

use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;

/// Units of 2^30 ns (1.07 s) since boot.
#[inline(always)]
pub(crate) fn now() -> u32 {
    // SAFETY: no arguments (Linux 5.11).
    unsafe { (bpf_ktime_get_coarse_ns() >> 30) as u32 }
}
