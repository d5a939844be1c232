//! The log on disk: what a manager has acknowledged survives a crash at any octet, and damage is told, never guessed over.
//!
//! Segments (see [`segment`](self::segment)) hold records: the first is who votes, then one per `Ready` with the hard state
//! and entries, sealed with the log key. A snapshot replaces what lies before it; segments that hold nothing newer than
//! the retention are deleted. Every write is durable when [`Log::append`] returns; after an error of the disk nothing is
//! known any more, so the log refuses everything and the manager must exit (P11 in the design's promises).

mod disk;
mod fold;
mod seal;
mod segment;
mod snapshot;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    io::{self, ErrorKind},
    sync::Arc,
};

use crate::{
    mutant::{self, Mutant},
    raft::{Conf, Entry, HardState, Snapshot, Start},
};
pub use disk::Disk;
use fold::{Fold, Record};
use seal::Sealer;
use segment::Found;

/// Settings of the log.
#[derive(Debug, Clone)]
pub struct Options {
    /// Length of a segment, octets, at least 4096; a longer record makes a longer segment. Default 16 MiB.
    pub segment: u64,
    /// Snapshots kept. At least 1, default 2.
    pub snapshots: usize,
    /// Raft id of the manager whose log is made, from 1; one that is opened tells its own. Default 0: not told.
    pub owner: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            segment: 16 << 20,
            snapshots: 2,
            owner: 0,
        }
    }
}

/// Why the log cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The disk said no. What was being written may or may not be there.
    #[error("cannot {what} {name} of the log: {source}; try: check the disk (dmesg), then start netd again")]
    Io {
        /// What was done.
        what: &'static str,
        /// File.
        name: String,
        /// Cause.
        source: io::Error,
    },
    /// There is a log already.
    #[error("there is a log already; try: netctl status")]
    Exists,
    /// Written by a newer netd.
    #[error(
        "{name} has format {format}, this netd knows {}; nothing was changed; try: the netd that wrote it",
        segment::FORMAT
    )]
    Newer {
        /// File.
        name: String,
        /// Its format.
        format: u32,
    },
    /// What was acknowledged is not there as it was written.
    #[error(
        "{name} is damaged at octet {at}: {why}; nothing was changed; try: join again as a new manager, or netctl cluster restore FILE"
    )]
    Damaged {
        /// File.
        name: String,
        /// Where.
        at: usize,
        /// How.
        why: &'static str,
    },
    /// Sound, but not with this key.
    #[error("{name} was sealed with another key; try: the state folder's own log key")]
    WrongKey {
        /// File.
        name: String,
    },
    /// A write failed before: nothing is known about what is on disk.
    #[error("a write to the log failed before, nothing more is acknowledged; try: start netd again")]
    Broken,
    /// The disk is full. Nothing was written, and the same call may be made again.
    #[error("there is no room for {name} of the log: the disk is full; try: free some space")]
    Full {
        /// File.
        name: String,
    },
    /// A record or snapshot beyond the format.
    #[error("{0} octets are too many for a record of the log; try: smaller changes")]
    TooLong(usize),
}

/// Making a file, the one step that asks the disk for room.
const MAKE: &str = "make";

/// A segment that is there.
#[derive(Debug)]
struct Segment {
    epoch: u64,
    len: u64,
    /// Highest index of an entry in it; 0: none.
    last_index: u64,
}

/// The log of one manager.
pub struct Log<D> {
    disk: D,
    sealer: Sealer,
    options: Options,
    /// Oldest first; the last is written to.
    segments: VecDeque<Segment>,
    /// Indices of the snapshots there are, oldest first.
    snapshots: Vec<u64>,
    /// Where the next record goes.
    at: u64,
    seq: u64,
    /// Newest hard state, written or (a mere commit index) not yet.
    hard: HardState,
    broken: bool,
}

/// What [`Log::open`] found.
#[derive(Debug, Clone, Default)]
pub struct Recovered {
    /// For [`crate::raft::Peer::new`].
    pub start: Start,
    /// Octets of a write that had not ended, and were cut off: it was never acknowledged.
    pub cut: u64,
    /// Raft id of the manager whose log it is; 0: it was not told.
    pub owner: u64,
}

impl<D: Disk> Log<D> {
    /// A new log whose first record is who votes. `seed` is fresh entropy for nonces.
    pub fn create(disk: D, key: &[u8; 32], seed: [u8; 32], options: Options, conf: &Conf) -> Result<Log<D>, LogError> {
        let mut log = Log::new(disk, key, seed, options)?;
        let names = log.disk.list().map_err(io_error("list", "the folder"))?;
        if names.iter().any(|n| segment::epoch_of(n).is_some()) {
            return Err(LogError::Exists);
        }
        // In one piece with the segment: a crash leaves a log that knows its voters, or none.
        let boot = Record::Boot { conf: conf.clone() };
        let bytes = log.record(1, &boot)?;
        log.rotate(bytes)?;
        log.seq += 1;
        Ok(log)
    }

    /// Opens what is there, and cuts off a write that had not ended. `None`: there is no log.
    pub fn open(
        disk: D,
        key: &[u8; 32],
        seed: [u8; 32],
        options: Options,
    ) -> Result<Option<(Log<D>, Recovered)>, LogError> {
        let mut log = Log::new(disk, key, seed, options)?;
        let names = log.disk.list().map_err(io_error("list", "the folder"))?;
        let mut epochs: Vec<u64> = names.iter().filter_map(|n| segment::epoch_of(n)).collect();
        epochs.sort_unstable();
        log.snapshots = names.iter().filter_map(|n| snapshot::index_of(n)).collect();
        log.snapshots.sort_unstable();
        if epochs.is_empty() {
            return match log.snapshots.last() {
                None => Ok(None),
                Some(index) => Err(LogError::Damaged {
                    name: snapshot::name(*index),
                    at: 0,
                    why: "it is there, but no segment of the log",
                }),
            };
        }
        let mut fold = Fold::default();
        let mut cut = 0;
        for (i, epoch) in epochs.iter().enumerate() {
            let last = i + 1 == epochs.len();
            cut = log.read_segment(*epoch, i == 0, last, &mut fold)?;
        }
        let name = segment::name(epochs[0]);
        let newest = match log.snapshots.last() {
            Some(index) => {
                let name = snapshot::name(*index);
                let bytes = log.disk.read(&name).map_err(io_error("read", &name))?;
                Some(Arc::new(snapshot::decode(&name, &bytes, &log.sealer)?))
            }
            None => None,
        };
        log.hard = fold.hard;
        let torn_install = newest
            .as_ref()
            .filter(|s| s.index > fold.last())
            .map(|s| (s.index, s.term));
        let start = fold.finish(newest).map_err(|why| LogError::Damaged {
            name,
            at: segment::HEAD,
            why,
        })?;
        if let Some((index, term)) = torn_install {
            // The crash came between a leader's snapshot and the record that says so.
            let hard = log.hard;
            log.write(&Record::Installed { hard, index, term }, index)?;
        }
        let owner = log.options.owner;
        Ok(Some((log, Recovered { start, cut, owner })))
    }

    fn new(disk: D, key: &[u8; 32], seed: [u8; 32], options: Options) -> Result<Log<D>, LogError> {
        let sealer = Sealer::new(key, seed).ok_or(LogError::WrongKey { name: "the log".into() })?;
        Ok(Log {
            disk,
            sealer,
            options,
            segments: VecDeque::new(),
            snapshots: Vec::new(),
            at: 0,
            seq: 0,
            hard: HardState::default(),
            broken: false,
        })
    }

    /// Writes what a `Ready` asks for; durable when it returns. With neither entries nor `must_sync` nothing is written:
    /// a commit index may be lost, and goes with the next record.
    pub fn append(&mut self, hard: Option<HardState>, entries: &[Entry], must_sync: bool) -> Result<(), LogError> {
        if self.broken {
            return Err(LogError::Broken);
        }
        self.hard = hard.unwrap_or(self.hard);
        if !must_sync && entries.is_empty() {
            return Ok(());
        }
        let record = Record::Batch {
            hard: self.hard,
            entries: entries.to_vec(),
        };
        self.write(&record, entries.last().map_or(0, |e| e.index))
    }

    /// Writes a snapshot made here; durable when it returns. Older ones beyond the setting are deleted.
    pub fn save(&mut self, s: &Snapshot) -> Result<(), LogError> {
        if self.broken {
            return Err(LogError::Broken);
        }
        let bytes = snapshot::encode(s, &mut self.sealer).ok_or(LogError::TooLong(s.data.len()))?;
        let name = snapshot::name(s.index);
        let made = self.disk.create(&name, &bytes, bytes.len() as u64);
        self.check(MAKE, &name, made)?;
        self.snapshots.retain(|i| *i != s.index);
        self.snapshots.push(s.index);
        self.snapshots.sort_unstable();
        let surplus = self.snapshots.len().saturating_sub(self.options.snapshots.max(1));
        for index in self.snapshots.drain(..surplus).collect::<Vec<_>>() {
            let name = snapshot::name(index);
            let gone = self.disk.remove(&name);
            self.check("delete", &name, gone)?;
        }
        Ok(())
    }

    /// Writes a leader's snapshot, which replaces the log; durable when it returns.
    pub fn install(&mut self, s: &Snapshot, hard: Option<HardState>) -> Result<(), LogError> {
        self.save(s)?;
        self.hard = hard.unwrap_or(self.hard);
        self.hard.commit = self.hard.commit.max(s.index);
        let record = Record::Installed {
            hard: self.hard,
            index: s.index,
            term: s.term,
        };
        self.write(&record, s.index)
    }

    /// Deletes the segments that hold nothing behind `index`, which a snapshot must cover.
    pub fn compact(&mut self, index: u64) -> Result<(), LogError> {
        if self.broken {
            return Err(LogError::Broken);
        }
        // The oldest snapshot kept must still find its entries: it is the way back when the newest is damaged.
        let Some(oldest) = self.snapshots.first() else {
            return Ok(());
        };
        let index = index.min(*oldest);
        while self.segments.len() > 1
            && let Some(oldest) = self.segments.front().filter(|s| s.last_index <= index)
        {
            let name = segment::name(oldest.epoch);
            let gone = self.disk.remove(&name);
            self.check("delete", &name, gone)?;
            self.segments.pop_front();
        }
        Ok(())
    }

    /// The disk.
    pub fn disk(&self) -> &D {
        &self.disk
    }

    /// Octets on disk in segments.
    pub fn size(&self) -> u64 {
        self.segments.iter().map(|s| s.len).sum()
    }

    /// A record's octets, for the segment `epoch`.
    fn record(&mut self, epoch: u64, record: &Record) -> Result<Vec<u8>, LogError> {
        let plain = postcard::to_allocvec(record).map_err(|_| LogError::TooLong(usize::MAX))?;
        self.sealer
            .seal(&segment::aad(epoch, self.seq), &plain)
            .and_then(|sealed| segment::encode(epoch, self.seq, &sealed))
            .ok_or(LogError::TooLong(plain.len()))
    }

    fn write(&mut self, record: &Record, last_index: u64) -> Result<(), LogError> {
        let active = self.segments.back().ok_or(LogError::Broken)?;
        let (mut epoch, len) = (active.epoch, active.len);
        let mut bytes = self.record(epoch, record)?;
        if self.at + bytes.len() as u64 > len {
            // The seal is bound to the segment: it is made anew for the next one, which begins with the record.
            epoch += 1;
            bytes = self.record(epoch, record)?;
            self.rotate(bytes)?;
        } else {
            let name = segment::name(epoch);
            let written = self.disk.write(&name, self.at, &bytes);
            self.check("write", &name, written)?;
            if !mutant::on(Mutant::SkipFsync) {
                let synced = self.disk.sync(&name);
                self.check("make durable", &name, synced)?;
            }
            self.at += bytes.len() as u64;
        }
        if let Some(active) = self.segments.back_mut() {
            active.last_index = active.last_index.max(last_index);
        }
        self.seq += 1;
        Ok(())
    }

    /// Begins a new segment that holds a first record; durable when it returns.
    fn rotate(&mut self, first: Vec<u8>) -> Result<(), LogError> {
        let epoch = self.segments.back().map_or(0, |s| s.epoch) + 1;
        let head = segment::Head {
            epoch,
            first_seq: self.seq,
            owner: self.options.owner,
        };
        let mut bytes = head.encode().to_vec();
        bytes.extend(first);
        let len = self.options.segment.max(4096).max(bytes.len() as u64);
        let name = segment::name(epoch);
        let made = self.disk.create(&name, &bytes, len);
        self.check(MAKE, &name, made)?;
        self.sealer.renew();
        self.segments.push_back(Segment {
            epoch,
            len,
            last_index: 0,
        });
        self.at = bytes.len() as u64;
        Ok(())
    }

    /// Passes an answer of the disk on; an error is remembered for good.
    fn check<T>(&mut self, what: &'static str, name: &str, answer: io::Result<T>) -> Result<T, LogError> {
        answer.map_err(|e| match e.kind() {
            // A file is made as a whole or not at all, and what is written to was made in full before: there is no half.
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded if what == MAKE => LogError::Full { name: name.into() },
            _ => {
                self.broken = true;
                io_error(what, name)(e)
            }
        })
    }

    /// Reads a segment's records into `fold`. Returns how many octets were cut off.
    fn read_segment(&mut self, epoch: u64, first: bool, last: bool, fold: &mut Fold) -> Result<u64, LogError> {
        let name = segment::name(epoch);
        let damaged = |at, why| LogError::Damaged {
            name: name.clone(),
            at,
            why,
        };
        let bytes = self.disk.read(&name).map_err(io_error("read", &name))?;
        let head = segment::Head::decode(&bytes).map_err(|e| match e {
            segment::BadHead::Newer(format) => LogError::Newer {
                name: name.clone(),
                format,
            },
            segment::BadHead::Damaged => damaged(0, "its head does not match its checksum"),
        })?;
        if head.epoch != epoch {
            return Err(damaged(0, "it is another segment than its name says"));
        }
        if first {
            self.seq = head.first_seq;
            self.options.owner = head.owner;
        } else if head.owner != self.options.owner {
            return Err(damaged(0, "it is another manager's"));
        } else if head.first_seq != self.seq {
            return Err(damaged(0, "records before it are missing"));
        }
        let mut at = segment::HEAD;
        let mut last_index = 0;
        loop {
            match segment::find(&bytes, epoch, self.seq, at) {
                Found::Record(sealed, next) => {
                    let plain = self
                        .sealer
                        .open(&segment::aad(epoch, self.seq), sealed)
                        .ok_or_else(|| LogError::WrongKey { name: name.clone() })?;
                    let record: Record =
                        postcard::from_bytes(&plain).map_err(|_| damaged(at, "a record cannot be read"))?;
                    let index = fold.add(record).map_err(|why| damaged(at, why))?;
                    last_index = last_index.max(index);
                    self.seq += 1;
                    at = next;
                }
                Found::Damaged(why) => return Err(damaged(at, why)),
                Found::End => break,
            }
        }
        let used = segment::used(&bytes).max(at);
        if used > at && !last {
            return Err(damaged(at, "a record is torn, but later segments are there"));
        }
        if used > at {
            // The body first: while its head stands, or after nothing else does, a cut that did not end looks like the
            // write that did not end.
            let body = (at + segment::RECORD_HEAD).min(used);
            for (from, to) in [(body, used), (at, body)] {
                let done = self.disk.write(&name, from as u64, &vec![0; to - from]);
                self.check("cut", &name, done)?;
                let done = self.disk.sync(&name);
                self.check("make durable", &name, done)?;
            }
        }
        self.segments.push_back(Segment {
            epoch,
            len: bytes.len() as u64,
            last_index,
        });
        self.at = at as u64;
        Ok((used - at) as u64)
    }
}

fn io_error(what: &'static str, name: &str) -> impl FnOnce(io::Error) -> LogError {
    let name = name.to_owned();
    move |source| LogError::Io { what, name, source }
}
