//! `cargo xtask bench`: figures are ratios to something else that was measured in the same run, in turns.

mod delivery;
mod direct;
mod figure;
mod gossip;
mod ipvs;
mod joins;
mod mesh;
mod placement;
mod process;
mod raft;
mod services;
mod socket;

use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::ValueEnum;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::build::{self, Profile};
use crate::packages;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    /// Connections, requests and one stream through a published port of another node.
    Mesh,
    /// The same over IPVS, beside Docker Swarm's rules and a bare virtual server: in User-Mode Linux.
    Ipvs,
    /// How soon all nodes know of a row and of a death; what an idle daemon costs.
    Gossip,
    /// A million tasks on 4,700 nodes, placed and committed; a node's death.
    Placement,
    /// Writes of three managers, beside etcd's; a leader's death; a long log.
    Raft,
    /// A thousand nodes that join three managers at once and keep their streams.
    Joins,
    /// How long a service's user waits, beside Docker Swarm's recorded figures.
    Services,
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
    /// mesh: measure the hand-made path against a second one of its own: how quiet is this machine? ipvs: the others alone.
    #[arg(long)]
    baseline: bool,
    #[command(flatten)]
    extra: Extra,
}

/// Settings of single benches.
#[derive(clap::Args)]
struct Extra {
    /// gossip: daemons.
    #[arg(long, default_value_t = 25, value_parser = clap::value_parser!(u8).range(3..=60))]
    nodes: u8,
    /// gossip: how long slow nodes are watched, minutes; default 10, with --quick half a minute.
    #[arg(long)]
    minutes: Option<f64>,
    /// joins: nodes that join.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(10..=8000))]
    joiners: u32,
    /// ipvs: how long the kernel takes to be told of services, alone.
    #[arg(long, conflicts_with = "baseline")]
    programming: bool,
    /// ipvs: what a netd with many services writes when it is started again, alone.
    #[arg(long, conflicts_with_all = ["baseline", "programming"])]
    restart: bool,
    /// ipvs: this is the guest, and the programs are in this folder.
    #[arg(long, hide = true)]
    inside: Option<PathBuf>,
}

impl Extra {
    fn minutes_or(&self, quick: bool) -> std::time::Duration {
        let minutes = self.minutes.unwrap_or(if quick { 0.5 } else { 10.0 });
        std::time::Duration::from_secs_f64(minutes.clamp(0.1, 600.0) * 60.0)
    }
}

fn mib(octets: u64) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "memory of a process, for people")]
    let mib = octets as f64 / f64::from(1 << 20);
    mib
}

/// How much to measure.
#[derive(Debug, Clone, Copy)]
struct Effort {
    rounds: u32,
    /// Of each measurement.
    seconds: f64,
    /// Less of everything.
    quick: bool,
}

impl Effort {
    /// How long something idle is looked at. The kernel counts CPU time in hundredths of a second: in less time one of them
    /// is a large part of what a daemon may take.
    fn idle(self) -> std::time::Duration {
        std::time::Duration::from_secs(if self.quick { 20 } else { 30 })
    }
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    packages::ensure(packages::LAB)?;
    if args.name == Name::Ipvs {
        packages::ensure(packages::IPVS)?;
    }
    let part = match (args.baseline, args.extra.programming, args.extra.restart) {
        (true, ..) => ipvs::Part::Others,
        (_, true, _) => ipvs::Part::Programming,
        (_, _, true) => ipvs::Part::Restart,
        _ => ipvs::Part::All,
    };
    let programs = match args.name {
        Name::Ipvs => match &args.extra.inside {
            Some(folder) => folder.clone(),
            None => ipvs::build(part)?,
        },
        Name::Joins | Name::Placement => build::programs_and_examples(Profile::Release, build::ALL, &[joins::LOAD])?,
        _ if args.baseline => build::programs(Profile::Release, build::LAB)?,
        _ => build::programs(Profile::Release, build::ALL)?,
    };
    let effort = if args.quick {
        Effort {
            rounds: 2,
            seconds: 0.5,
            quick: true,
        }
    } else {
        Effort {
            rounds: 5,
            seconds: 2.0,
            quick: false,
        }
    };
    let figures = match args.name {
        Name::Mesh => {
            let cpu = pin()?;
            eprintln!(
                "{} rounds of {} s, everything on CPU {cpu}",
                effort.rounds, effort.seconds
            );
            mesh::run(&programs, effort, args.baseline)?
        }
        Name::Ipvs if args.extra.inside.is_some() => ipvs::inside(&programs, effort, part)?,
        Name::Ipvs => ipvs::run(&programs, args.quick, part)?,
        Name::Raft => raft::run(&programs, effort)?,
        Name::Placement => placement::run(&programs, effort)?,
        Name::Services => services::run(&programs, effort)?,
        Name::Gossip => gossip::run(&programs, effort, &args.extra)?,
        Name::Joins => joins::run(&programs, effort, args.extra.joiners)?,
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
