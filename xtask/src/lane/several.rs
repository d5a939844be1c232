//! Several guests at once.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail};

use super::programs::TestProgram;
use super::seen::{self, Seen, Sums};
use crate::ui::table;

/// What one guest does.
pub(super) struct Work {
    /// Of the test program.
    pub(super) name: String,
    pub(super) script: String,
    /// How many tests that is; `None`: it is one, and the script's status tells.
    pub(super) tests: Option<usize>,
}

impl Work {
    /// Those tests of a program for whose name, `program::test`, `keep` holds; `None`: there are none. `options` are for
    /// the program, each with a space before it.
    ///
    /// # Errors
    ///
    /// When its tests cannot be listed.
    pub(super) fn of(program: TestProgram, options: &str, keep: impl Fn(&str) -> bool) -> anyhow::Result<Option<Work>> {
        let tests = program.list(|test| keep(&format!("{}::{test}", program.name)))?;
        Ok((!tests.is_empty()).then(|| Work {
            script: seen::script(&program.path, options, &tests),
            tests: Some(tests.len()),
            name: program.name,
        }))
    }
}

/// Boots a guest that runs a script, and hands on each line; answers the script's status.
pub(super) type Boot<'a> = dyn Fn(&str, &mut dyn FnMut(&str)) -> anyhow::Result<i32> + Sync + 'a;

/// What came of it.
struct Told {
    name: String,
    /// As far as they were heard.
    sums: Option<Sums>,
    /// Why it is no success.
    fault: Option<anyhow::Error>,
    took: Duration,
}

/// Does all of it, in at most `guests` guests at once; what they say is shown as it comes, and at the end a table.
///
/// # Errors
///
/// Some of it failed.
pub(super) fn run(work: Vec<Work>, guests: usize, boot: &Boot<'_>) -> anyhow::Result<()> {
    let start = Instant::now();
    let guests = guests.clamp(1, work.len().max(1));
    println!(
        "... {} tests of {} programs, in {guests} guest(s) at a time",
        work.iter().map(|w| w.tests.unwrap_or(1)).sum::<usize>(),
        work.len(),
    );
    let (queue, told) = (Mutex::new(VecDeque::from(work)), Mutex::new(Vec::new()));
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    std::thread::scope(|scope| {
        for _ in 0..guests {
            scope.spawn(|| {
                while let Some(work) = next() {
                    let one = one(work, guests > 1, boot);
                    told.lock().unwrap_or_else(PoisonError::into_inner).push(one);
                }
            });
        }
    });
    let mut told = told.into_inner().unwrap_or_else(PoisonError::into_inner);
    told.sort_by(|a: &Told, b: &Told| a.name.cmp(&b.name));
    let mut rows = vec![
        ["tests", "passed", "failed", "ignored", "s"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let mut broken = Vec::new();
    for one in told {
        let sums = one.sums.unwrap_or_default();
        let numbers = [sums.passed, sums.failed, sums.ignored, one.took.as_secs()].map(|n| n.to_string());
        rows.push([vec![one.name.clone()], numbers.to_vec()].concat());
        broken.extend(one.fault.map(|fault| format!("{}: {fault:#}", one.name)));
    }
    println!("\n{}{} s in all", table(&rows), start.elapsed().as_secs());
    if !broken.is_empty() {
        bail!("{}", broken.join("\n"));
    }
    Ok(())
}

fn one(work: Work, named: bool, boot: &Boot<'_>) -> Told {
    let start = Instant::now();
    let mut seen = Seen::default();
    let ended = boot(&work.script, &mut |line| {
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
