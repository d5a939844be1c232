//! When the lines of a file were written.

use std::{fs, path::Path};

use model::stamps::{self, Times};

use super::Line;

/// What tells the times of a log, or of what was cut off it.
pub(super) struct Clock {
    times: Option<Times>,
    length: u64,
    /// The last write.
    written_ms: u64,
}

impl Clock {
    /// Of a file as it is now: to be asked for after what was read of it. What cannot be read tells nothing.
    pub(super) fn of(file: &Path, cut: u64) -> Clock {
        let times = stamps::path(file).and_then(|path| Times::open(&path, cut).ok().flatten());
        let now = fs::metadata(file).ok();
        Clock {
            times,
            length: now.as_ref().map_or(0, fs::Metadata::len),
            written_ms: now.as_ref().map_or(0, stamps::changed_ms),
        }
    }

    /// Octets of the file.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    /// How much of the file is older than a time.
    pub(super) fn older(&self, since_ms: u64) -> u64 {
        match &self.times {
            Some(times) => times.before(since_ms).unwrap_or(0).min(self.length),
            None if self.written_ms < since_ms => self.length,
            None => 0,
        }
    }

    /// Lines with their times, by where they end; the first one begins at `from`.
    pub(super) fn tell(&self, from: u64, lines: Vec<(u64, String)>) -> Vec<Line> {
        let to = lines.last().map_or(from, |l| l.0);
        let stamps = self.times.as_ref().and_then(|t| t.between(from, to).ok());
        let mut stamps = stamps.map(|s| s.into_iter().peekable());
        let told = lines.into_iter().map(|(end, text)| {
            let at_ms = stamps.as_mut().and_then(|stamps| {
                while stamps.next_if(|s| s.length < end).is_some() {}
                // What nobody has written down yet was written by the last write.
                let at_ms = stamps.peek().map_or(self.written_ms, |s| s.at_ms);
                Some(at_ms).filter(|at| *at > 0)
            });
            Line { at_ms, text }
        });
        told.collect()
    }
}
