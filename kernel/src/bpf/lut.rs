//! The lookup table: Maglev rows, written through memory that the programs read.

use std::{
    os::fd::AsFd,
    sync::atomic::{AtomicU32, Ordering},
};

use super::{BpfError, sys::Words};

/// The mapped array `lut`.
#[derive(Debug)]
pub struct Lut {
    words: Words,
}

impl Lut {
    pub(super) fn open(fd: impl AsFd, cells: u32) -> Result<Lut, BpfError> {
        let words = Words::map(fd, cells as usize).map_err(|source| BpfError::Map {
            map: "lut",
            what: "map the cells",
            source,
        })?;
        Ok(Lut { words })
    }

    /// Cells of the whole table.
    pub fn cells(&self) -> u32 {
        self.words.len() as u32
    }

    fn row(&self, off: u32, len: usize) -> Result<impl Iterator<Item = &AtomicU32>, BpfError> {
        let outside = || BpfError::Row {
            off,
            end: u64::from(off) + len as u64,
            cells: self.cells(),
        };
        self.words.row(off as usize, len).ok_or_else(outside)
    }

    /// Writes a row of backend cells from cell `off` on; gives how many cells were not that already.
    ///
    /// Not atomic as a whole, and it need not be: each cell is, and each cell of an old row leads to a backend whose
    /// state the programs look at.
    ///
    /// # Errors
    /// The row lies outside the table.
    pub fn write_row(&mut self, off: u32, row: &[u32]) -> Result<usize, BpfError> {
        let mut changed = 0;
        for (cell, wanted) in self.row(off, row.len())?.zip(row) {
            if cell.load(Ordering::Relaxed) != *wanted {
                cell.store(*wanted, Ordering::Relaxed);
                changed += 1;
            }
        }
        Ok(changed)
    }

    /// Reads a row.
    ///
    /// # Errors
    /// The row lies outside the table.
    pub fn read_row(&self, off: u32, len: u32) -> Result<Vec<u32>, BpfError> {
        Ok(self
            .row(off, len as usize)?
            .map(|c| c.load(Ordering::Relaxed))
            .collect())
    }
}
