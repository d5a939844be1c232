//! Whether, and when, a task that ended is started again.

use std::{collections::VecDeque, time::Duration};

use model::spec::{Condition, Restart};

/// Pauses grow up to this, or stay at what the service asks for if that is more.
pub(super) const LONGEST: Duration = Duration::from_secs(30);
/// A task that ran so long was sound: its next end counts as the first.
pub(super) const SOUND: Duration = Duration::from_secs(10);
/// What pauses grow from when the service asks for none.
const LEAST: Duration = Duration::from_millis(100);
/// Restarts that are remembered at most; specs allow no more attempts.
const REMEMBERED: usize = 1_000;

/// What comes after an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// A start, after a pause.
    Again(Duration),
    /// Nothing: so the service wants it.
    Enough,
    /// Nothing here: the restarts are used up.
    UsedUp,
}

/// Restarts so far.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Policy {
    /// Ends in a row that came soon after their start.
    soon: u32,
    /// When restarts were decided on.
    restarts: VecDeque<Duration>,
}

impl Policy {
    /// One that goes on where an earlier life of this program was: its restarts count as of now.
    pub(super) fn found(now: Duration, recent: u32) -> Policy {
        let recent = usize::try_from(recent).unwrap_or(REMEMBERED).min(REMEMBERED);
        Policy {
            soon: 0,
            restarts: std::iter::repeat_n(now, recent).collect(),
        }
    }

    /// Restarts that count, for the record.
    pub(super) fn recent(&self) -> u32 {
        u32::try_from(self.restarts.len()).unwrap_or(u32::MAX)
    }

    /// What comes after an end at `now` of a task that ran for `ran`, `well` or not.
    pub(super) fn ended(&mut self, rules: &Restart, now: Duration, ran: Duration, well: bool) -> Next {
        let again = match rules.condition {
            Condition::Any => true,
            Condition::OnFailure => !well,
            Condition::None => false,
        };
        if !again {
            return Next::Enough;
        }
        if rules.window_ms > 0 {
            let window = Duration::from_millis(rules.window_ms);
            while self.restarts.front().is_some_and(|at| *at + window <= now) {
                self.restarts.pop_front();
            }
        }
        let used = self.restarts.len();
        if rules
            .max_attempts
            .is_some_and(|max| used >= usize::try_from(max).unwrap_or(usize::MAX))
        {
            return Next::UsedUp;
        }
        if used == REMEMBERED {
            self.restarts.pop_front();
        }
        self.restarts.push_back(now);
        self.soon = match ran >= SOUND {
            true => 1,
            false => self.soon.saturating_add(1),
        };
        Next::Again(pause(rules, self.soon))
    }
}

/// The pause before the start that follows the `soon`th end in a row, from 1.
fn pause(rules: &Restart, soon: u32) -> Duration {
    let delay = Duration::from_millis(rules.delay_ms);
    if soon <= 1 {
        return delay;
    }
    let factor = 1u32.checked_shl(soon - 1).unwrap_or(u32::MAX);
    delay.max(LEAST).saturating_mul(factor).min(LONGEST.max(delay))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(condition: Condition, delay_ms: u64, max: Option<u32>, window_ms: u64) -> Restart {
        Restart {
            condition,
            delay_ms,
            max_attempts: max,
            window_ms,
        }
    }

    fn s(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn conditions() {
        for (condition, well, again) in [
            (Condition::Any, true, true),
            (Condition::Any, false, true),
            (Condition::OnFailure, true, false),
            (Condition::OnFailure, false, true),
            (Condition::None, true, false),
            (Condition::None, false, false),
        ] {
            let next = Policy::default().ended(&rules(condition, 100, None, 0), s(1), s(1), well);
            let want = if again {
                Next::Again(Duration::from_millis(100))
            } else {
                Next::Enough
            };
            assert_eq!(next, want, "{condition:?}, well: {well}");
        }
    }

    #[test]
    fn pauses_grow_while_it_ends_soon() {
        for (delay, want) in [
            (
                100,
                [100, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000],
            ),
            (0, [0, 200, 400, 800, 1600, 3200, 6400, 12_800, 25_600, 30_000, 30_000]),
            (
                60_000,
                [
                    60_000, 60_000, 60_000, 60_000, 60_000, 60_000, 60_000, 60_000, 60_000, 60_000, 60_000,
                ],
            ),
        ] {
            let (mut p, rules) = (Policy::default(), rules(Condition::Any, delay, None, 0));
            let got = want.map(|_| match p.ended(&rules, s(1), s(0), true) {
                Next::Again(pause) => pause.as_millis(),
                other => panic!("{other:?}"),
            });
            assert_eq!(got, want);
            // One that ran for a while is met as at first; and no number of ends overflows.
            let first = Next::Again(Duration::from_millis(delay));
            assert_eq!(p.ended(&rules, s(99), SOUND, false), first);
            (0..3000).for_each(|_| {
                p.ended(&rules, s(99), s(0), false);
            });
        }
    }

    #[test]
    fn attempts_are_used_up_within_a_window() {
        let (mut p, forever) = (Policy::default(), rules(Condition::Any, 0, Some(2), 0));
        let ends = [1, 2, 999].map(|at| p.ended(&forever, s(at), s(1), false));
        assert_eq!(ends[2], Next::UsedUp, "{ends:?}");
        assert!(matches!(ends[1], Next::Again(_)));
        let (mut p, window) = (Policy::default(), rules(Condition::Any, 0, Some(2), 10_000));
        let ends = [1, 2, 10, 11, 12, 13].map(|at| p.ended(&window, s(at), s(1), false));
        let used: Vec<bool> = ends.iter().map(|e| *e == Next::UsedUp).collect();
        assert_eq!(used, [false, false, true, false, false, true]);
        let mut p = Policy::found(s(5), 2);
        assert_eq!(p.ended(&window, s(6), s(1), false), Next::UsedUp);
    }
}
