//! `cargo xtask bench joins`: a thousand nodes join three managers at once, and keep their streams.
//!
//! The managers are real daemons on hosts of a lab, a new cluster each round. A thousand more would not fit on one machine:
//! the nodes are one process (`netd/examples/joiners.rs`) on a host of its own, each with its key, certificate and
//! connections, in the very code that a daemon joins and follows the intent by. All come to the leader, which is the
//! hardest case for it.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::Deserialize;

use super::Effort;
use super::figure::Figure;
use super::mib;
use super::process::cpu_seconds;
use super::raft::Disk;
use super::raft::netd::Managers;
use crate::ui;

/// The program that the nodes are.
pub(super) const LOAD: &str = "joiners";
/// All have come by then, or it has failed.
const PATIENCE: Duration = Duration::from_secs(120);
/// The busiest second of a manager is looked for this often.
const LOOK: Duration = Duration::from_millis(100);
/// Looks in a second.
const WINDOW: usize = 10;

/// What the nodes tell.
#[derive(Debug, Deserialize)]
struct Told {
    joined_s: f64,
    join_p50_s: f64,
    join_p99_s: f64,
    complete_s: f64,
    tries: u32,
    broken: u32,
    increments: u64,
    cpu_s: f64,
}

/// A round.
struct Round {
    told: Told,
    /// CPU seconds of the leader, from the start until all knew of all.
    leader_s: f64,
    /// Cores that it took in its busiest second.
    busiest: f64,
    /// CPU seconds of the busier one of the others.
    follower_s: f64,
    resident: f64,
    /// Share of a core that the leader takes while nothing happens.
    idle: f64,
}

pub(super) fn run(programs: &Path, effort: Effort, nodes: u32) -> anyhow::Result<Vec<Figure>> {
    let mut rounds = Vec::new();
    for _ in 0..effort.rounds {
        let round = ui::during(&format!("{nodes} nodes join"), || one(programs, nodes, effort))?;
        let t = &round.told;
        eprintln!(
            "    {:.2} s until all knew of all; leader {:.2} CPU s, {:.2} in its busiest second; nodes {:.1} CPU s; \
             {} tries, {} streams broken, {} increments",
            t.complete_s, round.leader_s, round.busiest, t.cpu_s, t.tries, t.broken, t.increments
        );
        rounds.push(round);
    }
    let figure = |metric, unit, of: fn(&Round) -> f64| {
        Figure::own("joins", metric, unit, &rounds.iter().map(of).collect::<Vec<_>>())
    };
    Ok(vec![
        figure("all_know_all_s", "s", |r| r.told.complete_s),
        figure("all_joined_s", "s", |r| r.told.joined_s),
        figure("join_p50_s", "s", |r| r.told.join_p50_s),
        figure("join_p99_s", "s", |r| r.told.join_p99_s),
        figure("leader_cores", "cores", |r| r.leader_s / r.told.complete_s),
        figure("leader_busiest_second", "cores", |r| r.busiest),
        figure("leader_cpu_s", "CPU s", |r| r.leader_s),
        figure("follower_cpu_s", "CPU s", |r| r.follower_s),
        figure("nodes_cpu_s", "CPU s", |r| r.told.cpu_s),
        figure("leader_rss_mib", "MiB", |r| r.resident),
        figure("leader_idle_pct", "% of a core", |r| r.idle * 100.0),
    ])
}

fn one(programs: &Path, nodes: u32, effort: Effort) -> anyhow::Result<Round> {
    let disk = Disk::new(programs)?;
    let managers = Managers::new("joins-netd", programs, disk.path(), 1)?;
    let leader = managers.node(managers.leader()?)?;
    let pid = leader.netd_pid()?;
    let others: Vec<u32> = managers
        .lab()
        .nodes()
        .iter()
        .filter(|n| n.name() != leader.name())
        .map(lab::Host::netd_pid)
        .collect::<anyhow::Result<_>>()?;
    let load = programs.join("examples").join(LOAD).display().to_string();
    let (token, at) = (leader.join_token()?, leader.at(2377));
    let (count, known) = (nodes.to_string(), managers.lab().nodes().len().to_string());
    let seconds = PATIENCE.as_secs().to_string();
    let argv = [
        &*load,
        "--token",
        &token,
        "--at",
        &at,
        "--nodes",
        &count,
        "--others",
        &known,
        "--seconds",
        &seconds,
    ];
    let cpu = |pids: &[u32]| {
        pids.iter()
            .map(|p| cpu_seconds(*p))
            .collect::<anyhow::Result<Vec<f64>>>()
    };
    let (before, before_others) = (cpu_seconds(pid)?, cpu(&others)?);
    let over = AtomicBool::new(false);
    let (told, busiest, process) = std::thread::scope(|scope| {
        let busiest = scope.spawn(|| busiest_second(pid, &over));
        let ran = managers.lab().client().and_then(|host| {
            let mut process = host.spawn(LOAD, &argv)?;
            let line = process.line("complete_s", PATIENCE + Duration::from_secs(10))?;
            let told: Told = serde_json::from_str(&line).context("reading what the nodes tell")?;
            anyhow::Ok((told, process))
        });
        over.store(true, Ordering::Relaxed);
        let busiest = busiest.join().unwrap_or(f64::NAN);
        ran.map(|(told, process)| (told, busiest, process))
    })?;
    let leader_s = cpu_seconds(pid)? - before;
    let follower_s = before_others.iter().zip(cpu(&others)?).map(|(b, a)| a - b);
    let follower_s = follower_s.fold(0.0, f64::max);
    ensure!(
        managers.node(managers.leader()?)?.name() == leader.name(),
        "the lead has changed meanwhile"
    );
    let resident = mib(lab::resident(pid)?);
    let (time, from) = (effort.idle(), Instant::now());
    let quiet = cpu_seconds(pid)?;
    std::thread::sleep(time);
    let idle = (cpu_seconds(pid)? - quiet) / from.elapsed().as_secs_f64();
    // Until here the streams were open.
    drop(process);
    Ok(Round {
        told,
        leader_s,
        busiest,
        follower_s,
        resident,
        idle,
    })
}

/// Cores that a process takes in its busiest second until it is over; in all of it, if that is shorter.
fn busiest_second(pid: u32, over: &AtomicBool) -> f64 {
    let begun = Instant::now();
    let mut seen = Vec::new();
    while !over.load(Ordering::Relaxed) {
        if let Ok(cpu) = cpu_seconds(pid) {
            seen.push((begun.elapsed().as_secs_f64(), cpu));
        }
        std::thread::sleep(LOOK);
    }
    let apart = WINDOW.min(seen.len().saturating_sub(1)).max(1);
    let windows = seen.iter().zip(seen.iter().skip(apart));
    windows.map(|(a, b)| (b.1 - a.1) / (b.0 - a.0)).fold(0.0, f64::max)
}
