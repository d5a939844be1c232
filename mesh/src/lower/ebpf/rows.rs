//! Which set of backends has which row of `lut`, and what the row says.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    cells::Cells,
    desired::{Desired, Set},
    maps::Observed,
    space::Space,
};
use crate::{
    maglev::{self, LENGTHS},
    wanted::Problem,
};

/// A row of `lut`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LutRow {
    pub(super) off: u32,
    pub(super) cells: Vec<u32>,
    /// Whether a service named this row before, so that it is rewritten in place.
    pub(super) kept: bool,
}

impl LutRow {
    pub(super) fn len(&self) -> u32 {
        self.cells.len() as u32
    }
}

/// The rows, parallel to [`Desired::sets`]; none: no backend has a cell, or there is no space.
///
/// A set keeps the row that the first of its keys names, when its length is still right. Others get space that no
/// service named before this plan: what clients are being led by is not overwritten with another service's cells.
pub(super) fn assign(
    desired: &Desired,
    observed: &Observed,
    cells: &Cells,
    problems: &mut BTreeSet<Problem>,
) -> Vec<Option<LutRow>> {
    let mut space = Space::new(observed.sizes.lut);
    let mut claimed: BTreeMap<u32, u32> = BTreeMap::new();
    let placed: Vec<Placed<'_>> = desired.sets.iter().map(|set| Placed::new(set, cells)).collect();

    let mut offs: Vec<Option<u32>> = Vec::with_capacity(placed.len());
    for p in &placed {
        let off = p
            .named(observed)
            .find(|(off, len)| *len == p.want && space.claim(*off, *len))
            .map(|(at, _)| at);
        if let Some(off) = off {
            claimed.insert(off, p.want);
        }
        offs.push(off);
    }
    for row in observed.services.values() {
        space.block(row.lut_off, row.lut_len);
    }

    let mut out = Vec::with_capacity(placed.len());
    for (p, kept) in placed.iter().zip(offs) {
        let place = if p.want == 0 {
            None
        } else if let Some(off) = kept {
            Some((off, p.want, true))
        } else {
            p.elsewhere(observed, &mut space, &mut claimed)
        };
        let got = place.map_or(0, |(_, len, _)| len);
        if got < p.want {
            problems.insert(Problem::ShortRow {
                service: p.set.service,
                wanted: p.want,
                got,
            });
        }
        out.push(place.map(|(off, len, kept)| LutRow {
            off,
            cells: p.fill(len),
            kept,
        }));
    }
    out
}

/// A set with the cells of its backends.
struct Placed<'d> {
    set: &'d Set,
    /// Indices into `set`, and the cell of each.
    members: Vec<(usize, u32)>,
    want: u32,
}

impl<'d> Placed<'d> {
    fn new(set: &'d Set, cells: &Cells) -> Self {
        let members: Vec<(usize, u32)> = set
            .cells
            .iter()
            .enumerate()
            .filter_map(|(i, key)| cells.at.get(key).map(|cell| (i, *cell)))
            .collect();
        // A set that no key names (all of its ports are taken, or it has none) has no row.
        let want = if set.keys.is_empty() {
            0
        } else {
            maglev::row_len(members.len())
        };
        Placed { set, members, want }
    }

    /// Rows that this set's keys name now.
    fn named<'o>(&'o self, observed: &'o Observed) -> impl Iterator<Item = (u32, u32)> + 'o {
        self.set
            .keys
            .iter()
            .filter_map(|key| observed.services.get(key))
            .filter(|val| val.id == self.set.service && val.lut_len > 0)
            .map(|val| (val.lut_off, val.lut_len))
    }

    /// A new place: of the right length, else the place that it has, else a shorter one.
    fn elsewhere(
        &self,
        observed: &Observed,
        space: &mut Space,
        claimed: &mut BTreeMap<u32, u32>,
    ) -> Option<(u32, u32, bool)> {
        let shorter = LENGTHS.iter().rev().map(|(_, len)| *len).filter(|len| *len < self.want);
        let found = space.alloc(self.want).map(|off| (off, self.want, false)).or_else(|| {
            self.named(observed)
                .filter(|(_, len)| *len < self.want && LENGTHS.iter().any(|(_, l)| l == len))
                .find(|(off, len)| {
                    off.checked_add(*len).is_some_and(|end| end <= observed.sizes.lut) && !overlaps(claimed, *off, *len)
                })
                .map(|(off, len)| (off, len, true))
        });
        let found = found.or_else(|| {
            let mut shorter = shorter;
            shorter.find_map(|len| space.alloc(len).map(|off| (off, len, false)))
        })?;
        claimed.insert(found.0, found.1);
        Some(found)
    }

    fn fill(&self, len: u32) -> Vec<u32> {
        let seeds: Vec<_> = self
            .members
            .iter()
            .filter_map(|(i, _)| self.set.seeds.get(*i).copied())
            .collect();
        let mut row = maglev::fill(&seeds, len);
        for cell in &mut row {
            *cell = self.members.get(*cell as usize).map_or(0, |(_, cell)| *cell);
        }
        row
    }
}

fn overlaps(claimed: &BTreeMap<u32, u32>, off: u32, len: u32) -> bool {
    claimed
        .range(..off + len)
        .next_back()
        .is_some_and(|(at, n)| at + n > off)
}
