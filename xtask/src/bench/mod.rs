//! `cargo xtask bench`: figures are ratios to something else that was measured in the same run, in turns.

mod direct;
mod figure;
mod mesh;

use anyhow::{Context, bail};
use clap::ValueEnum;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::build::{self, Profile};
use crate::packages;

#[derive(Clone, Copy, ValueEnum)]
enum Name {
    /// Connections, requests and one stream through a published port of another node.
    Mesh,
}

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to measure.
    name: Name,
    /// Two short rounds instead of five.
    #[arg(long)]
    quick: bool,
    /// One JSON object a line on standard output.
    #[arg(long)]
    json: bool,
    /// Measure the hand-made path against a second one of its own: how quiet is this machine?
    #[arg(long)]
    baseline: bool,
}

/// How much to measure.
#[derive(Debug, Clone, Copy)]
struct Effort {
    rounds: u32,
    /// Of each measurement.
    seconds: f64,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    packages::ensure(packages::LAB)?;
    let programs = build::programs(Profile::Release, if args.baseline { build::LAB } else { build::ALL })?;
    let cpu = pin()?;
    let effort = if args.quick {
        Effort {
            rounds: 2,
            seconds: 0.5,
        }
    } else {
        Effort {
            rounds: 5,
            seconds: 2.0,
        }
    };
    eprintln!(
        "{} rounds of {} s, everything on CPU {cpu}",
        effort.rounds, effort.seconds
    );
    let figures = match args.name {
        Name::Mesh => mesh::run(&programs, effort, args.baseline)?,
    };
    if figures.is_empty() {
        bail!("nothing was measured");
    }
    if args.json {
        for figure in &figures {
            println!("{}", serde_json::to_string(figure).context("writing a figure")?);
        }
    } else {
        println!("{}", figure::table(&figures));
    }
    Ok(())
}

/// Keeps this process, and so every host that it makes, on one CPU: what is meant is the cost of a path, and two CPUs
/// would hide half of it.
fn pin() -> anyhow::Result<usize> {
    let me = Pid::from_raw(0);
    let allowed = sched_getaffinity(me).context("asking which CPUs are allowed")?;
    let cpu = (0..CpuSet::count())
        .rev()
        .find(|cpu| allowed.is_set(*cpu).unwrap_or(false))
        .context("no CPU is allowed")?;
    let mut one = CpuSet::new();
    one.set(cpu).context("choosing a CPU")?;
    sched_setaffinity(me, &one).with_context(|| format!("pinning everything to CPU {cpu}"))?;
    Ok(cpu)
}
