//! Reading a task's output, a piece at a time, over cuts of its file.
//!
//! netd-run appends to `FILE` and, when it is too long, moves what it holds to `FILE.1` and begins anew. A place is told by
//! which `FILE.1` there was and the octets behind it. When lines were written is told by what netd-run keeps beside them
//! ([`model::stamps`]).

mod clock;
#[cfg(test)]
mod tests;

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

use model::{
    api::LogPlace,
    stamps::{aside, cut_of},
};
use serde::{Deserialize, Serialize};

use clock::Clock;

/// Longest line that is not broken up, octets.
const LINE: usize = 16 << 10;

/// From where a log is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogFrom {
    /// Its beginning, as far as it is kept.
    Start,
    /// So many lines before its end.
    Tail(u64),
    /// Where an earlier piece ended.
    At(LogPlace),
}

/// How much of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Only what was written at this time or later, ms since 1970; none: all. Lines of which no time is known are older,
    /// unless none of their file's is: then the last write to it decides.
    pub since_ms: Option<u64>,
    /// Octets in all, about.
    pub max: usize,
    /// A last line that has no end yet is left for later.
    pub follow: bool,
}

/// A line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// When it was written, ms since 1970; none: not known.
    pub at_ms: Option<u64>,
    /// Without its end.
    pub text: String,
}

/// A piece of a log.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LogPart {
    /// Lines.
    pub lines: Vec<Line>,
    /// Where the next piece begins.
    pub place: LogPlace,
    /// There is more by now.
    pub more: bool,
}

/// Octets of a file from `at`, at most `max`, and whether that was all. A missing file is empty.
fn piece(path: &Path, at: u64, max: usize) -> io::Result<(Vec<u8>, bool)> {
    let mut file = match File::open(path) {
        Ok(f) => f,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), true)),
        Err(e) => return Err(e),
    };
    file.seek(SeekFrom::Start(at))?;
    let mut out = Vec::new();
    let max = u64::try_from(max).unwrap_or(u64::MAX);
    let got = file.take(max).read_to_end(&mut out)?;
    Ok((out, u64::try_from(got).unwrap_or(u64::MAX) < max))
}

/// Whole lines of a file, each with the place behind it.
#[derive(Default)]
struct Lines {
    all: Vec<(u64, String)>,
    /// Where the next one begins.
    at: u64,
}

impl Lines {
    /// Takes whole lines off the front of `bytes`, which lie at `at`. `all`: what has no end yet is a line too.
    fn of(bytes: &[u8], at: u64, all: bool) -> Lines {
        let mut out = Lines { all: Vec::new(), at };
        let mut taken = 0;
        while let Some(rest) = bytes.get(taken..).filter(|r| !r.is_empty()) {
            let end = rest.iter().take(LINE).position(|b| *b == b'\n');
            let (line, used) = match end {
                Some(end) => (rest.get(..end), end + 1),
                None if rest.len() >= LINE => (rest.get(..LINE), LINE),
                None if all => (Some(rest), rest.len()),
                None => break,
            };
            let text = String::from_utf8_lossy(line.unwrap_or_default());
            taken += used;
            out.at = at + u64::try_from(taken).unwrap_or(u64::MAX);
            out.all.push((out.at, text.trim_end_matches('\r').to_owned()));
        }
        out
    }
}

/// Reads a piece of a log.
pub fn read(path: &Path, from: LogFrom, limits: Limits) -> io::Result<LogPart> {
    let aside = aside(path);
    let cut = cut_of(path)?;
    let max = limits.max.max(2 * LINE);
    let mut place = match (from, limits.since_ms) {
        (LogFrom::Tail(n), _) => return tail(path, n, Limits { max, ..limits }),
        // Of no cut: all of the former file, then this one.
        (LogFrom::Start, None) => LogPlace { cut: u64::MAX, at: 0 },
        (LogFrom::Start, Some(since_ms)) => first_since(path, cut, since_ms)?,
        (LogFrom::At(place), _) => place,
    };
    let mut part = LogPart::default();
    let mut room = max;
    if place.cut != cut {
        let (bytes, all) = piece(&aside, place.at, max)?;
        let lines = Lines::of(&bytes, place.at, all);
        let next = lines.at;
        part.lines = Clock::of(&aside, cut).tell(place.at, lines.all);
        if !all {
            place.at = next;
            return Ok(LogPart {
                place,
                more: true,
                ..part
            });
        }
        place = LogPlace { cut, at: 0 };
        room = max.saturating_sub(bytes.len()).max(2 * LINE);
    }
    let (bytes, all) = piece(path, place.at, room)?;
    let lines = Lines::of(&bytes, place.at, all && !limits.follow);
    let next = lines.at;
    part.lines.extend(Clock::of(path, cut).tell(place.at, lines.all));
    place.at = next;
    Ok(LogPart {
        place,
        more: !all,
        ..part
    })
}

/// Where the first line begins that is not older.
fn first_since(path: &Path, cut: u64, since_ms: u64) -> io::Result<LogPlace> {
    let aside = aside(path);
    let former = Clock::of(&aside, cut);
    let older = former.older(since_ms);
    if older < former.length() {
        let at = line_at(&aside, older)?;
        return Ok(LogPlace { cut: u64::MAX, at });
    }
    let at = line_at(path, Clock::of(path, cut).older(since_ms))?;
    Ok(LogPlace { cut, at })
}

/// Where the line begins that the octet at `at` is in; of an endless one `at` itself.
fn line_at(path: &Path, at: u64) -> io::Result<u64> {
    let begin = at.saturating_sub(u64::try_from(LINE).unwrap_or(0));
    let (bytes, _) = piece(path, begin, usize::try_from(at - begin).unwrap_or(0))?;
    let end = bytes.iter().rposition(|b| *b == b'\n').map(|p| p + 1);
    Ok(match end {
        Some(end) => begin + u64::try_from(end).unwrap_or(0),
        None if begin == 0 => 0,
        None => at,
    })
}

fn tail(path: &Path, n: u64, limits: Limits) -> io::Result<LogPart> {
    let aside = aside(path);
    let cut = cut_of(path)?;
    let wanted = usize::try_from(n).unwrap_or(usize::MAX);
    // Lines of the last octets of a file, where the next one begins, and whether there can be more before them.
    let last = |path: &Path, all: bool| -> io::Result<(Vec<Line>, u64, bool)> {
        let length = Clock::of(path, cut).length();
        let begin = length.saturating_sub(u64::try_from(limits.max).unwrap_or(u64::MAX));
        let (bytes, _) = piece(path, begin, limits.max)?;
        let skip = match begin {
            0 => 0,
            _ => bytes.iter().position(|b| *b == b'\n').map_or(0, |p| p + 1),
        };
        let at = begin + u64::try_from(skip).unwrap_or(0);
        let mut lines = Lines::of(bytes.get(skip..).unwrap_or_default(), at, all);
        let clock = Clock::of(path, cut);
        let older = limits.since_ms.map_or(0, |since_ms| clock.older(since_ms));
        lines.all.retain(|(end, _)| *end > older);
        let whole = begin == 0 && older == 0;
        Ok((clock.tell(at, lines.all), lines.at, whole))
    };
    let (mut here, at, whole) = last(path, !limits.follow)?;
    if whole && here.len() < wanted {
        let (mut before, _, _) = last(&aside, true)?;
        before.append(&mut here);
        here = before;
    }
    here.drain(..here.len().saturating_sub(wanted));
    Ok(LogPart {
        lines: here,
        place: LogPlace { cut, at },
        more: false,
    })
}
