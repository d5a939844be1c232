//! A disk that stops at any octet.

use std::{cell::RefCell, collections::BTreeMap, io, rc::Rc};

use super::super::Disk;

#[derive(Default, Clone)]
struct File {
    durable: Vec<u8>,
    /// Writes since the last sync.
    pending: Vec<(usize, Vec<u8>)>,
}

impl File {
    fn now(&self) -> Vec<u8> {
        let mut out = self.durable.clone();
        for (at, bytes) in &self.pending {
            out[*at..at + bytes.len()].copy_from_slice(bytes);
        }
        out
    }
}

#[derive(Default)]
struct World {
    files: BTreeMap<String, File>,
    /// Steps until the power goes: an octet written is one, every call is one more.
    left: Option<u64>,
    steps: u64,
    sync_fails: bool,
}

/// What of the unsynced writes is on the disk after the power went.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kept {
    /// Everything up to the octet where it stopped.
    All,
    /// Nothing.
    Nothing,
    /// The sectors (512 octets) whose bit is set.
    Sectors(u64),
}

#[derive(Default, Clone)]
pub(super) struct Sim(Rc<RefCell<World>>);

impl Sim {
    /// Steps taken so far.
    pub(super) fn steps(&self) -> u64 {
        self.0.borrow().steps
    }

    pub(super) fn stop_after(&self, steps: u64) {
        self.0.borrow_mut().left = Some(steps);
    }

    pub(super) fn fail_syncs(&self) {
        self.0.borrow_mut().sync_fails = true;
    }

    pub(super) fn stopped(&self) -> bool {
        self.0.borrow().left == Some(0)
    }

    /// The disk after the power came back.
    pub(super) fn reboot(&self, kept: Kept) -> Sim {
        let mut files = self.0.borrow().files.clone();
        for file in files.values_mut() {
            let mut pending = std::mem::take(&mut file.pending);
            match kept {
                Kept::All => {}
                Kept::Nothing => pending.clear(),
                Kept::Sectors(mask) => {
                    let split = |(at, bytes): (usize, Vec<u8>)| {
                        let octets = bytes.into_iter().enumerate();
                        octets
                            .map(|(i, b)| (at + i, vec![b]))
                            .filter(|(at, _)| mask >> (at / 512 % 64) & 1 == 1)
                            .collect::<Vec<_>>()
                    };
                    pending = pending.into_iter().flat_map(split).collect();
                }
            }
            file.pending = pending;
            file.durable = file.now();
            file.pending.clear();
        }
        Sim(Rc::new(RefCell::new(World {
            files,
            ..World::default()
        })))
    }

    pub(super) fn flip(&self, name: &str, at: usize, bit: u8) {
        self.0.borrow_mut().files.get_mut(name).unwrap().durable[at] ^= 1 << bit;
    }

    pub(super) fn put(&self, name: &str, bytes: Vec<u8>) {
        let file = File {
            durable: bytes,
            pending: vec![],
        };
        self.0.borrow_mut().files.insert(name.into(), file);
    }

    /// Takes up to `n` steps; how many the power allows.
    fn spend(&self, n: u64) -> u64 {
        let mut world = self.0.borrow_mut();
        let can = world.left.map_or(n, |l| l.min(n));
        world.left = world.left.map(|l| l - can);
        world.steps += can;
        can
    }

    fn power(&self) -> io::Result<()> {
        match self.spend(1) {
            1 => Ok(()),
            _ => Err(io::Error::other("the power is gone")),
        }
    }
}

impl Disk for Sim {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.borrow().files.keys().cloned().collect())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let world = self.0.borrow();
        Ok(world.files.get(name).ok_or(io::ErrorKind::NotFound)?.now())
    }

    fn create(&mut self, name: &str, head: &[u8], len: u64) -> io::Result<()> {
        self.power()?;
        let mut bytes = head.to_vec();
        bytes.resize(len as usize, 0);
        self.put(name, bytes);
        // The power may go after it is there and before it is told.
        self.power()
    }

    fn write(&mut self, name: &str, at: u64, bytes: &[u8]) -> io::Result<()> {
        self.power()?;
        let n = self.spend(bytes.len() as u64) as usize;
        let mut world = self.0.borrow_mut();
        let file = world.files.get_mut(name).ok_or(io::ErrorKind::NotFound)?;
        assert!(at as usize + bytes.len() <= file.durable.len(), "within the file");
        file.pending.push((at as usize, bytes[..n].to_vec()));
        match n == bytes.len() {
            true => Ok(()),
            false => Err(io::Error::other("the power is gone")),
        }
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.power()?;
        if self.0.borrow().sync_fails {
            return Err(io::Error::other("EIO"));
        }
        let mut world = self.0.borrow_mut();
        let file = world.files.get_mut(name).ok_or(io::ErrorKind::NotFound)?;
        file.durable = file.now();
        file.pending.clear();
        drop(world);
        self.power()
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.power()?;
        self.0.borrow_mut().files.remove(name);
        self.power()
    }
}
