//! Reading a task's output, a piece at a time, over cuts of its file.
//!
//! netd-run appends to `FILE` and, when it is too long, moves what it holds to `FILE.1` and begins anew. A place is told by
//! which `FILE.1` there was and the octets behind it.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use model::api::LogPlace;
use serde::{Deserialize, Serialize};

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

/// A piece of a log.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LogPart {
    /// Lines, without their ends.
    pub lines: Vec<String>,
    /// Where the next piece begins.
    pub place: LogPlace,
    /// There is more by now.
    pub more: bool,
}

/// What tells one cut from another: when the former file was made, ns since 1970; 0: there is none.
fn cut_of(former: &Path) -> io::Result<u64> {
    match fs::metadata(former) {
        Ok(m) => Ok((m.mtime() as u64)
            .wrapping_mul(1_000_000_000)
            .wrapping_add(m.mtime_nsec() as u64)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(e) => Err(e),
    }
}

fn former(path: &Path) -> PathBuf {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".1");
    aside.into()
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

/// Takes whole lines off the front of `bytes`; the octets that they took. `all`: what has no end yet is a line too.
fn lines(bytes: &[u8], all: bool, out: &mut Vec<String>) -> u64 {
    let mut taken = 0;
    while let Some(rest) = bytes.get(taken..).filter(|r| !r.is_empty()) {
        let end = rest.iter().take(LINE).position(|b| *b == b'\n');
        let (line, used) = match end {
            Some(end) => (rest.get(..end), end + 1),
            None if rest.len() >= LINE => (rest.get(..LINE), LINE),
            None if all => (Some(rest), rest.len()),
            None => break,
        };
        out.push(
            String::from_utf8_lossy(line.unwrap_or_default())
                .trim_end_matches('\r')
                .to_owned(),
        );
        taken += used;
    }
    u64::try_from(taken).unwrap_or(u64::MAX)
}

/// Reads about `max` octets of a log. `follow`: a last line that has no end yet is left for later.
pub fn read(path: &Path, from: LogFrom, max: usize, follow: bool) -> io::Result<LogPart> {
    let aside = former(path);
    let cut = cut_of(&aside)?;
    let max = max.max(2 * LINE);
    let mut place = match from {
        LogFrom::Tail(n) => return tail(path, n, max, follow),
        // Of no cut: all of the former file, then this one.
        LogFrom::Start => LogPlace { cut: u64::MAX, at: 0 },
        LogFrom::At(place) => place,
    };
    let mut part = LogPart::default();
    let mut room = max;
    if place.cut != cut {
        let (bytes, all) = piece(&aside, place.at, max)?;
        let used = lines(&bytes, all, &mut part.lines);
        if !all {
            place.at += used;
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
    place.at += lines(&bytes, all && !follow, &mut part.lines);
    Ok(LogPart {
        place,
        more: !all,
        ..part
    })
}

fn tail(path: &Path, n: u64, max: usize, follow: bool) -> io::Result<LogPart> {
    let aside = former(path);
    let cut = cut_of(&aside)?;
    let wanted = usize::try_from(n).unwrap_or(usize::MAX);
    let end = |path: &Path| -> io::Result<u64> {
        match fs::metadata(path) {
            Ok(m) => Ok(m.len()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(e) => Err(e),
        }
    };
    // Whole lines of the last octets of a file.
    let last = |path: &Path, all: bool| -> io::Result<(Vec<String>, u64, bool)> {
        let length = end(path)?;
        let begin = length.saturating_sub(u64::try_from(max).unwrap_or(u64::MAX));
        let (bytes, _) = piece(path, begin, max)?;
        let skip = match begin {
            0 => 0,
            _ => bytes.iter().position(|b| *b == b'\n').map_or(0, |p| p + 1),
        };
        let mut out = Vec::new();
        let used = lines(bytes.get(skip..).unwrap_or_default(), all, &mut out);
        let skip = u64::try_from(skip).unwrap_or(0);
        Ok((out, begin + skip + used, begin == 0))
    };
    let (mut here, at, whole) = last(path, !follow)?;
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

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Folder {
            let path = std::env::temp_dir().join(format!("netd-logs-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Folder(path)
        }
        fn log(&self) -> PathBuf {
            self.0.join("web.1.log")
        }
        fn add(&self, text: &str) {
            let mut file = fs::OpenOptions::new()
                .append(true)
                .create(true)
                .open(self.log())
                .unwrap();
            file.write_all(text.as_bytes()).unwrap();
        }
        /// As netd-run does it.
        fn cut(&self) {
            let fresh = self.0.join("fresh");
            fs::copy(self.log(), &fresh).unwrap();
            // Another time than the last cut's, whatever the file system's clock.
            let at = std::time::SystemTime::now() + std::time::Duration::from_nanos(self.marks());
            File::options()
                .write(true)
                .open(&fresh)
                .unwrap()
                .set_modified(at)
                .unwrap();
            fs::rename(&fresh, self.0.join("web.1.log.1")).unwrap();
            fs::write(self.log(), "").unwrap();
        }
        fn marks(&self) -> u64 {
            cut_of(&self.0.join("web.1.log.1")).unwrap() % 1000 + 1_000_000
        }
        fn read(&self, from: LogFrom) -> LogPart {
            read(&self.log(), from, 1 << 20, true).unwrap()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_log_is_followed_over_its_cuts() {
        let f = Folder::new("follow");
        assert_eq!(f.read(LogFrom::Start).lines, [""; 0], "nothing is there yet");
        f.add("one\ntwo\nthr");
        let part = f.read(LogFrom::Start);
        assert_eq!(part.lines, ["one", "two"]);
        f.add("ee\nfour\n");
        let part = f.read(LogFrom::At(part.place));
        assert_eq!((part.lines.join(" ").as_str(), part.more), ("three four", false));
        f.add("five\n");
        f.cut();
        f.add("six\n");
        let part = f.read(LogFrom::At(part.place));
        assert_eq!(part.lines, ["five", "six"]);
        assert_eq!(f.read(LogFrom::At(part.place)).lines, [""; 0]);
        // Cut and grown beyond the place meanwhile: nothing is read twice, nothing is passed over.
        f.add("seven\n");
        f.cut();
        f.add("a rather long line, longer than all that was there\n");
        let part = f.read(LogFrom::At(part.place));
        assert_eq!(
            part.lines,
            ["seven", "a rather long line, longer than all that was there"]
        );
        assert_eq!(f.read(LogFrom::Start).lines.len(), 3, "six, seven, and the long one");
    }

    #[test]
    fn the_end_of_a_log() {
        let f = Folder::new("tail");
        f.add("one\ntwo\n");
        f.cut();
        f.add("three\nfour\nfi");
        for (n, want) in [
            (0, vec![]),
            (1, vec!["four"]),
            (3, vec!["two", "three", "four"]),
            (99, vec!["one", "two", "three", "four"]),
        ] {
            let part = f.read(LogFrom::Tail(n));
            assert_eq!(part.lines, want, "{n}");
            f.read(LogFrom::At(part.place));
        }
        let whole = read(&f.log(), LogFrom::Tail(2), 1 << 20, false).unwrap();
        assert_eq!(whole.lines, ["four", "fi"], "also what has no end yet");
        let part = f.read(LogFrom::Tail(1));
        f.add("ve\n");
        assert_eq!(f.read(LogFrom::At(part.place)).lines, ["five"]);
    }

    #[test]
    fn a_long_log_comes_in_pieces_and_endless_lines_are_broken_up() {
        let f = Folder::new("long");
        for n in 0..20_000 {
            f.add(&format!("line {n}\n"));
        }
        f.cut();
        f.add(&"x".repeat(3 * LINE));
        f.add("\nend \u{fffd}\n");
        let (mut from, mut all, mut pieces) = (LogFrom::Start, Vec::new(), 0);
        loop {
            let part = read(&f.log(), from, 40_000, true).unwrap();
            assert!(part.lines.iter().map(String::len).sum::<usize>() <= 80_000);
            all.extend(part.lines);
            from = LogFrom::At(part.place);
            pieces += 1;
            if !part.more {
                break;
            }
            assert!(pieces < 100);
        }
        assert!(pieces > 3);
        assert_eq!(all[..2], ["line 0", "line 1"]);
        assert_eq!(all[19_999], "line 19999");
        assert_eq!(all[20_000..20_003].concat(), "x".repeat(3 * LINE));
        assert_eq!(all.last().unwrap(), "end \u{fffd}");
    }
}
