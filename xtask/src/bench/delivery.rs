//! How soon a slot's placement reaches its node: three real managers, a hundred nodes with streams of their own in one
//! process (`netd/examples/joiners.rs`), and a service that is scaled so that each of them gets a slot more.
//!
//! The clock starts before `netctl` is run and stops when the node's view holds the slot: the command, the leader's log
//! with its fsync and quorum, and the stream lie in between.

use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use lab::{Process, eventually};
use serde::Deserialize;

use super::Effort;
use super::figure::Figure;
use super::joins::LOAD;
use super::raft::Disk;
use super::raft::netd::Managers;
use crate::ui;

/// Nodes that stream.
const AGENTS: usize = 100;
/// Times that the service grows in a round.
const STEPS: usize = 10;
const LIMIT: Duration = Duration::from_secs(60);

/// A node heard of slots of its own.
#[derive(Deserialize)]
struct Heard {
    new_slots: usize,
    at_us: u64,
}

pub(super) fn run(programs: &Path, effort: Effort) -> anyhow::Result<Figure> {
    let mut rounds = Vec::new();
    for _ in 0..effort.rounds {
        let mut seen = ui::during(&format!("slots reach {AGENTS} nodes"), || round(programs))?;
        seen.sort_by(f64::total_cmp);
        let at = |percent: usize| {
            seen.get((seen.len() * percent).div_ceil(100).saturating_sub(1))
                .copied()
        };
        let p99 = at(99).context("no slot was heard of")?;
        eprintln!(
            "    {} slots reached their nodes: p50 {:.3} s, p99 {p99:.3} s, last {:.3} s",
            seen.len(),
            at(50).unwrap_or(f64::NAN),
            at(100).unwrap_or(f64::NAN)
        );
        rounds.push(p99);
    }
    Ok(Figure::own("placement", "delivery_p99_s", "s", &rounds))
}

/// Seconds that each slot took.
fn round(programs: &Path) -> anyhow::Result<Vec<f64>> {
    let disk = Disk::new(programs)?;
    let managers = Managers::new("delivery-netd", programs, disk.path(), 1)?;
    let leader = managers.node(managers.leader()?)?;
    // Every slot goes to a node that streams.
    for node in managers.lab().nodes() {
        leader
            .netctl(&format!("node update {} --availability drain --detach", node.name()))?
            .ok()?;
    }
    let load = programs.join("examples").join(LOAD).display().to_string();
    let (token, at) = (leader.join_token()?, leader.at(2377));
    let (count, known) = (AGENTS.to_string(), managers.lab().nodes().len().to_string());
    let argv = [
        &*load,
        "--tell-slots",
        "--token",
        &token,
        "--at",
        &at,
        "--nodes",
        &count,
        "--others",
        &known,
    ];
    let mut agents = managers.lab().client()?.spawn(LOAD, &argv)?;
    agents.line("complete_s", LIMIT * 2)?;
    leader
        .netctl("service create web --replicas 0 --detach -- true")?
        .ok()?;
    let mut seen = Vec::new();
    for step in 1..=STEPS {
        let before = heard(&agents)?.len();
        let start = SystemTime::now();
        leader
            .netctl(&format!("service scale web={} --detach", step * AGENTS))?
            .ok()?;
        let now = eventually("each node to hear of its slot", LIMIT, || {
            let all = heard(&agents)?;
            Ok(all.iter().map(|h| h.new_slots).sum::<usize>() >= step * AGENTS)
        })
        .and_then(|_| heard(&agents))?;
        let start = start.duration_since(SystemTime::UNIX_EPOCH)?.as_micros();
        for h in now.iter().skip(before) {
            let took = Duration::from_micros(h.at_us).saturating_sub(Duration::from_micros(u64::try_from(start)?));
            seen.extend(std::iter::repeat_n(took.as_secs_f64(), h.new_slots));
        }
    }
    ensure!(
        seen.len() == STEPS * AGENTS,
        "{} slots were heard of, {} placed",
        seen.len(),
        STEPS * AGENTS
    );
    Ok(seen)
}

/// What they have told so far, in order.
fn heard(agents: &Process) -> anyhow::Result<Vec<Heard>> {
    agents
        .output()
        .lines()
        .filter(|l| l.contains("new_slots"))
        .map(|l| serde_json::from_str(l).context("reading what a node tells"))
        .collect()
}
