//! Trying a door: changed examples for a while, and what a panic needs cut down to.

use std::{
    cell::RefCell,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Once,
    time::{Duration, Instant},
};

use rand::{SeedableRng, rngs::StdRng};

use crate::{Door, mutate};

/// Longest time for one input: what takes longer could be sent again and again.
pub const SLOW: Duration = Duration::from_secs(2);
/// Tries at cutting an input short.
const CUTS: usize = 4000;

/// What a door did that it must not do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What was brought, as short as it could be made.
    pub input: Vec<u8>,
    /// What happened: the panic and where, or how long it took.
    pub what: String,
}

thread_local! {
    /// The last panic of this thread, while a door is tried.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
    static TRYING: RefCell<bool> = const { RefCell::new(false) };
}

/// Keeps panics in a door off the screen: they are told once, with what led to them.
fn quietly() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if TRYING.with(|t| *t.borrow()) {
                PANIC.with(|p| *p.borrow_mut() = Some(info.to_string()));
            } else {
                before(info);
            }
        }));
    });
}

/// Brings octets to a door once; `Some`: what went wrong.
pub fn once(door: &Door, input: &[u8]) -> Option<String> {
    quietly();
    let begun = Instant::now();
    TRYING.with(|t| *t.borrow_mut() = true);
    let done = catch_unwind(AssertUnwindSafe(|| (door.open)(input)));
    TRYING.with(|t| *t.borrow_mut() = false);
    let took = begun.elapsed();
    match done {
        Err(_) => Some(
            PANIC
                .with(|p| p.borrow_mut().take())
                .unwrap_or_else(|| "a panic".into()),
        ),
        // Looked at again: something else may have had the processor.
        Ok(()) if took > SLOW => {
            let begun = Instant::now();
            (door.open)(input);
            (begun.elapsed() > SLOW).then(|| format!("it took longer than {} s", SLOW.as_secs()))
        }
        Ok(()) => None,
    }
}

/// Tries a door for a while; the same `seed` makes the same inputs. Answers how many were tried, and the first fault.
pub fn drive(door: &Door, seed: u64, limit: Duration) -> (u64, Option<Fault>) {
    let seeds = (door.seeds)();
    let mut rng = StdRng::seed_from_u64(seed);
    let begun = Instant::now();
    let mut tried = 0;
    for seed in &seeds {
        tried += 1;
        if let Some(what) = once(door, seed) {
            return (tried, Some(shortest(door, seed.clone(), what)));
        }
    }
    while begun.elapsed() < limit {
        let input = mutate::mutated(&seeds, &mut rng);
        tried += 1;
        if let Some(what) = once(door, &input) {
            return (tried, Some(shortest(door, input, what)));
        }
    }
    (tried, None)
}

/// The place in the source: two panics there are one fault.
fn place(what: &str) -> &str {
    what.lines().next().unwrap_or(what)
}

fn shortest(door: &Door, mut input: Vec<u8>, mut what: String) -> Fault {
    let mut left = match what.starts_with("panicked") {
        true => CUTS,
        // One that takes its time is told as it was found.
        false => 0,
    };
    let mut step = input.len().div_ceil(2);
    while step > 0 {
        let mut at = 0;
        while at < input.len() && left > 0 {
            left -= 1;
            let mut shorter = input.clone();
            shorter.drain(at..(at + step).min(input.len()));
            match once(door, &shorter) {
                Some(now) if place(&now) == place(&what) => (input, what) = (shorter, now),
                _ => at += step,
            }
        }
        step /= 2;
    }
    Fault { input, what }
}
