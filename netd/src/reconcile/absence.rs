//! The data-path address has gone: another one is mostly about to come, and what would be written for the old one takes
//! longer than to wait for it.

use std::time::{Duration, Instant};

/// How long an address that has gone is waited for.
const MOVING: Duration = Duration::from_millis(500);

/// Whether a device of this host has the data-path address.
#[derive(Debug, Default)]
pub(super) struct Absence {
    /// One had it when it was last written for.
    had: bool,
    /// First seen to be gone then.
    since: Option<Instant>,
}

impl Absence {
    /// Takes down what a pass saw. `Some`: it is not to write yet, and for how long at most. Nobody need ask before that: the
    /// kernel tells of an address that comes.
    pub(super) fn wait(&mut self, is_there: bool, now: Instant) -> Option<Duration> {
        if !is_there && self.had {
            let since = *self.since.get_or_insert(now);
            let left = MOVING.saturating_sub(now.saturating_duration_since(since));
            if !left.is_zero() {
                return Some(left);
            }
        }
        *self = Absence {
            had: is_there,
            since: None,
        };
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    #[allow(clippy::disallowed_methods, reason = "an instant to count from")]
    fn an_address_that_goes_is_waited_for_once_and_not_for_ever() {
        let begin = Instant::now();
        let mut it = Absence::default();
        assert_eq!(it.wait(false, begin), None, "it was never here");
        assert_eq!(it.wait(true, begin), None);
        // However many events ask for a pass meanwhile: it is the first one that counts.
        assert_eq!(it.wait(false, begin + 100 * MS), Some(500 * MS));
        assert_eq!(it.wait(false, begin + 300 * MS), Some(300 * MS));
        assert_eq!(it.wait(false, begin + 599 * MS), Some(MS));
        assert_eq!(it.wait(false, begin + 600 * MS), None, "it goes on as it is");
        assert_eq!(it.wait(false, begin + 700 * MS), None);
        // The next time is a new one, also after one that came in time.
        assert_eq!(it.wait(true, begin + 800 * MS), None);
        assert_eq!(it.wait(false, begin + 900 * MS), Some(500 * MS));
        assert_eq!(it.wait(true, begin + 950 * MS), None);
        assert_eq!(it.wait(false, begin + 1000 * MS), Some(500 * MS));
    }
}
