//! `cargo xtask bench services`: how long a user waits. Three real daemons, each verb from its start until what it means
//! is so; beside it Docker Swarm's figures as they were recorded once on such a machine (it is not run here).

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lab::wire::Tally;
use lab::{Host, Lab, Options, eventually};
use model::EndpointId;
use model::api::{ServiceView, TaskState, TaskView};

use super::Effort;
use super::figure::Figure;
use crate::{load, ui};

/// Metric, and what Docker Swarm 20.10 needed with three nodes in namespaces on such a machine, seconds.
const METRICS: [(&str, f64); 5] = [
    ("create_first_s", 1.24),
    ("plus30_s", 4.6),
    ("task_replaced_s", 5.8),
    ("node_replaced_s", 17.7),
    ("update6_s", 15.3),
];
/// Longest wait for anything here.
const LIMIT: Duration = Duration::from_secs(60);
/// How long connections are made while it is updated, seconds: Docker Swarm's update took 15 s.
const UPDATE_S: u32 = 20;

pub(super) fn run(programs: &Path, effort: Effort) -> anyhow::Result<Vec<Figure>> {
    eprintln!("swarm: recorded figures of Docker 20.10, not measured here");
    let lab = ui::during("three nodes", || {
        let lab = Lab::new(
            "bench-services",
            Options {
                nodes: 3,
                clients: 1,
                bin_dir: Some(programs.to_owned()),
                ..Options::default()
            },
        )?;
        lab.form_cluster()?;
        Ok(lab)
    })?;
    let mut taken: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let mut lost = Vec::new();
    for n in 1..=effort.rounds {
        let round = ui::during(&format!("round {n} of {}", effort.rounds), || round(&lab))?;
        let told: Vec<String> = round.seconds.iter().map(|(m, s)| format!("{m} {s:.3}")).collect();
        eprintln!("    {}, lost requests {}", told.join(", "), round.lost);
        for (metric, seconds) in round.seconds {
            taken.entry(metric).or_default().push(seconds);
        }
        lost.push(f64::from(round.lost));
    }
    let mut figures: Vec<Figure> = METRICS
        .iter()
        .filter_map(|(metric, swarm)| {
            let pairs: Vec<(f64, f64)> = taken.get(metric)?.iter().map(|own| (*own, *swarm)).collect();
            Figure::of_costs("services", *metric, "swarm", "s", &pairs)
        })
        .collect();
    figures.push(Figure::own("services", "lost_requests", "requests", &lost));
    Ok(figures)
}

struct Round {
    seconds: Vec<(&'static str, f64)>,
    /// Over the update and the scaling.
    lost: u32,
}

/// The life of a service, from nothing to nothing.
fn round(lab: &Lab) -> anyhow::Result<Round> {
    let (n1, client) = (lab.host("n1")?, lab.client()?);
    let mut seconds = Vec::new();
    let mut took = |metric, start: Instant| seconds.push((metric, start.elapsed().as_secs_f64()));

    let tool = n1.tool();
    let start = Instant::now();
    n1.netctl(&format!(
        "service create web --replicas 3 --publish 80 --detach -- {tool} serve --port 80"
    ))?
    .ok()?;
    eventually("the first answer", LIMIT, || Ok(one(client, &n1.at(80))?.ok() == 1))?;
    took("create_first_s", start);
    running(n1, 3)?;

    let start = Instant::now();
    n1.netctl("service scale web=33 --detach")?.ok()?;
    running(n1, 33)?;
    took("plus30_s", start);

    n1.netctl("service scale web=6")?.ok()?;
    running(n1, 6)?;
    let start = kill_task(lab)?;
    took("task_replaced_s", start);

    let mut load = load::steady(client, "services-load", &n1.at(80), UPDATE_S)?;
    let start = Instant::now();
    n1.netctl("service update web --env ROUND=2 --update-parallelism 1 --timeout 2m")?
        .ok()?;
    running(n1, 6)?;
    took("update6_s", start);
    ensure!(
        start.elapsed() < Duration::from_secs(UPDATE_S.into()),
        "the update took longer than requests were made"
    );
    let tally = load::finish(&mut load)?;
    ensure!(tally.tried > 0, "no request was made during the update");
    let lost = u32::try_from(tally.errors()).unwrap_or(u32::MAX);

    let start = Instant::now();
    let victim = lost_node(lab)?;
    took("node_replaced_s", start);
    victim.heal()?;
    victim.start_netd()?;
    victim.start_runner()?;
    n1.sees_ready(3, Duration::from_secs(30))?;

    n1.netctl("service rm web")?.ok()?;
    eventually("no task to be left", LIMIT, || {
        let left: usize = lab
            .nodes()
            .iter()
            .map(|n| n.processes("lab-tool serve --port 80").map(|p| p.len()))
            .sum::<anyhow::Result<usize>>()?;
        Ok(left == 0)
    })?;
    Ok(Round { seconds, lost })
}

/// Kills one task's process; returns when it was killed, once another one takes new flows in its place.
fn kill_task(lab: &Lab) -> anyhow::Result<Instant> {
    let n1 = lab.host("n1")?;
    let before = wanted(n1)?;
    let task = before.first().context("no task")?;
    let host = lab.host(&task.hostname)?;
    // The nth process of a host is not the nth slot: whichever dies, one restart more is seen.
    let restarts: BTreeMap<EndpointId, u32> = before.iter().map(|t| (t.id.clone(), t.restarts)).collect();
    let pid = *host
        .processes("lab-tool serve --port 80")?
        .first()
        .context("a task without a process")?;
    let start = Instant::now();
    host.kill_process(pid)?;
    eventually("the task to be replaced", LIMIT, || {
        let now = wanted(n1)?;
        let again = now
            .iter()
            .find(|t| t.restarts > restarts.get(&t.id).copied().unwrap_or(0) && t.state == TaskState::Running);
        let Some(again) = again else { return Ok(false) };
        let view: ServiceView = n1.netctl("service inspect web")?.json()?;
        Ok(view.backends.iter().any(|b| b.endpoint == again.id && b.in_use))
    })?;
    Ok(start)
}

/// Cuts the power of a node with tasks; returns once all six take new flows again, on the others.
fn lost_node(lab: &Lab) -> anyhow::Result<&Host> {
    let n1 = lab.host("n1")?;
    let victim = lab.host("n3")?;
    ensure!(
        wanted(n1)?.iter().any(|t| t.hostname == "n3"),
        "no task is on n3: its loss would prove nothing"
    );
    victim.power_cut()?;
    eventually("all tasks elsewhere", LIMIT, || {
        let view: ServiceView = n1.netctl("service inspect web")?.json()?;
        let elsewhere = view.backends.iter().filter(|b| b.in_use && b.hostname != "n3");
        Ok(elsewhere.count() == 6)
    })?;
    Ok(victim)
}

fn wanted(host: &Host) -> anyhow::Result<Vec<TaskView>> {
    let all: Vec<TaskView> = host.netctl("service ps web -o json")?.json()?;
    Ok(all.into_iter().filter(|t| t.desired).collect())
}

/// Waits until exactly `count` tasks are wanted and run, and none is on its way out.
fn running(host: &Host, count: usize) -> anyhow::Result<()> {
    eventually(&format!("{count} running tasks"), LIMIT, || {
        let wanted = wanted(host)?;
        let run = wanted.iter().filter(|t| t.state == TaskState::Running).count();
        ensure!(
            wanted.len() == count && run == count,
            "{run} of {} wanted tasks run",
            wanted.len()
        );
        Ok(true)
    })
    .map(drop)
}

fn one(client: &Host, to: &str) -> anyhow::Result<Tally> {
    client
        .run(&["lab-tool", "tally", "--to", to, "-n", "1", "--timeout-ms", "200"])?
        .json()
}
