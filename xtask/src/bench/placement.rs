//! `cargo xtask bench placement`: services placed on thousands of nodes, through three managers with their logs on disk.
//!
//! netd's `examples/placement.rs` does it, one process a round with fresh folders. SwarmKit's figure is a recorded one
//! (PEERS.md): 4,300 tasks a second on 1,000 nodes, in its own benchmark, in memory. How soon a node hears of a slot of its
//! own is measured between real daemons and nodes that stream (`delivery`).

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use serde::Deserialize;

use super::figure::Figure;
use super::{Effort, delivery};
use crate::{build, ui};

/// What SwarmKit's own benchmark placed, tasks a second.
const SWARMKIT: f64 = 4300.0;

/// A size, and the names of its figures.
struct Size {
    nodes: u32,
    tasks: u32,
    services: u32,
    placed: &'static str,
    log: &'static str,
    resident: &'static str,
    lost: &'static str,
}

const SIZES: &[Size] = &[
    Size {
        nodes: 1000,
        tasks: 10_000,
        services: 1,
        placed: "1k_10k",
        log: "1k_10k_log_bytes",
        resident: "1k_10k_rss_bytes",
        lost: "1k_10k_node_lost_s",
    },
    Size {
        nodes: 5000,
        tasks: 100_000,
        services: 1,
        placed: "5k_100k_placed_s",
        log: "5k_100k_log_bytes",
        resident: "5k_100k_rss_bytes",
        lost: "5k_100k_node_lost_s",
    },
    Size {
        nodes: 4700,
        tasks: 1_000_000,
        services: 1,
        placed: "c1m_placed_s",
        log: "c1m_log_bytes",
        resident: "c1m_rss_bytes",
        lost: "c1m_node_lost_s",
    },
    Size {
        nodes: 4700,
        tasks: 1_000_000,
        services: 1000,
        placed: "c1m1k_placed_s",
        log: "c1m1k_log_bytes",
        resident: "c1m1k_rss_bytes",
        lost: "c1m1k_node_lost_s",
    },
];

/// What a round says.
#[derive(Deserialize)]
struct Round {
    placed_s: f64,
    log_bytes: f64,
    /// Of the process with all three managers.
    rss_bytes: f64,
    node_lost_s: f64,
}

pub(super) fn run(programs: &Path, effort: Effort) -> anyhow::Result<Vec<Figure>> {
    let program = ui::during("building", program)?;
    let disk = build::target_dir()?.join(format!("bench-placement-{}", std::process::id()));
    let mut figures = Vec::new();
    for size in SIZES {
        let mut rounds = Vec::new();
        for _ in 0..effort.rounds {
            let round = round(&program, &disk, size)?;
            eprintln!(
                "    {} tasks of {} services on {} nodes: {:.3} s, log {:.0} KiB, {:.0} MiB in all three, a dead node {:.3} s",
                size.tasks,
                size.services,
                size.nodes,
                round.placed_s,
                round.log_bytes / 1024.0,
                round.rss_bytes / f64::from(1 << 20),
                round.node_lost_s
            );
            rounds.push(round);
        }
        let each = |of: fn(&Round) -> f64| rounds.iter().map(of).collect::<Vec<f64>>();
        let own = |metric, unit, of| Figure::own("placement", metric, unit, &each(of));
        if size.placed == "1k_10k" {
            let rates = each(|r| r.placed_s)
                .iter()
                .map(|s| f64::from(size.tasks) / s)
                .collect::<Vec<_>>();
            let pairs: Vec<(f64, f64)> = rates.iter().map(|r| (*r, SWARMKIT)).collect();
            figures.extend(Figure::from_rounds(
                "placement",
                size.placed,
                "swarmkit (recorded)",
                "tasks/s",
                &pairs,
            ));
        } else {
            figures.push(own(size.placed, "s", |r| r.placed_s));
        }
        figures.push(own(size.log, "octets", |r| r.log_bytes));
        figures.push(own(size.resident, "octets in three managers", |r| r.rss_bytes));
        figures.push(own(size.lost, "s", |r| r.node_lost_s));
    }
    figures.push(delivery::run(programs, effort)?);
    Ok(figures)
}

fn program() -> anyhow::Result<PathBuf> {
    let mut cargo = build::cargo();
    cargo.args([
        "build",
        "--locked",
        "--release",
        "--quiet",
        "-p",
        "netd",
        "--example",
        "placement",
    ]);
    let status = cargo.status().context("running cargo build")?;
    ensure!(
        status.success(),
        "cargo build failed ({status}): its messages stand above"
    );
    Ok(build::target_dir()?.join("release/examples/placement"))
}

fn round(program: &Path, disk: &Path, size: &Size) -> anyhow::Result<Round> {
    std::fs::create_dir_all(disk).with_context(|| format!("making {}", disk.display()))?;
    let told = Command::new(program)
        .arg(disk)
        .args([size.nodes, size.tasks, size.services].map(|n| n.to_string()))
        .output();
    let _ = std::fs::remove_dir_all(disk);
    let told = told.with_context(|| format!("running {}", program.display()))?;
    ensure!(
        told.status.success(),
        "three managers could not place {} tasks: {}",
        size.tasks,
        String::from_utf8_lossy(&told.stderr)
    );
    serde_json::from_slice(&told.stdout).context("reading what the round says")
}
