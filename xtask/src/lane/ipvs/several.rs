//! Several guests at once.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::anyhow;

use super::uml;
use crate::lane::seen::{Seen, Sums};

/// What one guest does.
pub(super) struct Work {
    /// Of the test program.
    pub(super) name: String,
    pub(super) script: String,
    /// How many tests that is; `None`: it is one, and the script's status tells.
    pub(super) tests: Option<usize>,
}

/// What came of it.
pub(super) struct Told {
    pub(super) name: String,
    /// As far as they were heard.
    pub(super) sums: Option<Sums>,
    /// Why it is no success.
    pub(super) fault: Option<anyhow::Error>,
    pub(super) took: Duration,
}

/// Does all of it, in at most `guests` guests at once, each for at most `limit`; what they say is shown as it comes.
pub(super) fn run(work: Vec<Work>, guests: usize, visible: &[&Path], limit: Duration) -> Vec<Told> {
    let guests = guests.clamp(1, work.len().max(1));
    let (queue, told) = (Mutex::new(VecDeque::from(work)), Mutex::new(Vec::new()));
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    std::thread::scope(|scope| {
        for _ in 0..guests {
            scope.spawn(|| {
                while let Some(work) = next() {
                    let one = one(work, guests > 1, visible, limit);
                    told.lock().unwrap_or_else(PoisonError::into_inner).push(one);
                }
            });
        }
    });
    let mut told = told.into_inner().unwrap_or_else(PoisonError::into_inner);
    told.sort_by(|a: &Told, b: &Told| a.name.cmp(&b.name));
    told
}

fn one(work: Work, named: bool, visible: &[&Path], limit: Duration) -> Told {
    let start = Instant::now();
    let mut seen = Seen::default();
    let ended = uml::run(&work.script, visible, limit, &mut |line| {
        seen.line(line);
        match named {
            true => println!("{:>13} | {line}", work.name),
            false => println!("{line}"),
        }
    });
    // Where the guest broke down, that is the reason, and not that its tests did not end.
    let verdict = ended.and_then(|status| match work.tests {
        Some(tests) => seen.verdict(tests),
        None if status == 0 => Ok(Sums {
            passed: 1,
            ..Sums::default()
        }),
        None => Err(anyhow!("it ended with {status}: the reasons stand above")),
    });
    let took = start.elapsed();
    println!(
        "... {}: {}, {} s",
        work.name,
        if verdict.is_ok() { "done" } else { "FAILED" },
        took.as_secs()
    );
    Told {
        name: work.name,
        sums: verdict.as_ref().ok().copied().or(seen.sums()),
        fault: verdict.err(),
        took,
    }
}
