//! Counters, one cell per reason and CPU.

use crate::{maps::COUNTERS, skb::SHOT};

/// Counts one event.
#[inline(always)]
pub(crate) fn count(cell: u32) {
    if let Some(c) = COUNTERS.get_ptr_mut(cell) {
        // SAFETY: the cell is this CPU's own, and programs do not interrupt each other on one hook's path.
        unsafe { *c += 1 }
    }
}

/// Counts a drop and gives the verdict.
#[inline(always)]
pub(crate) fn drop(cell: u32) -> i32 {
    count(cell);
    SHOT
}
