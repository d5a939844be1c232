//! A running task's health: when it is asked, and what the answers come to.

use std::time::Duration;

use model::spec::Health;

/// Until the first probe of a task that was started, and what the pauses before its first success grow from.
const SOON: Duration = Duration::from_millis(50);

/// What an answer comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Fit for new flows; `Some`: although the last probe failed, and how.
    Healthy(Option<String>),
    /// Not fit yet; how the last probe failed.
    NotYet(String),
    /// To be replaced; how the last probe failed.
    Unhealthy(String),
}

/// The check of one running task.
#[derive(Debug, Clone)]
pub(super) struct Checks {
    rules: Health,
    /// When to ask next; none: an answer is on its way.
    due: Option<Duration>,
    /// The question that is on its way: answers to others are late.
    number: u32,
    /// Pause before the next probe while none has succeeded.
    pause: Duration,
    /// From when on a failure counts.
    counts_from: Duration,
    failures: u32,
    healthy: bool,
}

impl Checks {
    /// Of a task that was started at `now`; `healthy`: it was found so by an earlier life of this program.
    pub(super) fn new(rules: Health, now: Duration, healthy: bool) -> Checks {
        let interval = Duration::from_millis(rules.interval_ms);
        let start = Duration::from_millis(rules.start_period_ms);
        Checks {
            rules,
            due: Some(now + SOON),
            number: 0,
            pause: SOON,
            counts_from: now + start.max(interval),
            failures: 0,
            healthy,
        }
    }

    /// What it asks.
    pub(super) fn rules(&self) -> &Health {
        &self.rules
    }

    /// When to ask next.
    pub(super) fn due(&self) -> Option<Duration> {
        self.due
    }

    /// Asks now: the question's number.
    pub(super) fn ask(&mut self) -> u32 {
        self.due = None;
        self.number = self.number.wrapping_add(1);
        self.number
    }

    /// Takes an answer; none: it is late.
    pub(super) fn answer(&mut self, now: Duration, number: u32, answer: Result<(), String>) -> Option<Verdict> {
        if self.due.is_some() || number != self.number {
            return None;
        }
        let interval = Duration::from_millis(self.rules.interval_ms);
        let Err(why) = answer else {
            self.healthy = true;
            self.failures = 0;
            self.counts_from = now;
            self.due = Some(now + interval);
            return Some(Verdict::Healthy(None));
        };
        if now >= self.counts_from {
            self.failures += 1;
            self.counts_from = now + interval;
        }
        // One that is starting is looked at soon and often; a healthy one that fails, after an interval.
        let pause = match self.healthy {
            true => interval,
            false => self.pause,
        };
        self.pause = (self.pause * 2).min(interval);
        self.due = Some(now + pause);
        if self.failures >= self.rules.retries {
            return Some(Verdict::Unhealthy(format!("unhealthy: {why}")));
        }
        let why = match self.failures {
            0 => format!("not healthy yet: {why}"),
            n => format!("check failed {n} of {} times: {why}", self.rules.retries),
        };
        Some(match self.healthy {
            true => Verdict::Healthy(Some(why)),
            false => Verdict::NotYet(why),
        })
    }
}

#[cfg(test)]
mod tests {
    use model::spec::Probe;

    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn rules(interval_ms: u64, retries: u32, start_period_ms: u64) -> Health {
        Health {
            probe: Probe::Tcp { port: 80 },
            interval_ms,
            timeout_ms: 100,
            retries,
            start_period_ms,
        }
    }

    /// Answers every probe at once by `well(now)` until `end`; what each came to.
    fn run(c: &mut Checks, end: u64, well: impl Fn(u64) -> bool) -> Vec<(u64, &'static str)> {
        let mut out = Vec::new();
        while let Some(due) = c.due().filter(|d| *d < ms(end)) {
            let number = c.ask();
            assert_eq!(c.due(), None, "one at a time");
            let at = u64::try_from(due.as_millis()).unwrap();
            let answer = if well(at) { Ok(()) } else { Err("refused".into()) };
            let word = match c.answer(due, number, answer).unwrap() {
                Verdict::Healthy(None) => "well",
                Verdict::Healthy(Some(_)) => "doubtful",
                Verdict::NotYet(_) => "not yet",
                Verdict::Unhealthy(_) => "unhealthy",
            };
            out.push((at, word));
            if word == "unhealthy" {
                break;
            }
        }
        out
    }

    #[test]
    fn the_first_success_is_not_waited_for_a_whole_interval() {
        let mut c = Checks::new(rules(5000, 3, 0), ms(0), false);
        assert_eq!(
            run(&mut c, 6000, |at| at >= 200),
            [(50, "not yet"), (100, "not yet"), (200, "well"), (5200, "well")]
        );
    }

    #[test]
    fn failures_that_count_lie_an_interval_apart() {
        let mut c = Checks::new(rules(1000, 3, 0), ms(0), false);
        let seen = run(&mut c, 60_000, |_| false);
        let (end, word) = *seen.last().unwrap();
        assert_eq!(word, "unhealthy");
        assert!((3000..5000).contains(&end), "{seen:?}");
        // In the start period nothing counts.
        let mut c = Checks::new(rules(1000, 1, 10_000), ms(0), false);
        let seen = run(&mut c, 60_000, |_| false);
        let (end, _) = *seen.last().unwrap();
        assert!((10_000..11_100).contains(&end), "{seen:?}");
    }

    #[test]
    fn a_healthy_one_is_given_up_after_failures_in_a_row() {
        let mut c = Checks::new(rules(1000, 2, 0), ms(0), true);
        let well = |at: u64| !matches!(at, 1000..2000 | 5000..);
        assert_eq!(
            run(&mut c, 60_000, well),
            [
                (50, "well"),
                (1050, "doubtful"),
                (2050, "well"),
                (3050, "well"),
                (4050, "well"),
                (5050, "doubtful"),
                (6050, "unhealthy")
            ]
        );
    }

    #[test]
    fn late_answers_are_none() {
        let mut c = Checks::new(rules(1000, 1, 0), ms(0), false);
        assert_eq!(c.answer(ms(10), 0, Err("x".into())), None, "nothing was asked");
        let first = c.ask();
        assert_eq!(c.answer(ms(60), first.wrapping_sub(1), Ok(())), None);
        assert_eq!(c.answer(ms(60), first, Ok(())), Some(Verdict::Healthy(None)));
        assert_eq!(c.answer(ms(70), first, Err("x".into())), None);
    }
}
