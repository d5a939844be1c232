//! A disk that is slow, full, torn, or lies about a sync, when it is told to.

use std::{cell::RefCell, collections::BTreeMap, io, rc::Rc};

use cluster::log::Disk;
use serde::{Deserialize, Serialize};

/// What of the unsynced writes is there after the power went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Keep {
    /// Everything: the process died, the machine did not.
    All,
    /// Nothing.
    Nothing,
    /// The sectors (512 octets) whose bit is set, counted round.
    Sectors(u64),
}

const SECTOR: usize = 512;

#[derive(Debug, Default)]
struct File {
    durable: Vec<u8>,
    /// Writes since the last sync.
    pending: Vec<(usize, Vec<u8>)>,
}

impl File {
    fn settle(&mut self, keep: Keep) {
        for (at, bytes) in std::mem::take(&mut self.pending) {
            let mut from = 0;
            while from < bytes.len() {
                let sector = (at + from) / SECTOR;
                let to = ((sector + 1) * SECTOR - at).min(bytes.len());
                let kept = match keep {
                    Keep::All => true,
                    Keep::Nothing => false,
                    Keep::Sectors(mask) => mask >> (sector % 64) & 1 == 1,
                };
                if kept {
                    self.durable[at + from..at + to].copy_from_slice(&bytes[from..to]);
                }
                from = to;
            }
        }
    }
}

#[derive(Debug, Default)]
struct Content {
    files: BTreeMap<String, File>,
    /// Steps until the power goes: an octet written is one, every call is one more.
    left: Option<u64>,
    sync_fails: bool,
    full: bool,
    /// What a sync takes, µs.
    cost: u64,
    /// What was taken since [`SimDisk::take_spent`].
    spent: u64,
}

/// A handle of a disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct SimDisk(Rc<RefCell<Content>>);

fn gone() -> io::Error {
    io::Error::other("the power is gone")
}

impl SimDisk {
    /// The power goes after so many steps.
    pub(crate) fn stop_after(&self, steps: u64) {
        self.0.borrow_mut().left = Some(steps);
    }

    /// The next sync fails, and all after it.
    pub(crate) fn fail_syncs(&self) {
        self.0.borrow_mut().sync_fails = true;
    }

    /// There is no room for a new file.
    pub(crate) fn set_full(&self, full: bool) {
        self.0.borrow_mut().full = full;
    }

    /// What a sync takes, µs.
    pub(crate) fn set_cost(&self, cost: u64) {
        self.0.borrow_mut().cost = cost;
    }

    /// What the syncs took until now, µs.
    pub(crate) fn spent(&self) -> u64 {
        self.0.borrow().spent
    }

    /// Forgets what the syncs took.
    pub(crate) fn clear_spent(&self) {
        self.0.borrow_mut().spent = 0;
    }

    /// The power went and came back.
    pub(crate) fn crash(&self, keep: Keep) {
        let mut c = self.0.borrow_mut();
        for file in c.files.values_mut() {
            file.settle(keep);
        }
        (c.left, c.sync_fails) = (None, false);
    }

    /// Another disk is in the machine.
    pub(crate) fn wipe(&self) {
        let mut c = self.0.borrow_mut();
        c.files.clear();
        (c.left, c.sync_fails) = (None, false);
    }

    fn power(&self, c: &mut Content, steps: u64) -> Result<(), u64> {
        match &mut c.left {
            None => Ok(()),
            Some(left) if *left >= steps => {
                *left -= steps;
                Ok(())
            }
            Some(left) => Err(std::mem::take(left)),
        }
    }
}

impl Disk for SimDisk {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.borrow().files.keys().cloned().collect())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let c = self.0.borrow();
        let file = c.files.get(name).ok_or(io::ErrorKind::NotFound)?;
        let mut out = file.durable.clone();
        for (at, bytes) in &file.pending {
            out[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        Ok(out)
    }

    fn create(&mut self, name: &str, head: &[u8], len: u64) -> io::Result<()> {
        let mut c = self.0.borrow_mut();
        if c.full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        c.spent += c.cost;
        self.power(&mut c, 1).map_err(|_| gone())?;
        let mut durable = Vec::with_capacity(len as usize);
        durable.extend_from_slice(head);
        durable.resize(len as usize, 0);
        let pending = Vec::new();
        c.files.insert(name.into(), File { durable, pending });
        // The power may go after it is there and before it is told.
        self.power(&mut c, 1).map_err(|_| gone())
    }

    fn write(&mut self, name: &str, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut c = self.0.borrow_mut();
        let power = self.power(&mut c, bytes.len() as u64 + 1);
        let file = c.files.get_mut(name).ok_or(io::ErrorKind::NotFound)?;
        if at as usize + bytes.len() > file.durable.len() {
            return Err(io::Error::other("beyond the end of the file"));
        }
        match power {
            Ok(()) => {
                file.pending.push((at as usize, bytes.to_vec()));
                Ok(())
            }
            Err(left) => {
                file.pending.push((at as usize, bytes[..left as usize].to_vec()));
                Err(gone())
            }
        }
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        let mut c = self.0.borrow_mut();
        c.spent += c.cost;
        self.power(&mut c, 1).map_err(|_| gone())?;
        if c.sync_fails {
            return Err(io::Error::other("EIO"));
        }
        let file = c.files.get_mut(name).ok_or(io::ErrorKind::NotFound)?;
        file.settle(Keep::All);
        self.power(&mut c, 1).map_err(|_| gone())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        let mut c = self.0.borrow_mut();
        self.power(&mut c, 1).map_err(|_| gone())?;
        c.files.remove(name);
        self.power(&mut c, 1).map_err(|_| gone())
    }
}
