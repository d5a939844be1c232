//! A map with a mirror: what is wanted is written as the difference to what is there.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use super::{
    BpfError,
    sys::{self, Plain},
};

fn is_full(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::E2BIG | libc::ENOSPC))
}

/// What [`Table::sync`] wrote.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SyncCount {
    /// Entries that were not there.
    pub added: usize,
    /// Entries that had another value.
    pub changed: usize,
    /// Entries that are wanted no more.
    pub removed: usize,
}

impl SyncCount {
    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        *self == SyncCount::default()
    }
}

/// A map that user space alone writes, and its contents as last known.
///
/// Arrays are tables too: a cell of zeros counts as absent.
#[derive(Debug)]
pub struct Table<K, V> {
    name: &'static str,
    fd: OwnedFd,
    array: bool,
    mirror: BTreeMap<K, V>,
    /// A write failed half-way: the mirror must be read anew before the next difference is taken.
    stale: bool,
}

impl<K: Plain + Ord + Default, V: Plain + Eq + Default> Table<K, V> {
    pub(super) fn open(name: &'static str, fd: OwnedFd, array: bool) -> Result<Self, BpfError> {
        let mut table = Table {
            name,
            fd,
            array,
            mirror: BTreeMap::new(),
            stale: true,
        };
        table.refresh()?;
        Ok(table)
    }

    /// What the map holds, as last read or written.
    pub fn get_all(&self) -> &BTreeMap<K, V> {
        &self.mirror
    }

    /// Reads the map anew; true: it was not as the mirror said.
    ///
    /// # Errors
    /// The kernel refuses to read.
    pub fn refresh(&mut self) -> Result<bool, BpfError> {
        let mut seen = BTreeMap::new();
        let array = self.array;
        sys::read_all(self.fd.as_fd(), |k: K, v: V| {
            if !array || v != V::default() {
                seen.insert(k, v);
            }
        })
        .map_err(self.error("read"))?;
        let differs = seen != self.mirror;
        self.mirror = seen;
        self.stale = false;
        Ok(differs)
    }

    /// Makes the map hold `want` and nothing else: what is new or changed first, then what goes.
    ///
    /// # Errors
    /// The kernel refuses a write; what was written stays, and the next call begins by reading.
    pub fn sync(&mut self, want: &BTreeMap<K, V>) -> Result<SyncCount, BpfError> {
        if self.stale {
            self.refresh()?;
        }
        let mut count = SyncCount::default();
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for (k, v) in want {
            // A wanted cell of zeros is an absent one.
            if self.array && *v == V::default() {
                continue;
            }
            match self.mirror.get(k) {
                Some(there) if there == v => continue,
                Some(_) => count.changed += 1,
                None => count.added += 1,
            }
            keys.push(*k);
            values.push(*v);
        }
        let array = self.array;
        let gone: Vec<K> = self
            .mirror
            .keys()
            .filter(|k| want.get(k).is_none_or(|v| array && *v == V::default()))
            .copied()
            .collect();
        count.removed = gone.len();
        match self.put(&keys, &values, "write") {
            // No room for both: what goes makes room.
            Err(BpfError::Map { source, .. }) if !gone.is_empty() && is_full(&source) => {
                self.take(&gone)?;
                self.put(&keys, &values, "write")?;
            }
            outcome => {
                outcome?;
                self.take(&gone)?;
            }
        }
        Ok(count)
    }

    /// Makes the map hold what of `want` has no entry yet; what is there stays as it is.
    ///
    /// # Errors
    /// As [`Table::sync`].
    pub fn add(&mut self, want: &BTreeMap<K, V>) -> Result<SyncCount, BpfError> {
        if self.stale {
            self.refresh()?;
        }
        let mut all = self.mirror.clone();
        for (k, v) in want {
            all.entry(*k).or_insert(*v);
        }
        self.sync(&all)
    }

    /// Writes one entry; false: it was there.
    ///
    /// # Errors
    /// As [`Table::sync`].
    pub fn upsert(&mut self, key: K, value: V) -> Result<bool, BpfError> {
        if self.stale {
            self.refresh()?;
        }
        if self.mirror.get(&key) == Some(&value) {
            return Ok(false);
        }
        self.put(&[key], &[value], "write")?;
        Ok(true)
    }

    /// Deletes one entry; false: it was not there.
    ///
    /// # Errors
    /// As [`Table::sync`].
    pub fn remove(&mut self, key: &K) -> Result<bool, BpfError> {
        if self.stale {
            self.refresh()?;
        }
        if !self.mirror.contains_key(key) {
            return Ok(false);
        }
        self.take(&[*key])?;
        Ok(true)
    }

    fn put(&mut self, keys: &[K], values: &[V], what: &'static str) -> Result<(), BpfError> {
        let (done, outcome) = sys::update_all(self.fd.as_fd(), keys, values);
        self.mirror
            .extend(keys.iter().copied().zip(values.iter().copied()).take(done));
        self.stale = outcome.is_err();
        outcome.map_err(self.error(what))
    }

    fn take(&mut self, keys: &[K]) -> Result<(), BpfError> {
        let (done, outcome) = if self.array {
            let zeros = vec![V::default(); keys.len()];
            sys::update_all(self.fd.as_fd(), keys, &zeros)
        } else {
            sys::delete_all(self.fd.as_fd(), keys)
        };
        for k in keys.iter().take(done) {
            self.mirror.remove(k);
        }
        self.stale |= outcome.is_err();
        outcome.map_err(self.error("delete"))
    }

    fn error(&self, what: &'static str) -> impl Fn(io::Error) -> BpfError + use<K, V> {
        let map = self.name;
        move |source| BpfError::Map { map, what, source }
    }
}
