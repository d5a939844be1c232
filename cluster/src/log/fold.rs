//! What the records of a log add up to.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::raft::{Conf, Entry, HardState, Snapshot, Start};

/// A record's body.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) enum Record {
    /// Who votes at the beginning; the first record of a log.
    Boot { conf: Conf },
    /// What one `Ready` wanted written.
    Batch { hard: HardState, entries: Vec<Entry> },
    /// A leader's snapshot replaced the log.
    Installed { hard: HardState, index: u64, term: u64 },
}

/// Records become a [`Start`].
#[derive(Default)]
pub(super) struct Fold {
    conf: Option<Conf>,
    pub(super) hard: HardState,
    /// The entry before the first, where a record said so.
    base: Option<(u64, u64)>,
    entries: Vec<Entry>,
}

impl Fold {
    pub(super) fn last(&self) -> u64 {
        let base = self.base.map_or(0, |b| b.0);
        self.entries.last().map_or(base, |e| e.index)
    }

    /// Returns the highest index of an entry in the record; 0: none.
    pub(super) fn add(&mut self, record: Record) -> Result<u64, &'static str> {
        match record {
            Record::Boot { conf } => {
                if self.conf.is_some() || !self.entries.is_empty() {
                    return Err("the first record stands in the middle");
                }
                self.conf = Some(conf);
                self.base = Some((0, 0));
                Ok(0)
            }
            Record::Installed { hard, index, term } => {
                self.hard = hard;
                self.base = Some((index, term));
                self.entries.clear();
                Ok(index)
            }
            Record::Batch { hard, entries } => {
                self.hard = hard;
                let Some(first) = entries.first().map(|e| e.index) else {
                    return Ok(0);
                };
                let start = self.last() + 1 - self.entries.len() as u64;
                let gap = first > self.last() + 1;
                match self.base {
                    Some(_) if gap || first < start => return Err("entries are missing"),
                    // The beginning was deleted: the first entries there are may have any index, and may be replaced
                    // by older ones, all below the snapshot.
                    None if gap && !self.entries.is_empty() => return Err("entries are missing"),
                    _ => {}
                }
                if entries.windows(2).any(|w| w[1].index != w[0].index + 1) {
                    return Err("entries do not follow each other");
                }
                self.entries
                    .truncate(usize::try_from(first.saturating_sub(start)).unwrap_or(usize::MAX));
                self.entries.extend(entries);
                Ok(self.last())
            }
        }
    }

    pub(super) fn finish(mut self, snapshot: Option<Arc<Snapshot>>) -> Result<Start, &'static str> {
        let conf = match (&snapshot, self.conf) {
            (Some(s), _) => s.conf.clone(),
            (None, Some(conf)) => conf,
            (None, None) => return Err("its beginning is gone and there is no snapshot"),
        };
        let stands = snapshot.as_ref().map(|s| (s.index, s.term));
        let base = match (stands, self.base) {
            (Some(s), _)
                if s.0
                    > self
                        .entries
                        .last()
                        .map_or(0, |e| e.index)
                        .max(self.base.map_or(0, |b| b.0)) =>
            {
                self.entries.clear();
                s
            }
            (_, Some(base)) => base,
            // Older segments were deleted: the entry before the first is the snapshot's, or the first itself serves.
            (Some(s), None) if self.entries.first().is_some_and(|e| e.index == s.0 + 1) => s,
            (Some(_), None) if !self.entries.is_empty() => {
                let first = self.entries.remove(0);
                (first.index, first.term)
            }
            (Some(s), None) => s,
            (None, None) => return Err("its beginning is gone and there is no snapshot"),
        };
        Ok(Start {
            hard: self.hard,
            conf,
            base,
            entries: self.entries,
            snapshot,
        })
    }
}
