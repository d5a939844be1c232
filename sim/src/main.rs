//! Runs seeds, replays scripts, and shows that planted faults are found.
#![allow(clippy::disallowed_methods, reason = "it measures how fast the simulation runs")]

mod mutants;

use std::{
    path::PathBuf,
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use clap::Parser;
use sim::{Script, run, shrink};

#[derive(Parser)]
#[command(
    name = "sim",
    about = "A cluster's cores under a seeded network, disks and clock, with an oracle"
)]
struct Cli {
    /// Seeds to run.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// Stop after so many minutes; the seeds that must be run in any case are those of --at-least.
    #[arg(long)]
    minutes: Option<f64>,
    /// Seeds to run although the time is over.
    #[arg(long, default_value_t = 0)]
    at_least: u64,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// This seed alone, and say what happens.
    #[arg(long, conflicts_with = "from")]
    seed: Option<u64>,
    /// Runs a script that an earlier run printed, and says what happens.
    #[arg(long)]
    replay: Option<PathBuf>,
    /// Plants a fault by its name (needs the feature `mutants`).
    #[arg(long)]
    plant: Option<String>,
    /// Shows that each planted fault is found (needs the feature `mutants`).
    #[arg(long)]
    mutants: bool,
    /// Threads; default: one per processor.
    #[arg(long)]
    threads: Option<usize>,
    /// Prints the hash of each seed's run.
    #[arg(long)]
    hashes: bool,
}

fn main() -> ExitCode {
    match start(&Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(cli: &Cli) -> anyhow::Result<bool> {
    let threads = cli
        .threads
        .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
        .max(1);
    if cli.mutants {
        return mutants::show(cli.seeds, threads);
    }
    let planted = mutants::named(cli.plant.as_deref())?;
    if let Some(file) = &cli.replay {
        let text = std::fs::read_to_string(file).map_err(|e| {
            anyhow::anyhow!(
                "cannot read {}: {e}; try: a file that a failing run wrote",
                file.display()
            )
        })?;
        return Ok(tell(&Script::parse(&text)?, planted));
    }
    if let Some(seed) = cli.seed {
        return Ok(tell(&Script::generate(seed), planted));
    }
    many(cli, threads, planted)
}

/// Runs one script and says what happens.
fn tell(script: &Script, planted: Option<cluster::mutant::Mutant>) -> bool {
    cluster::mutant::plant(planted);
    let report = run(script, true);
    println!("{report:#?}");
    report.violation.is_none()
}

#[derive(Default)]
struct Sums {
    seeds: AtomicU64,
    events: AtomicU64,
    acknowledged: AtomicU64,
    reads: AtomicU64,
    terms: AtomicU64,
    time: AtomicU64,
}

fn many(cli: &Cli, threads: usize, planted: Option<cluster::mutant::Mutant>) -> anyhow::Result<bool> {
    let begun = Instant::now();
    let limit = cli.minutes.map(|m| Duration::from_secs_f64(m * 60.0));
    let next = AtomicU64::new(cli.from);
    let end = cli.from + cli.seeds.max(cli.at_least);
    let sums = Sums::default();
    let failed: Mutex<Option<u64>> = Mutex::new(None);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                cluster::mutant::plant(planted);
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    let late = limit.is_some_and(|l| begun.elapsed() >= l) && seed >= cli.from + cli.at_least;
                    if seed >= end || late {
                        return;
                    }
                    let report = run(&Script::generate(seed), false);
                    sums.seeds.fetch_add(1, Ordering::Relaxed);
                    sums.events.fetch_add(report.events, Ordering::Relaxed);
                    sums.acknowledged.fetch_add(report.acknowledged, Ordering::Relaxed);
                    sums.reads.fetch_add(report.reads, Ordering::Relaxed);
                    sums.terms.fetch_add(report.terms as u64, Ordering::Relaxed);
                    sums.time.fetch_add(report.time, Ordering::Relaxed);
                    if cli.hashes {
                        println!("{seed} {:016x}", report.trace);
                    }
                    if report.violation.is_some() {
                        let mut first = failed.lock().unwrap_or_else(|e| e.into_inner());
                        *first = Some(first.map_or(seed, |f| f.min(seed)));
                        stop.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
        let mut told = Instant::now();
        while next.load(Ordering::Relaxed) < end && !stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(100));
            if limit.is_some_and(|l| begun.elapsed() >= l) && sums.seeds.load(Ordering::Relaxed) >= cli.at_least {
                break;
            }
            if told.elapsed() >= Duration::from_secs(10) && !cli.hashes {
                told = Instant::now();
                let n = sums.seeds.load(Ordering::Relaxed);
                let rate = n as f64 / begun.elapsed().as_secs_f64() * 60.0;
                eprintln!("{n} seeds, {rate:.0} a minute");
            }
        }
    });
    let n = sums.seeds.load(Ordering::Relaxed);
    let took = begun.elapsed().as_secs_f64();
    if !cli.hashes {
        println!(
            "{n} seeds (from {}) in {took:.1} s: {:.0} seeds/min with {threads} threads; {:.1} h simulated, {} events, {} \
             terms, {} writes and {} reads acknowledged",
            cli.from,
            n as f64 / took * 60.0,
            sums.time.load(Ordering::Relaxed) as f64 / 3.6e9,
            sums.events.load(Ordering::Relaxed),
            sums.terms.load(Ordering::Relaxed),
            sums.acknowledged.load(Ordering::Relaxed),
            sums.reads.load(Ordering::Relaxed),
        );
    }
    let Some(seed) = *failed.lock().unwrap_or_else(|e| e.into_inner()) else {
        return Ok(true);
    };
    fail(seed, planted)?;
    Ok(false)
}

/// Says how a seed fails, as shortly as can be.
fn fail(seed: u64, planted: Option<cluster::mutant::Mutant>) -> anyhow::Result<()> {
    cluster::mutant::plant(planted);
    let script = Script::generate(seed);
    let Some((_, violation)) = run(&script, false).violation else {
        anyhow::bail!("seed {seed} failed and does not fail again: the simulation is not deterministic");
    };
    eprintln!(
        "seed {seed} breaks invariant {}: {}",
        violation.invariant, violation.what
    );
    eprintln!("shrinking {} acts ...", script.acts.len());
    let short = shrink(&script, &violation, || cluster::mutant::plant(planted));
    let text = short.print()?;
    let file = std::env::temp_dir().join(format!("netd-sim-{seed}.script"));
    std::fs::write(&file, &text)?;
    if let Some((at, v)) = run(&short, false).violation {
        eprintln!(
            "after {} acts, at {} ms: invariant {}: {}",
            short.acts.len(),
            at / 1000,
            v.invariant,
            v.what
        );
    }
    print!("{text}");
    eprintln!("try: cargo xtask sim --replay {}", file.display());
    Ok(())
}
