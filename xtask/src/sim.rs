//! `cargo xtask sim`: the cores of a cluster under a seeded network, disks and clock.

use std::{path::PathBuf, process::Command, time::SystemTime};

use anyhow::{Context, bail};

use crate::build::{self, Profile};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Seeds to run.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// Stop after so many minutes.
    #[arg(long)]
    minutes: Option<f64>,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// This seed alone, and say what happens.
    #[arg(long)]
    seed: Option<u64>,
    /// Run a script that a failing run printed, and say what happens.
    #[arg(long)]
    replay: Option<PathBuf>,
    /// Plant faults in the cores, one after the other, and show that each is found.
    #[arg(long)]
    mutants: bool,
    /// All that a change must pass: as `cargo xtask test` does it.
    #[arg(long, exclusive = true)]
    check: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if args.check {
        return check();
    }
    let mut command = simulator(args.mutants)?;
    if args.mutants {
        command.args(["--mutants", "--seeds", &args.seeds.to_string()]);
    } else if let Some(seed) = args.seed {
        command.args(["--seed", &seed.to_string()]);
    } else if let Some(file) = &args.replay {
        command.arg("--replay").arg(file);
    } else {
        command.args(["--seeds", &args.seeds.to_string(), "--from", &args.from.to_string()]);
        if let Some(minutes) = args.minutes {
            command.args(["--minutes", &minutes.to_string()]);
        }
    }
    well(&mut command, "the simulation")
}

/// [`check`] in a process of its own that leaves the CPUs to others.
pub(crate) fn check_beside() -> anyhow::Result<()> {
    let this = std::env::current_exe().context("finding this program")?;
    let mut nice = Command::new("nice");
    nice.args(["-n", "10"]).arg(this).args(["sim", "--check"]);
    well(&mut nice, "the simulation")
}

/// What a change must pass: the same seeds as always, others for three minutes (at least 300), and every planted fault.
fn check() -> anyhow::Result<()> {
    const MUTANTS_SEEDS: u64 = 2000;
    let mut mutants = simulator(true)?;
    well(
        mutants.args(["--mutants", "--seeds", &MUTANTS_SEEDS.to_string()]),
        "the search for planted faults",
    )?;
    let mut shrinks = build::cargo();
    shrinks.args([
        "test",
        "--locked",
        "--release",
        "-p",
        "sim",
        "--features",
        "mutants",
        "--test",
        "mutants",
    ]);
    well(&mut shrinks, "the test that a failing script is cut short")?;
    well(simulator(false)?.args(["--seeds", "300"]), "the simulation")?;
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let from = now.as_secs().saturating_mul(100_000);
    let others = ["--at-least", "300", "--minutes", "3", "--seeds", "1000000"];
    well(
        simulator(false)?.args(["--from", &from.to_string()]).args(others),
        "the simulation",
    )
}

/// The simulator, built; with planted faults or without.
fn simulator(mutants: bool) -> anyhow::Result<Command> {
    let features: &[&str] = if mutants { &["mutants"] } else { &[] };
    let dir = build::programs_with(Profile::Release, &[("sim", &["sim"])], features)?;
    let mut command = Command::new(dir.join("sim"));
    command.current_dir(build::root());
    Ok(command)
}

fn well(command: &mut Command, what: &str) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("running {what}"))?;
    if !status.success() {
        bail!("{what} failed: what it found stands above");
    }
    Ok(())
}
