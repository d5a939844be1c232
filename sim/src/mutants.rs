//! Shows that planted faults are found.

use std::sync::atomic::{AtomicUsize, Ordering};

use cluster::mutant::{self, Mutant};
use sim::{Script, run};

/// The fault of a name.
pub(crate) fn named(name: Option<&str>) -> anyhow::Result<Option<Mutant>> {
    let Some(name) = name else { return Ok(None) };
    compiled()?;
    let known = Mutant::ALL.iter().find(|m| format!("{m:?}").eq_ignore_ascii_case(name));
    match known {
        Some(m) => Ok(Some(*m)),
        None => anyhow::bail!("there is no fault {name}; try: --mutants, which lists them"),
    }
}

fn compiled() -> anyhow::Result<()> {
    if !mutant::PLANTED {
        anyhow::bail!("no faults are compiled in; try: cargo xtask sim --mutants");
    }
    Ok(())
}

/// Looks for the first seed that finds each; at most so many seeds.
pub(crate) fn show(seeds: u64, threads: usize) -> anyhow::Result<bool> {
    compiled()?;
    let next = AtomicUsize::new(0);
    let found = std::sync::Mutex::new(vec![None; Mutant::ALL.len()]);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    let Some(m) = Mutant::ALL.get(i) else { return };
                    for seed in 0..seeds {
                        mutant::plant(Some(*m));
                        let report = run(&Script::generate(seed), false);
                        if let Some((_, v)) = report.violation {
                            found.lock().unwrap_or_else(|e| e.into_inner())[i] = Some((seed, v));
                            break;
                        }
                    }
                    mutant::plant(None);
                }
            });
        }
    });
    let found = found.into_inner().unwrap_or_else(|e| e.into_inner());
    println!("{:<20} {:>6}  {:<9}  what was seen", "fault", "seeds", "invariant");
    for (m, f) in Mutant::ALL.iter().zip(&found) {
        match f {
            Some((seed, v)) => println!(
                "{:<20} {:>6}  {:<9}  {}",
                format!("{m:?}"),
                seed + 1,
                v.invariant,
                v.what
            ),
            None => println!(
                "{:<20} {:>6}  NOT FOUND: a cluster that {}",
                format!("{m:?}"),
                seeds,
                m.about()
            ),
        }
    }
    let caught = found.iter().flatten().count();
    println!("{caught} of {} planted faults found", Mutant::ALL.len());
    Ok(caught == Mutant::ALL.len())
}
