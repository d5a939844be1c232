//! When the lines of a task's log were written.
//!
//! A log holds what its task wrote, and nothing else. Beside it, in the folder `times`, lies a file of the same name that
//! netd-run keeps and netd reads: a record says how long the log was at a time, so a line was written when the log was
//! first seen to reach its end. When a log is cut, its `times` go aside with it (`NAME.1`). A log without them is read as
//! ever, its lines have no times.
//!
//! The file is a [`HEADER`] and records of [`RECORD`] octets, all words little-endian. What a crash has left half-written
//! at its end does not count.

use std::{
    fs::{self, File},
    io::{self, ErrorKind},
    os::unix::fs::{FileExt, MetadataExt},
    path::{Path, PathBuf},
};

/// Octets before the records: [`MAGIC`], and which cut the log is behind ([`cut_of`]), or, in a file aside, made by.
pub const HEADER: u64 = 16;
/// Octets of a record.
pub const RECORD: u64 = 16;
/// The first octets.
pub const MAGIC: [u8; 8] = *b"netdlog1";
/// Folder of these files, in that of the logs.
pub const FOLDER: &str = "times";

/// The log was so long at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Octets.
    pub length: u64,
    /// ms since 1970 by the node's clock; 0: what is before was written at a time that nobody knows.
    pub at_ms: u64,
}

impl Stamp {
    /// As a record.
    pub fn encode(self) -> [u8; RECORD as usize] {
        join(self.length.to_le_bytes(), self.at_ms.to_le_bytes())
    }

    /// From a record.
    pub fn decode(record: [u8; RECORD as usize]) -> Stamp {
        let [length, at_ms] = split(record);
        Stamp {
            length: u64::from_le_bytes(length),
            at_ms: u64::from_le_bytes(at_ms),
        }
    }
}

/// The beginning of a file.
pub fn header(cut: u64) -> [u8; HEADER as usize] {
    join(MAGIC, cut.to_le_bytes())
}

fn join(a: [u8; 8], b: [u8; 8]) -> [u8; 16] {
    let mut out = [0; 16];
    for (to, from) in out.iter_mut().zip(a.into_iter().chain(b)) {
        *to = from;
    }
    out
}

fn split(record: [u8; 16]) -> [[u8; 8]; 2] {
    let mut out = [[0; 8]; 2];
    for (to, from) in out.iter_mut().flatten().zip(record) {
        *to = from;
    }
    out
}

/// Where the times of a log lie; none: the path names no file.
pub fn path(log: &Path) -> Option<PathBuf> {
    Some(log.parent()?.join(FOLDER).join(log.file_name()?))
}

/// `FILE.1`: where a log, or its times, lie once it was cut.
pub fn aside(path: &Path) -> PathBuf {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".1");
    aside.into()
}

/// What tells one cut of a log from another: when the file aside was made, ns since 1970; 0: there is none.
pub fn cut_of(log: &Path) -> io::Result<u64> {
    match fs::metadata(aside(log)) {
        Ok(m) => Ok(changed_ns(&m)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(0),
        Err(e) => Err(e),
    }
}

/// When a file was changed last, ns since 1970.
pub fn changed_ns(m: &fs::Metadata) -> u64 {
    let seconds = u64::try_from(m.mtime()).unwrap_or(0);
    let ns = u64::try_from(m.mtime_nsec()).unwrap_or(0);
    seconds.wrapping_mul(1_000_000_000).wrapping_add(ns)
}

/// The same in ms.
pub fn changed_ms(m: &fs::Metadata) -> u64 {
    changed_ns(m) / 1_000_000
}

/// The times of a log, or of the file aside.
#[derive(Debug)]
pub struct Times {
    file: File,
    records: u64,
}

impl Times {
    /// Opens a file. None: there is none, it is none of ours, or belongs to another cut.
    pub fn open(path: &Path, cut: u64) -> io::Result<Option<Times>> {
        let file = match File::open(path) {
            Ok(f) => f,
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        };
        let length = file.metadata()?.len();
        let mut found = [0; HEADER as usize];
        if length < HEADER || file.read_exact_at(&mut found, 0).is_err() || found != header(cut) {
            return Ok(None);
        }
        let records = (length - HEADER) / RECORD;
        Ok(Some(Times { file, records }))
    }

    /// How many there are.
    pub fn len(&self) -> u64 {
        self.records
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.records == 0
    }

    fn get(&self, at: u64) -> io::Result<Stamp> {
        let mut record = [0; RECORD as usize];
        self.file.read_exact_at(&mut record, HEADER + at * RECORD)?;
        Ok(Stamp::decode(record))
    }

    /// The last one.
    pub fn last(&self) -> io::Result<Option<Stamp>> {
        self.records.checked_sub(1).map(|at| self.get(at)).transpose()
    }

    /// Those that tell when the octets `from..to` of the log were written: from the first beyond `from` to the first that
    /// reaches `to`.
    pub fn between(&self, from: u64, to: u64) -> io::Result<Vec<Stamp>> {
        let (mut low, mut high) = (0, self.records);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.get(middle)?.length > from {
                true => high = middle,
                false => low = middle + 1,
            }
        }
        let mut out = Vec::new();
        self.walk(low, |stamp| {
            out.push(stamp);
            stamp.length < to
        })?;
        Ok(out)
    }

    /// How much of the log was written before a time, and is not known to be younger. A clock that was put back is no
    /// reason to pass anything over: what counts is the first stamp that is not before it.
    pub fn before(&self, at_ms: u64) -> io::Result<u64> {
        let mut length = 0;
        self.walk(0, |stamp| {
            let older = stamp.at_ms < at_ms;
            if older {
                length = stamp.length;
            }
            older
        })?;
        Ok(length)
    }

    /// Takes stamps in their order until `more` says no.
    fn walk(&self, from: u64, mut more: impl FnMut(Stamp) -> bool) -> io::Result<()> {
        const PIECE: u64 = 256;
        let mut at = from;
        while at < self.records {
            let count = PIECE.min(self.records - at);
            let mut bytes = vec![[0; RECORD as usize]; usize::try_from(count).unwrap_or(0)];
            self.file
                .read_exact_at(bytes.as_flattened_mut(), HEADER + at * RECORD)?;
            for record in bytes {
                if !more(Stamp::decode(record)) {
                    return Ok(());
                }
            }
            at += count;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, stamps: &[(u64, u64)], tail: &[u8]) -> PathBuf {
        let path = std::env::temp_dir().join(format!("netd-stamps-{name}-{}", std::process::id()));
        let mut bytes = header(7).to_vec();
        for (length, at_ms) in stamps {
            bytes.extend(
                Stamp {
                    length: *length,
                    at_ms: *at_ms,
                }
                .encode(),
            );
        }
        bytes.extend(tail);
        fs::write(&path, bytes).unwrap();
        path
    }

    #[test]
    fn what_was_written_when() {
        let all: Vec<(u64, u64)> = (1..=1000).map(|n| (n * 10, 1_000_000 + n)).collect();
        let path = file("when", &all, b"half a record");
        let times = Times::open(&path, 7).unwrap().unwrap();
        assert_eq!((times.len(), times.is_empty()), (1000, false));
        assert_eq!(times.last().unwrap().map(|s| s.length), Some(10_000));
        let lengths = |from, to| -> Vec<u64> { times.between(from, to).unwrap().iter().map(|s| s.length).collect() };
        assert_eq!(lengths(0, 10), [10]);
        assert_eq!(lengths(0, 11), [10, 20]);
        assert_eq!(lengths(15, 30), [20, 30]);
        assert_eq!(lengths(9_995, 10_007), [10_000], "what nobody has seen yet");
        assert_eq!(lengths(10_000, 10_007), [0; 0]);
        assert_eq!(lengths(0, 10_000).len(), 1000);
        for (at_ms, length) in [
            (0, 0),
            (1_000_001, 0),
            (1_000_002, 10),
            (1_000_700, 6990),
            (u64::MAX, 10_000),
        ] {
            assert_eq!(times.before(at_ms).unwrap(), length, "{at_ms}");
        }
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn what_is_none_of_ours_or_of_another_cut_tells_nothing() {
        let path = file("foreign", &[(10, 1)], b"");
        assert!(Times::open(&path, 8).unwrap().is_none());
        for bad in [&b""[..], b"short", &[0; 64]] {
            fs::write(&path, bad).unwrap();
            assert!(Times::open(&path, 7).unwrap().is_none());
        }
        fs::remove_file(&path).unwrap();
        assert!(Times::open(&path, 7).unwrap().is_none());
    }

    #[test]
    fn a_clock_that_was_put_back_passes_nothing_over() {
        let path = file("back", &[(10, 0), (20, 100), (30, 50), (40, 60)], b"");
        let times = Times::open(&path, 7).unwrap().unwrap();
        assert_eq!(times.before(80).unwrap(), 10, "from the first that is not older");
        assert_eq!(times.before(101).unwrap(), 40);
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn where_they_lie() {
        assert_eq!(
            path(Path::new("/log/web.1.log")).unwrap(),
            Path::new("/log/times/web.1.log")
        );
        assert_eq!(aside(Path::new("/log/web.1.log")), Path::new("/log/web.1.log.1"));
        assert_eq!(cut_of(Path::new("/nonexistent/web.1.log")).unwrap(), 0);
    }
}
