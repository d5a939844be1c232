//! What the maps hold, and the steps that change them.

use std::collections::BTreeMap;

use ebpf_abi::{Backend, SvcKey, SvcVal, TargetKey, TargetVal, size};

/// What the maps of this node hold, as read from the kernel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// Map `services`.
    pub services: BTreeMap<SvcKey, SvcVal>,
    /// Array `backends`, from cell 0 on; cells past the end of this vector are zeros.
    pub backends: Vec<Backend>,
    /// Array `lut`, from cell 0 on; cells past the end are zeros. The reader may stop at the highest cell that a row
    /// of `services` reaches.
    pub lut: Vec<u32>,
    /// Map `targets`.
    pub targets: BTreeMap<TargetKey, TargetVal>,
    /// How large the maps are.
    pub sizes: Sizes,
}

/// How many entries each map has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Map `services`.
    pub services: u32,
    /// Array `backends`.
    pub backends: u32,
    /// Array `lut`.
    pub lut: u32,
    /// Map `targets`.
    pub targets: u32,
}

impl Default for Sizes {
    fn default() -> Self {
        Sizes {
            services: size::SERVICES,
            backends: size::BACKENDS,
            lut: size::LUT,
            targets: size::TARGETS,
        }
    }
}

/// One write. The order in a plan is what keeps every intermediate state good: carry the steps out one after the other,
/// and plan anew when one fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Write a cell of `backends`.
    Backend {
        /// Cell, from 1 on: cell 0 is never used, so that a zeroed cell of `lut` names no backend.
        cell: u32,
        /// Value. State `BACKEND_GONE` with a MAC: the flows of this backend are yet to be purged; all zeros: free.
        value: Backend,
    },
    /// Write an entry of `targets`.
    Target {
        /// Key.
        key: TargetKey,
        /// Value.
        value: TargetVal,
    },
    /// Write consecutive cells of `lut`.
    Lut {
        /// First cell.
        off: u32,
        /// Cells of `backends`.
        cells: Vec<u32>,
    },
    /// Write an entry of `services`.
    Service {
        /// Key.
        key: SvcKey,
        /// Value.
        value: SvcVal,
    },
    /// Remove an entry of `services`.
    RemoveService {
        /// Key.
        key: SvcKey,
    },
    /// Remove an entry of `targets`.
    RemoveTarget {
        /// Key.
        key: TargetKey,
    },
    /// Remove the entries of `affinity` that name these cells, and those of `reverse` and `forward` that belong to
    /// these backends' addresses. One walk for all of them.
    Purge {
        /// Backends that are gone, by cell.
        gone: Vec<Gone>,
    },
}

/// A backend whose flows are to be purged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone {
    /// Its cell.
    pub cell: u32,
    /// What the cell held: `addr4`, `addr6` and `vni` find the entries that name no cell.
    pub backend: Backend,
}

impl Observed {
    /// A cell of `backends`; zeros past the end.
    pub fn backend(&self, cell: u32) -> Backend {
        self.backends.get(cell as usize).copied().unwrap_or_default()
    }

    /// A cell of `lut`; 0 past the end.
    pub fn lut_cell(&self, cell: u32) -> u32 {
        self.lut.get(cell as usize).copied().unwrap_or_default()
    }

    /// Carries a step out, as the kernel would: the model that tests and simulations plan against. Cells beyond the
    /// sizes of the arrays are ignored, as no such cell exists.
    pub fn apply(&mut self, step: &Step) {
        match step {
            Step::Backend { cell, value } if *cell < self.sizes.backends => put(&mut self.backends, *cell, *value),
            Step::Lut { off, cells } => {
                for (cell, backend) in (*off..self.sizes.lut).zip(cells) {
                    put(&mut self.lut, cell, *backend);
                }
            }
            Step::Target { key, value } => drop(self.targets.insert(*key, *value)),
            Step::Service { key, value } => drop(self.services.insert(*key, *value)),
            Step::RemoveService { key } => drop(self.services.remove(key)),
            Step::RemoveTarget { key } => drop(self.targets.remove(key)),
            Step::Backend { .. } | Step::Purge { .. } => {}
        }
    }
}

fn put<T: Copy + Default>(array: &mut Vec<T>, cell: u32, value: T) {
    let at = cell as usize;
    if array.len() <= at {
        array.resize(at + 1, T::default());
    }
    if let Some(c) = array.get_mut(at) {
        *c = value;
    }
}
