use std::{cell::Cell, collections::VecDeque, sync::Arc};

use raft::{Error, GetEntriesContext, RaftState, Result, Storage, StorageError, eraftpb as pb};

use super::{
    convert,
    message::{Conf, HardState, Snapshot},
};

/// The log as the library reads it: in memory from the last compaction on. What is here is on disk too, except between
/// a `Ready` and its write.
pub(super) struct Memory {
    pub(super) hard: HardState,
    pub(super) conf: Conf,
    /// The entry before the first: its term is still known.
    base: (u64, u64),
    entries: VecDeque<pb::Entry>,
    snapshot: Option<Arc<Snapshot>>,
    /// Somebody needs a snapshot that is newer than `snapshot`.
    pub(super) wanted: Cell<bool>,
}

impl Memory {
    pub(super) fn new(
        hard: HardState,
        conf: Conf,
        base: (u64, u64),
        entries: VecDeque<pb::Entry>,
        snapshot: Option<Arc<Snapshot>>,
    ) -> Memory {
        Memory {
            hard,
            conf,
            base,
            entries,
            snapshot,
            wanted: Cell::new(false),
        }
    }

    fn first(&self) -> u64 {
        self.base.0 + 1
    }

    pub(super) fn last(&self) -> u64 {
        self.base.0 + self.entries.len() as u64
    }

    pub(super) fn term_at(&self, index: u64) -> Option<u64> {
        if index == self.base.0 {
            return Some(self.base.1);
        }
        let at = usize::try_from(index.checked_sub(self.first())?).ok()?;
        self.entries.get(at).map(|e| e.term)
    }

    pub(super) fn entry(&self, index: u64) -> Option<pb::Entry> {
        let at = usize::try_from(index.checked_sub(self.first())?).ok()?;
        self.entries.get(at).cloned()
    }

    /// Appends; what stands at the same index or behind is replaced.
    pub(super) fn append(&mut self, entries: Vec<pb::Entry>) {
        if let Some(first) = entries.first() {
            let keep = first.index.saturating_sub(self.first());
            self.entries.truncate(usize::try_from(keep).unwrap_or(usize::MAX));
        }
        self.entries.extend(entries);
    }

    /// Starts anew behind a snapshot that a leader sent.
    pub(super) fn install(&mut self, snapshot: Snapshot) {
        self.base = (snapshot.index, snapshot.term);
        self.entries.clear();
        self.conf = snapshot.conf.clone();
        self.hard.commit = self.hard.commit.max(snapshot.index);
        self.snapshot = Some(Arc::new(snapshot));
    }

    /// Keeps a snapshot made here, for those who are far behind.
    pub(super) fn keep(&mut self, snapshot: Arc<Snapshot>) {
        self.snapshot = Some(snapshot);
        self.wanted.set(false);
    }

    /// Forgets the entries up to `index`, if a snapshot covers them.
    pub(super) fn compact(&mut self, index: u64) {
        let covered = self.snapshot.as_ref().map_or(0, |s| s.index);
        let index = index.min(covered);
        if let Some(term) = self.term_at(index).filter(|_| index > self.base.0) {
            let n = usize::try_from(index - self.base.0).unwrap_or(usize::MAX);
            self.entries.drain(..n.min(self.entries.len()));
            self.base = (index, term);
        }
    }
}

impl Storage for Memory {
    fn initial_state(&self) -> Result<RaftState> {
        Ok(RaftState::new(
            convert::hard_in(&self.hard),
            convert::conf_in(&self.conf),
        ))
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> Result<Vec<pb::Entry>> {
        if low < self.first() {
            return Err(Error::Store(StorageError::Compacted));
        }
        if high > self.last() + 1 {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let from = usize::try_from(low - self.first()).unwrap_or(usize::MAX);
        let count = usize::try_from(high.saturating_sub(low)).unwrap_or(0);
        let mut left = max_size.into().unwrap_or(u64::MAX);
        let mut out = Vec::new();
        for e in self.entries.iter().skip(from).take(count) {
            let size = (e.data.len() + e.context.len() + 24) as u64;
            if !out.is_empty() && size > left {
                break;
            }
            left = left.saturating_sub(size);
            out.push(e.clone());
        }
        Ok(out)
    }

    fn term(&self, index: u64) -> Result<u64> {
        if index < self.base.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        self.term_at(index).ok_or(Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> Result<u64> {
        Ok(self.last())
    }

    fn snapshot(&self, request_index: u64, to: u64) -> Result<pb::Snapshot> {
        match &self.snapshot {
            // One from before it became a member would be thrown away there.
            Some(s) if s.index >= request_index && s.index >= self.base.0 && s.conf.contains(to) => {
                Ok(convert::snapshot_in(s))
            }
            _ => {
                self.wanted.set(true);
                Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable))
            }
        }
    }
}
