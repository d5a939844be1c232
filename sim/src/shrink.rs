//! Cuts a failing script shorter while it still fails.

use crate::{Script, Violation, run, script::Act};

/// Runs that shrinking may take.
const MOST: usize = 3000;

/// The shortest script found that breaks the same invariant. `prepare` is called before each run.
pub fn shrink(script: &Script, violation: &Violation, prepare: impl Fn()) -> Script {
    let mut best = script.clone();
    let mut runs = 0;
    let mut fails = |candidate: &Script| {
        runs += 1;
        prepare();
        let got = run(candidate, false).violation;
        runs <= MOST && got.is_some_and(|(_, v)| v.invariant == violation.invariant)
    };
    // What came after the failure had no part in it.
    prepare();
    if let Some((at, _)) = run(&best, false).violation {
        let mut cut = best.clone();
        cut.acts.retain(|(ms, _)| ms * 1000 <= at);
        if fails(&cut) {
            best = cut;
        }
    }
    let mut size = best.acts.len().div_ceil(2).max(1);
    loop {
        let mut from = 0;
        let mut shorter = false;
        while from < best.acts.len() {
            let mut cut = best.clone();
            cut.acts.drain(from..(from + size).min(best.acts.len()));
            if fails(&cut) {
                best = cut;
                shorter = true;
            } else {
                from += size;
            }
        }
        if size == 1 && !shorter {
            break;
        }
        size = (size / 2).max(1);
        if size == 1 && best.acts.is_empty() {
            break;
        }
    }
    // Nicer weather and fewer hosts tell more.
    for simpler in simplifications(&best) {
        if fails(&simpler) {
            best = simpler;
        }
    }
    best
}

fn simplifications(script: &Script) -> Vec<Script> {
    let mut out = Vec::new();
    let mut calm = script.clone();
    (calm.shape.weather.loss, calm.shape.weather.twice) = (0, 0);
    out.push(calm.clone());
    let mut alone = calm.clone();
    for (_, act) in &mut alone.acts {
        if let Act::Want { twice, .. } = act {
            *twice = false;
        }
    }
    out.push(alone);
    if script.shape.agents {
        let mut without = calm;
        without.shape.agents = false;
        out.push(without);
    }
    out
}
