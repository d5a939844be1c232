//! Free space of the lookup table: ranges of cells, first fit.

use std::collections::BTreeMap;

/// The free ranges of an array, by their first cell; disjoint and never adjacent.
#[derive(Debug, Clone)]
pub(super) struct Space(BTreeMap<u32, u32>);

impl Space {
    /// `cells` free cells.
    pub(super) fn new(cells: u32) -> Self {
        Space((cells > 0).then_some((0, cells)).into_iter().collect())
    }

    /// Takes exactly this range; `false` (and nothing taken) unless all of it was free.
    pub(super) fn claim(&mut self, off: u32, len: u32) -> bool {
        let Some(end) = off.checked_add(len) else {
            return false;
        };
        let Some((&start, &have)) = self.0.range(..=off).next_back() else {
            return false;
        };
        if len == 0 || start + have < end {
            return false;
        }
        self.carve(start, have, off, end);
        true
    }

    /// Takes whatever of this range is free.
    pub(super) fn block(&mut self, off: u32, len: u32) {
        let end = off.saturating_add(len);
        let met: Vec<(u32, u32)> = self
            .0
            .range(..end)
            .rev()
            .map(|(s, n)| (*s, *n))
            .take_while(|(s, n)| s + n > off)
            .collect();
        for (start, have) in met {
            self.carve(start, have, off.max(start), end.min(start + have));
        }
    }

    /// Takes the first `len` cells that are free in a row.
    pub(super) fn alloc(&mut self, len: u32) -> Option<u32> {
        let (&start, &have) = self.0.iter().find(|(_, have)| **have >= len)?;
        self.carve(start, have, start, start + len);
        Some(start)
    }

    fn carve(&mut self, start: u32, have: u32, off: u32, end: u32) {
        self.0.remove(&start);
        if off > start {
            self.0.insert(start, off - start);
        }
        if start + have > end {
            self.0.insert(end, start + have - end);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn claims_and_finds() {
        let mut s = Space::new(100);
        assert!(s.claim(10, 10));
        assert!(!s.claim(19, 1), "taken");
        assert!(!s.claim(95, 6), "past the end");
        assert!(!s.claim(u32::MAX, 2), "overflows");
        assert_eq!(s.alloc(11), Some(20));
        assert_eq!(s.alloc(10), Some(0));
        assert_eq!(s.alloc(70), None);
        s.block(25, 10);
        assert_eq!(s.alloc(65), Some(35));
        assert_eq!(s.alloc(1), None);
        assert_eq!(Space::new(0).alloc(1), None);
    }

    proptest! {
        /// Against a plain array of flags.
        #[test]
        fn agrees_with_an_array(ops in proptest::collection::vec((0u8..3, 0u32..70, 1u32..20), 0..40)) {
            let mut s = Space::new(64);
            let mut taken = [false; 64];
            for (op, off, len) in ops {
                let range = off as usize..(off + len) as usize;
                match op {
                    0 => {
                        let free = taken.get(range.clone()).is_some_and(|c| c.iter().all(|t| !t));
                        prop_assert_eq!(s.claim(off, len), free);
                        if free { taken[range].fill(true) }
                    }
                    1 => {
                        s.block(off, len);
                        taken.iter_mut().enumerate().filter(|(i, _)| range.contains(i)).for_each(|(_, t)| *t = true);
                    }
                    _ => {
                        let at = (0..64usize).find(|i| taken.get(*i..i + len as usize).is_some_and(|c| c.iter().all(|t| !t)));
                        prop_assert_eq!(s.alloc(len), at.map(|a| a as u32));
                        if let Some(a) = at { taken[a..a + len as usize].fill(true) }
                    }
                }
            }
        }
    }
}
