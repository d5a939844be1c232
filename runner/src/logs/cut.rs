//! Bounding a log while it is written.

use std::{fs, io, path::Path};

use model::stamps;

use super::{beside, there, times};

/// Sizes from which a log is moved to `<id>.log.1`, octets. Between two looks it may grow beyond.
#[derive(Debug, Clone, Copy)]
pub(super) struct Max {
    /// Of the log.
    pub(super) log: u64,
    /// Of its times.
    pub(super) times: u64,
}

/// What is kept.
pub(super) const MAX: Max = Max {
    log: 16 << 20,
    times: 4 << 20,
};

/// Copies a log that is too long aside and empties it; `true`: it was. Tasks hold the file open for appending, so that it
/// cannot be renamed; what they write between copy and cut is lost. Readers tell by the file aside that it was cut: it is
/// put in its place whole, right before. Its times go aside a moment earlier: whoever reads in between sees none.
pub(super) fn trim(log: &Path, max: Max) -> io::Result<bool> {
    let Some(now) = there(fs::metadata(log))? else {
        return Ok(false);
    };
    let path = times::path(log)?;
    let stamped = there(fs::metadata(&path))?.map_or(0, |m| m.len());
    if now.len() <= max.log && stamped <= max.times {
        return Ok(false);
    }
    let new = beside(log, ".new");
    fs::copy(log, &new)?;
    let copy = fs::metadata(&new)?;
    let cut = stamps::changed_ns(&copy);
    let last = stamps::Stamp {
        length: copy.len(),
        ..times::stamp(&fs::metadata(log)?)
    };
    let mut former = there(fs::read(&path))?.unwrap_or_default();
    let head = stamps::header(cut);
    match former.get_mut(..head.len()) {
        Some(old) => old.copy_from_slice(&head),
        None => former = head.to_vec(),
    }
    former.extend(last.encode());
    let former_new = beside(&path, ".1.new");
    fs::write(&former_new, former)?;
    fs::rename(former_new, stamps::aside(&path))?;
    times::fresh(&path, cut, None)?;
    fs::rename(new, stamps::aside(log))?;
    fs::OpenOptions::new().write(true).open(log)?.set_len(0)?;
    Ok(true)
}
