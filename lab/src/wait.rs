//! Waiting for a state of the world that sends no event.

use std::time::{Duration, Instant};

use anyhow::bail;

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(20);

/// Looks again and again until `look` answers something, at most for `limit`.
///
/// # Errors
///
/// When the time is over; the message carries the last reason that `look` gave.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<(T, Duration)> {
    let start = Instant::now();
    loop {
        let reason = match look() {
            Ok(Some(found)) => return Ok((found, start.elapsed())),
            Ok(None) => "it is not so yet".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        if start.elapsed() >= limit {
            bail!("waited {:.1} s for {what}: {reason}", limit.as_secs_f64());
        }
        std::thread::sleep(LOOK);
    }
}

/// As [`until`], for a condition that is true or not. Answers how long it took.
///
/// # Errors
///
/// When the time is over.
pub fn eventually(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<Duration> {
    until(what, limit, || Ok(look()?.then_some(()))).map(|((), took)| took)
}
