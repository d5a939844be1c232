//! The lookup table: Maglev rows, written through memory that the programs read.

use std::{os::fd::AsFd, sync::atomic::Ordering};

use super::{BpfError, sys::Words};

/// The mapped array `lut`.
#[derive(Debug)]
pub struct Lut {
    words: Words,
}

impl Lut {
    pub(super) fn open(fd: impl AsFd, cells: u32) -> Result<Lut, BpfError> {
        let words = Words::map(fd, cells as usize).map_err(|source| BpfError::Map { map: "lut", what: "map the cells", source })?;
        Ok(Lut { words })
    }

    /// Cells of the whole table.
    pub fn cells(&self) -> u32 {
        self.words.cells().len() as u32
    }

    fn row(&self, off: u32, len: usize) -> Result<&[std::sync::atomic::AtomicU32], BpfError> {
        let end = u64::from(off) + len as u64;
        let cells = self.words.cells();
        cells.get(off as usize..end as usize).ok_or(BpfError::Row { off, end, cells: cells.len() as u32 })
    }

    /// Writes a row of backend cells from cell `off` on; gives how many cells were not that already.
    ///
    /// Not atomic as a whole, and it need not be: each cell is, and each cell of an old row leads to a backend whose
    /// state the programs look at.
    ///
    /// # Errors
    /// The row lies outside the table.
    pub fn write_row(&mut self, off: u32, row: &[u32]) -> Result<usize, BpfError> {
        Ok(Words::write(self.row(off, row.len())?, row))
    }

    /// Reads a row.
    ///
    /// # Errors
    /// The row lies outside the table.
    pub fn read_row(&self, off: u32, len: u32) -> Result<Vec<u32>, BpfError> {
        Ok(self.row(off, len as usize)?.iter().map(|c| c.load(Ordering::Relaxed)).collect())
    }
}
