//! Writing down how long a log was when.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use model::stamps::{self, HEADER, RECORD, Stamp, Times};

use super::{beside, there};

/// Where the times of a log lie.
pub(super) fn path(log: &Path) -> io::Result<PathBuf> {
    stamps::path(log).ok_or_else(|| io::Error::other("the path names no file"))
}

/// Goes on with the times of a log; of what it holds already and nobody has seen being written, the latest time is known
/// if it had times before, and none otherwise. Answers how long the log is.
pub(super) fn begin(log: &Path) -> io::Result<u64> {
    let (path, cut) = (path(log)?, stamps::cut_of(log)?);
    let now = there(fs::metadata(log))?;
    let length = now.as_ref().map_or(0, fs::Metadata::len);
    let last = match Times::open(&path, cut)? {
        Some(times) => Some(times.last()?.map_or(0, |s| s.length)),
        None => None,
    };
    match (last, now) {
        (Some(last), _) if last == length => {}
        (Some(last), Some(now)) if last < length => append(&path, stamp(&now))?,
        _ => {
            let unknown = Stamp { length, at_ms: 0 };
            fresh(&path, cut, (length > 0).then_some(unknown))?;
        }
    }
    Ok(length)
}

/// Writes down how long a log is, if that is not `known`. Answers it.
pub(super) fn see(log: &Path, known: u64) -> io::Result<u64> {
    let Some(now) = there(fs::metadata(log))? else {
        return Ok(known);
    };
    let length = now.len();
    if length > known {
        match there(append(&path(log)?, stamp(&now)))? {
            Some(()) => {}
            None => drop(begin(log)?),
        }
    } else if length < known {
        // Somebody has emptied it.
        fresh(&path(log)?, stamps::cut_of(log)?, (length > 0).then(|| stamp(&now)))?;
    }
    Ok(length)
}

/// The last write is the time: whoever looks late is not misled.
pub(super) fn stamp(log: &fs::Metadata) -> Stamp {
    Stamp {
        length: log.len(),
        at_ms: stamps::changed_ms(log),
    }
}

/// Begins a file anew, whole or not at all.
pub(super) fn fresh(path: &Path, cut: u64, first: Option<Stamp>) -> io::Result<()> {
    let mut bytes = stamps::header(cut).to_vec();
    bytes.extend(first.into_iter().flat_map(Stamp::encode));
    let new = beside(path, ".new");
    fs::write(&new, bytes)?;
    fs::rename(new, path)
}

fn append(path: &Path, stamp: Stamp) -> io::Result<()> {
    let mut file = OpenOptions::new().append(true).open(path)?;
    let length = file.metadata()?.len();
    let half = length.saturating_sub(HEADER) % RECORD;
    if half != 0 {
        // A crash, or a full disk.
        file.set_len(length - half)?;
    }
    file.write_all(&stamp.encode())
}
