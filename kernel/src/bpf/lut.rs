//! The lookup table: Maglev rows, written through memory that the programs read.

use std::{os::fd::OwnedFd, sync::atomic::Ordering};

use super::{BpfError, sys::Words};

/// The array `lut`. A row is mapped while it is read or written.
#[derive(Debug)]
pub struct Lut {
    fd: OwnedFd,
    cells: u32,
}

impl Lut {
    pub(super) fn new(fd: OwnedFd, cells: u32) -> Lut {
        Lut { fd, cells }
    }

    /// Cells of the whole table.
    pub fn cells(&self) -> u32 {
        self.cells
    }

    /// Maps a row; `None`: it has no cell.
    fn row(&self, off: u32, len: usize) -> Result<Option<Words>, BpfError> {
        let end = u64::from(off) + len as u64;
        if end > u64::from(self.cells) {
            return Err(BpfError::Row {
                off,
                end,
                cells: self.cells,
            });
        }
        if len == 0 {
            return Ok(None);
        }
        Words::map(&self.fd, off as usize, len)
            .map(Some)
            .map_err(|source| BpfError::Map {
                map: "lut",
                what: "map the cells",
                source,
            })
    }

    /// Writes a row of backend cells from cell `off` on; gives how many cells were not that already.
    ///
    /// Not atomic as a whole, and it need not be: each cell is, and each cell of an old row leads to a backend whose
    /// state the programs look at.
    ///
    /// # Errors
    /// The row lies outside the table, or cannot be mapped.
    pub fn write_row(&mut self, off: u32, row: &[u32]) -> Result<usize, BpfError> {
        let Some(words) = self.row(off, row.len())? else {
            return Ok(0);
        };
        let mut changed = 0;
        for (cell, wanted) in words.cells().zip(row) {
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
    /// As [`Lut::write_row`].
    pub fn read_row(&self, off: u32, len: u32) -> Result<Vec<u32>, BpfError> {
        let words = self.row(off, len as usize)?;
        let cells = words.iter().flat_map(Words::cells);
        Ok(cells.map(|c| c.load(Ordering::Relaxed)).collect())
    }
}
