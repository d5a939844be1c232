//! A whole netd with many services: how long it takes to program them all, and that one which was killed and comes back
//! writes nothing.
//!
//! The services are created by netd's own interface. One of them has backends on this node, the others have a VIP and a
//! published port: what is balanced, the rules and the routes of each are there; one more is created when all of them are
//! programmed, which is what a user waits for then. A second node joins when all is made, so it programs everything at
//! once. Then netd is killed on the first and started below strace.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use hyper::Method;
use lab::{Host, Lab, Options, Process};
use model::api::{Changed, Writes};
use serde::Deserialize;
use tokio::task::JoinSet;

use super::{Effort, Figure, traced};
use crate::bench::socket::Socket;
use crate::ui;

/// A /12 has room for 65,536 VIPs.
const SUBNET: &str = "172.16.0.0/12";
/// The first published port; those of all services are below the host's ephemeral ones.
const FIRST_PORT: u32 = 10_000;
/// Backends of the one service that has some.
const BACKENDS: u32 = 10;
/// Requests under way.
const CLIENTS: u32 = 16;
const LIMIT: Duration = Duration::from_secs(1200);
/// Between two looks at what takes long.
const LOOK: Duration = Duration::from_millis(250);
/// A restarted netd is watched for this long after its first pass: the next ones find nothing either.
const WATCHED: Duration = Duration::from_secs(15);

pub(super) fn run(programs: &Path, effort: Effort) -> anyhow::Result<Vec<Figure>> {
    let sizes: &[(u32, &str)] = match effort.quick {
        true => &[(1000, "1k")],
        false => &[(100, "100"), (1000, "1k"), (10_000, "10k")],
    };
    let mut figures = Vec::new();
    for (services, name) in sizes {
        figures.extend(one(programs, *services, name).with_context(|| format!("{services} services"))?);
    }
    Ok(figures)
}

fn one(programs: &Path, services: u32, name: &str) -> anyhow::Result<Vec<Figure>> {
    let lab = Lab::new(
        "bench-restart",
        Options {
            nodes: 2,
            clients: 0,
            ipv6: false,
            bin_dir: Some(programs.to_owned()),
            ..Options::default()
        },
    )?;
    let (n1, n2) = (lab.host("n1")?, lab.host("n2")?);
    n1.start_netd()?;
    n1.netctl(&format!("cluster init --advertise-addr {}", n1.v4()))?.ok()?;
    n1.netctl(&format!("network create bench --subnet {SUBNET}"))?.ok()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the clients")?;
    let begun = Instant::now();
    let revision = ui::during(&format!("{services} services"), || {
        runtime.block_on(create(n1, services))
    })?;
    ui::during("all of them programmed", || runtime.block_on(applied(n1, revision)))?;
    let made = begun.elapsed().as_secs_f64();
    let begun = Instant::now();
    let revision = ui::during("one more", || {
        runtime.block_on(async {
            let revision = put(&mut Socket::connect(n1).await?, services).await?;
            applied(n1, revision).await?;
            anyhow::Ok(revision)
        })
    })?;
    let more = begun.elapsed().as_secs_f64();
    for n in 0..BACKENDS {
        let backend = n1.attach(&format!("b{n}"), "bench", Some("s0"))?;
        n1.serve_in_netns(
            &backend.netns,
            &format!("server{n}"),
            &["lab-tool", "serve", "--port", "80"],
        )?;
    }
    eprintln!(
        "    {services} services created and programmed in {made:.1} s, one more in {more:.1} s; {}",
        last_pass(&n1.netd_log()?)
    );

    n2.start_netd()?;
    let begun = Instant::now();
    let token = n1.join_token()?;
    n2.netctl(&format!(
        "cluster join {token} {} --advertise-addr {}",
        n1.at(2377),
        n2.v4()
    ))?
    .ok()?;
    ui::during("a node that joins", || runtime.block_on(applied(n2, revision)))?;
    let joined = begun.elapsed().as_secs_f64();
    eprintln!(
        "    programmed {joined:.1} s after its join; {}",
        last_pass(&n2.netd_log()?)
    );

    let again = ui::during("netd killed and started", || restart(n1, &runtime, revision))?;
    let figure = |metric: String, unit, value| Figure::own("ipvs", metric, unit, &[value]);
    Ok(vec![
        figure(format!("netd_create_{name}_s"), "s", made),
        figure(format!("netd_create_one_{name}_s"), "s", more),
        figure(format!("netd_program_{name}_s"), "s", joined),
        figure(format!("netd_restart_{name}_writes"), "writes", again),
    ])
}

/// Creates services; the revision that holds them all.
async fn create(host: &Host, services: u32) -> anyhow::Result<u64> {
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let mut socket = Socket::connect(host).await?;
        clients.spawn(async move {
            let mut last = 0;
            for n in (client..services).step_by(CLIENTS as usize) {
                last = last.max(put(&mut socket, n).await?);
            }
            anyhow::Ok(last)
        });
    }
    let mut last = 0;
    while let Some(client) = clients.join_next().await {
        last = last.max(client.context("a client")??);
    }
    Ok(last)
}

/// Creates one; the revision that holds it.
async fn put(socket: &mut Socket, n: u32) -> anyhow::Result<u64> {
    let answer = socket.ask(Method::PUT, &format!("/v1/services/s{n}"), spec(n)).await?;
    let changed: Changed = serde_json::from_slice(&answer).context("reading what netd changed")?;
    Ok(changed.revision)
}

/// A service as it is asked for.
fn spec(n: u32) -> String {
    let port = FIRST_PORT + n;
    format!(
        r#"{{"networks":["bench"],"replicas":0,"lb":"rr","publish":[{{"published":{port},"target":80,"proto":"tcp"}}]}}"#
    )
}

/// Waits until a node's kernel holds a revision.
async fn applied(host: &Host, revision: u64) -> anyhow::Result<()> {
    let begun = Instant::now();
    loop {
        match status(host).await {
            Ok(s) if s.applied >= revision && s.problems.is_empty() => return Ok(()),
            said if begun.elapsed() > LIMIT => {
                anyhow::bail!("{} does not hold revision {revision}: {said:?}", host.name())
            }
            _ => tokio::time::sleep(LOOK).await,
        }
    }
}

/// What of the status is looked at: the services, which are most of it, are left out.
#[derive(Debug, Deserialize)]
struct Status {
    applied: u64,
    writes: Writes,
    problems: Vec<String>,
}

async fn status(host: &Host) -> anyhow::Result<Status> {
    let mut socket = Socket::connect(host).await?;
    let body = socket.ask(Method::GET, "/v1/status", String::new()).await?;
    serde_json::from_slice(&body).context("reading the status")
}

/// Kills netd and starts it below strace; the writes that were seen until some passes were over.
fn restart(host: &Host, runtime: &tokio::runtime::Runtime, revision: u64) -> anyhow::Result<f64> {
    host.kill_netd()?;
    let trace = host.folder().join("restart.strace").display().to_string();
    let config = host.folder().join("netd.toml").display().to_string();
    let mut argv = traced::words(&trace);
    argv.extend(["netd", "--config", &config]);
    let netd: Process = host.spawn("restarted", &argv)?;
    runtime.block_on(applied(host, revision))?;
    std::thread::sleep(WATCHED);
    let status = runtime.block_on(status(host))?;
    let log = netd.output();
    drop(netd);
    let told = traced::read(&std::fs::read_to_string(&trace).with_context(|| format!("reading {trace}"))?);
    eprintln!(
        "    netd says {} writes in {} passes; strace saw {} and {} questions; {} things tried out; \
         programs: {:?}",
        status.writes.total,
        status.writes.runs,
        told.written(),
        told.reads,
        told.tried,
        told.programs
    );
    ensure!(told.reads > 0, "strace saw no question either:\n{log}");
    if !told.writes.is_empty() {
        eprintln!("    {:?}\n{log}", told.writes);
    }
    #[allow(clippy::cast_precision_loss, reason = "a count for people")]
    Ok(told.written() as f64)
}

/// netd's own line about its last pass that wrote something.
fn last_pass(log: &str) -> &str {
    log.lines()
        .rfind(|l| l.contains("reconciled"))
        .unwrap_or("no pass is told of")
        .trim()
}
