//! Which backend has which cell of `backends`.

use std::collections::{BTreeMap, BTreeSet};

use ebpf_abi::{BACKEND_GONE, Backend};

use super::{
    desired::{CellKey, Desired},
    maps::{Gone, Observed},
};
use crate::wanted::Problem;

/// Where backends are, and what becomes of the cells that nobody wants.
#[derive(Debug, Default)]
pub(super) struct Cells {
    /// Wanted backends that have a cell.
    pub(super) at: BTreeMap<CellKey, u32>,
    /// Cells whose backend is not wanted, not yet purged.
    pub(super) gone: Vec<Gone>,
}

impl Cells {
    /// A backend found in a cell keeps it, also when it was on its way out; the others get the lowest cells that were
    /// free before this plan. A cell that becomes free now is not given out: flows still name it until they are purged.
    pub(super) fn assign(desired: &Desired, observed: &Observed, problems: &mut BTreeSet<Problem>) -> Self {
        let mut out = Cells::default();
        let mut used = BTreeSet::from([0]);
        for (cell, held) in (0..observed.sizes.backends).zip(&observed.backends) {
            if *held == Backend::default() {
                continue;
            }
            used.insert(cell);
            let key = (held.vni, held.mac);
            if cell > 0 && desired.backends.contains_key(&key) && !out.at.contains_key(&key) {
                out.at.insert(key, cell);
            } else {
                out.gone.push(Gone { cell, backend: *held });
            }
        }
        let mut free = (1..observed.sizes.backends).filter(|cell| !used.contains(cell));
        for key in desired.backends.keys() {
            if out.at.contains_key(key) {
                continue;
            }
            match free.next() {
                Some(cell) => drop(out.at.insert(*key, cell)),
                None => {
                    problems.insert(Problem::Full {
                        map: "backends",
                        size: observed.sizes.backends,
                        what: format!("a backend of network {}", key.0),
                    });
                }
            }
        }
        out
    }
}

/// A cell on its way out: nobody is sent to it, its flows are still to be purged.
pub(super) fn retired(held: Backend) -> Backend {
    Backend {
        state: BACKEND_GONE,
        ..held
    }
}
