//! `cargo xtask bench ipvs`: the mesh over IPVS beside what others make of the same kernel, in User-Mode Linux.
//!
//! The bench is this very program, run in a guest: one kernel, one run, all in turns. What it measures with and against are
//! labs with the same hops: client -> published port on n1 -> VXLAN -> backend on n2.

mod bare;
mod passes;
mod program;
mod restart;
mod swarm;
mod traced;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use lab::wire::Tally;
use lab::{Host, Lab, eventually};

use super::figure::Figure;
use super::mesh::{METRICS, Side, measure};
use super::{Effort, direct, mesh};
use crate::build::{self, Profile};
use crate::lane::ipvs;
use crate::ui;

/// Where the program is that tells the kernel of services.
const KERNEL: build::Programs = ("kernel", &[]);

/// How long a guest may take for the whole bench.
const LIMIT: Duration = Duration::from_secs(60 * 60);

/// What of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    All,
    /// Those that netd is compared with.
    Others,
    /// How long the kernel takes to be told.
    Programming,
    /// What is written when netd is started again.
    Restart,
}

/// Builds what a part of the bench needs.
///
/// # Errors
///
/// When the build fails.
pub(super) fn build(part: Part) -> anyhow::Result<PathBuf> {
    let release = Profile::Release;
    match part {
        Part::All | Part::Programming => {
            let all = [build::ALL, &[KERNEL]].concat();
            build::programs_and_examples(release, &all, &[program::LOAD, passes::LOAD])
        }
        Part::Others => build::programs(release, build::LAB),
        Part::Restart => build::programs(release, build::ALL),
    }
}

/// Runs the bench in a guest and reads its figures.
pub(super) fn run(programs: &Path, quick: bool, part: Part) -> anyhow::Result<Vec<Figure>> {
    let folder = programs.to_str().context("a folder whose name is no text")?;
    let mut words = vec!["bench", "ipvs", "--json", "--inside", folder];
    words.extend(quick.then_some("--quick"));
    words.extend(match part {
        Part::All => None,
        Part::Others => Some("--baseline"),
        Part::Programming => Some("--programming"),
        Part::Restart => Some("--restart"),
    });
    let (mut figures, mut unread) = (Vec::new(), None);
    let status = ipvs::own(&words, programs, LIMIT, &mut |line| {
        // A figure is an object, all else is for people.
        if !line.starts_with('{') {
            eprintln!("{line}");
            return;
        }
        match serde_json::from_str::<Figure>(line) {
            Ok(figure) => figures.push(figure),
            Err(e) => unread = Some(format!("{line}: {e}")),
        }
    })?;
    ensure!(status == 0, "the bench ended with {status}: its reasons stand above");
    if let Some(unread) = unread {
        anyhow::bail!("the guest told a figure that cannot be read: {unread}");
    }
    Ok(figures)
}

/// The bench itself, on a kernel with IPVS. The baseline is what the others make of the path without a balancer.
pub(super) fn inside(programs: &Path, effort: Effort, part: Part) -> anyhow::Result<Vec<Figure>> {
    match part {
        Part::Programming => {
            let mut figures = program::run(programs, effort)?;
            figures.extend(passes::run(programs, effort)?);
            return Ok(figures);
        }
        Part::Restart => return restart::run(programs, effort),
        Part::All | Part::Others => {}
    }
    let baseline = part == Part::Others;
    let sides = ui::during("labs with the same hops", || {
        let mut sides = Vec::new();
        if !baseline {
            sides.push(("netd", netd(programs)?));
        }
        let (lab, target) = direct::lab("bench-direct", programs)?;
        sides.push(("direct", Side { lab, target }));
        sides.push(("ipvs", bare::side(programs)?));
        sides.push(("swarm", swarm::side(programs)?));
        Ok(sides)
    })?;
    let mut figures = Vec::new();
    for (metric, load, unit) in METRICS {
        let values = ui::during(metric, || in_turns(&sides, load, unit, effort))?;
        let of = |name: &str| {
            let at = sides.iter().position(|(n, _)| *n == name);
            at.and_then(|at| values.get(at)).cloned().unwrap_or_default()
        };
        let pairs = |own: &str, other: &str| of(own).into_iter().zip(of(other)).collect::<Vec<_>>();
        let compared = match baseline {
            true => [("ipvs", "direct"), ("swarm", "direct"), ("ipvs", "swarm")],
            false => [("netd", "direct"), ("netd", "ipvs"), ("netd", "swarm")],
        };
        for (own, other) in compared {
            let name = match own {
                "netd" => metric.to_owned(),
                _ => format!("{own}_{metric}"),
            };
            figures.extend(Figure::from_rounds("ipvs", name, other, unit, &pairs(own, other)));
        }
    }
    if part == Part::All {
        figures.extend(program::run(programs, effort)?);
        figures.extend(passes::run(programs, effort)?);
        figures.extend(restart::run(programs, effort)?);
    }
    Ok(figures)
}

/// The values of each side, one a round.
fn in_turns(sides: &[(&str, Side)], load: &str, unit: &str, effort: Effort) -> anyhow::Result<Vec<Vec<f64>>> {
    // Once each, thrown away: caches and neighbours are warm for all.
    for (name, side) in sides {
        measure(side, load, 0.3).with_context(|| format!("{name}'s side"))?;
    }
    let mut values = vec![Vec::new(); sides.len()];
    for round in 0..effort.rounds as usize {
        // Who comes first changes, so that a drift of the machine favours nobody.
        for turn in 0..sides.len() {
            let at = (turn + round) % sides.len();
            if let (Some((name, side)), Some(values)) = (sides.get(at), values.get_mut(at)) {
                values.push(measure(side, load, effort.seconds).with_context(|| format!("{name}'s side"))?);
            }
        }
        let told: Vec<String> = sides
            .iter()
            .zip(&values)
            .map(|((name, _), v)| format!("{name} {:.2}", v.last().copied().unwrap_or(0.0)))
            .collect();
        eprintln!("    {} {unit}", told.join(", "));
    }
    Ok(values)
}

/// netd's own side: a cluster whose data path is IPVS (the guest says so to its labs), with the client's address kept.
fn netd(programs: &Path) -> anyhow::Result<Side> {
    let side = mesh::netd("bench-netd", programs)?;
    answers(&side.lab, &side.target, side.lab.client()?.v4().into()).context("netd's side")?;
    Ok(side)
}

/// The kernel of a host has IPVS connections: what is measured is what is meant. They are kept for a while after their end;
/// the kernel's sums are some seconds old.
fn balanced(host: &Host) -> anyhow::Result<()> {
    let script = "cat /proc/net/ip_vs_conn; for n in /run/netns/* /run/netd/netns/*; do \
                  [ ! -e $n ] || nsenter --net=$n cat /proc/net/ip_vs_conn; done";
    let said = host.run(&["sh", "-c", script])?.ok()?.stdout;
    ensure!(
        said.lines().any(|line| line.starts_with("TCP")),
        "no connection of {} went through IPVS:\n{said}",
        host.name()
    );
    Ok(())
}

/// Runs lines of a shell on a host, of which each must succeed.
fn lines(host: &Host, script: &str) -> anyhow::Result<()> {
    host.run(&["sh", "-e", "-c", script])?.ok()?;
    Ok(())
}

/// Waits until a side answers, through IPVS; `seen_as` is the client as its backend must see it.
fn answers(lab: &Lab, target: &str, seen_as: std::net::IpAddr) -> anyhow::Result<()> {
    eventually("the published port to answer", Duration::from_secs(10), || {
        let tally: Tally = lab
            .client()?
            .run(&["lab-tool", "tally", "--to", target, "-n", "3", "--timeout-ms", "500"])?
            .json()?;
        ensure!(tally.ok() == 3 && tally.seen_as.keys().eq([&seen_as]), "{tally}");
        Ok(true)
    })?;
    balanced(lab.host("n1")?)
}
