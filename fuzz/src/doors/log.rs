//! Files of a manager's log, as a disk gives them back. Checksums are put right, or nothing behind them would be tried.

use std::{cell::RefCell, collections::BTreeMap, io, rc::Rc};

use cluster::{
    log::{Disk, Log, Options},
    raft::{Body, Conf, Entry, HardState, Snapshot},
};

use super::{join, pieces, sure};

const KEY: [u8; 32] = [7; 32];
const SEED: [u8; 32] = [8; 32];
const SEGMENT: &str = "log-0000000000000001";
const SNAPSHOT: &str = "snap-0000000000000003";

/// Files in memory.
#[derive(Clone, Default)]
struct Files(Rc<RefCell<BTreeMap<String, Vec<u8>>>>);

impl Disk for Files {
    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.0.borrow().keys().cloned().collect())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        self.0.borrow().get(name).cloned().ok_or(io::ErrorKind::NotFound.into())
    }

    fn create(&mut self, name: &str, head: &[u8], len: u64) -> io::Result<()> {
        let mut file = head.to_vec();
        file.resize(usize::try_from(len).map_err(io::Error::other)?, 0);
        self.0.borrow_mut().insert(name.to_owned(), file);
        Ok(())
    }

    fn write(&mut self, name: &str, at: u64, bytes: &[u8]) -> io::Result<()> {
        let mut files = self.0.borrow_mut();
        let file = files.get_mut(name).ok_or(io::ErrorKind::NotFound)?;
        let at = usize::try_from(at).map_err(io::Error::other)?;
        let there = file.get_mut(at..at + bytes.len()).ok_or(io::ErrorKind::InvalidInput)?;
        there.copy_from_slice(bytes);
        Ok(())
    }

    fn sync(&mut self, _name: &str) -> io::Result<()> {
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.0.borrow_mut().remove(name);
        Ok(())
    }
}

fn small() -> Options {
    Options {
        segment: 4096,
        ..Options::default()
    }
}

/// A log of a few entries and a snapshot.
fn written() -> Files {
    let files = Files::default();
    let mut log = sure(Log::create(files.clone(), &KEY, SEED, small(), &Conf::single(1)));
    for index in 1..=5u64 {
        let entry = Entry {
            term: 1,
            index,
            body: Body::Command(vec![u8::try_from(index).unwrap_or(0); 40]),
        };
        let hard = HardState {
            term: 1,
            vote: 1,
            commit: index - 1,
        };
        sure(log.append(Some(hard), &[entry], true));
        if index == 3 {
            sure(log.save(&Snapshot {
                index: 3,
                term: 1,
                conf: Conf::single(1),
                data: vec![3; 100],
            }));
        }
    }
    files
}

fn file(files: &Files, name: &str) -> Vec<u8> {
    let mut file = files.0.borrow().get(name).cloned().unwrap_or_default();
    // The zeros behind the last record only make it long.
    let end = file.iter().rposition(|b| *b != 0).map_or(0, |i| i + 33);
    file.truncate(end);
    file
}

/// Puts the checksum of `from..at` at `at`.
fn right(bytes: &mut [u8], from: usize, at: usize) {
    let crc = bytes.get(from..at).map(crc32c::crc32c);
    if let (Some(crc), Some(place)) = (crc, bytes.get_mut(at..at + 4)) {
        place.copy_from_slice(&crc.to_le_bytes());
    }
}

/// The first octet says which checksums are put right; two pieces: a segment, and perhaps one more.
pub(super) fn open(octets: &[u8]) {
    let Some((what, rest)) = octets.split_first() else {
        return;
    };
    let files = Files::default();
    for (i, piece) in pieces(rest).into_iter().take(2).enumerate() {
        let mut bytes = piece.to_vec();
        if what & 1 == 0 {
            right(&mut bytes, 0, 60);
        }
        if what & 2 == 0 {
            right(&mut bytes, 64, 92);
        }
        files.0.borrow_mut().insert(format!("log-{:016x}", i + 1), bytes);
    }
    let _ = Log::open(files, &KEY, SEED, small());
}

pub(super) fn seeds() -> Vec<Vec<u8>> {
    let segment = file(&written(), SEGMENT);
    vec![
        [&[0][..], &join(std::slice::from_ref(&segment))].concat(),
        [&[3][..], &join(std::slice::from_ref(&segment))].concat(),
        [&[0][..], &join(&[segment.clone(), segment])].concat(),
    ]
}

/// A snapshot's file beside a segment that is as it should be.
pub(super) fn open_snapshot(octets: &[u8]) {
    let Some((what, rest)) = octets.split_first() else {
        return;
    };
    let files = written();
    let mut bytes = rest.to_vec();
    if what & 1 == 0 {
        right(&mut bytes, 0, 28);
    }
    files.0.borrow_mut().insert(SNAPSHOT.to_owned(), bytes);
    let _ = Log::open(files, &KEY, SEED, small());
}

pub(super) fn snapshot_seeds() -> Vec<Vec<u8>> {
    let files = written();
    let whole = files.0.borrow().get(SNAPSHOT).cloned().unwrap_or_default();
    vec![[&[0][..], &whole].concat(), [&[1][..], &whole].concat()]
}
