//! `cargo xtask bench raft`: acknowledged writes of three managers, beside Debian's etcd with three members.
//!
//! Real daemons on hosts of a lab, logs in real directories of one disk, clients on connections that stay open, spread
//! over the three servers. netd is asked in HTTP and JSON on its socket, etcd in its own gRPC.

mod etcd;
pub(super) mod netd;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tokio::runtime::Runtime;

use super::Effort;
use super::figure::Figure;
use crate::ui;

/// Who is written to.
trait Cluster {
    /// Opens a connection to one of the servers, by number.
    fn writer(&self, server: usize) -> impl Future<Output = anyhow::Result<Writer>> + Send;
}

/// An open connection.
enum Writer {
    Netd(netd::Connection),
    Etcd(etcd::Connection),
}

impl Writer {
    /// One write; done when it is acknowledged.
    async fn write(&mut self, n: u64) -> anyhow::Result<()> {
        match self {
            Writer::Netd(c) => c.write(n).await,
            Writer::Etcd(c) => c.write(n).await,
        }
    }
}

/// A folder on the disk of the build, gone when this is dropped.
pub(super) struct Disk(PathBuf);

impl Disk {
    pub(super) fn new(programs: &Path) -> anyhow::Result<Disk> {
        let target = programs.parent().context("the programs lie in no target folder")?;
        let path = target.join(format!("bench-raft-{}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
        Ok(Disk(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub(super) fn run(programs: &Path, effort: Effort) -> anyhow::Result<Vec<Figure>> {
    let disk = Disk::new(programs)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the clients")?;
    let ours = ui::during("three managers", || {
        netd::Managers::new("raft-netd", programs, disk.path(), 0)
    })?;
    let other = match ui::during("three etcd members", || etcd::Members::new(programs, disk.path())) {
        Ok(other) => Some(other),
        Err(e) => {
            eprintln!("etcd is left out: {e:#}");
            None
        }
    };
    let mut figures = Vec::new();
    for (metric, clients) in [("writes1", 1), ("writes64", 64)] {
        let (mut pairs, mut own) = (Vec::new(), Vec::new());
        let seconds = Duration::from_secs_f64(effort.seconds.max(1.0));
        for round in 0..=effort.rounds {
            let a = load(&runtime, &ours, clients, seconds)?;
            let b = match &other {
                Some(other) => Some(load(&runtime, other, clients, seconds)?),
                None => None,
            };
            if round == 0 {
                // Warms both; not counted.
                continue;
            }
            eprintln!(
                "    {metric}: {a:.0} writes/s{}",
                b.map(|b| format!(" against {b:.0}: {:.3}", a / b)).unwrap_or_default()
            );
            own.push(a);
            pairs.extend(b.map(|b| (a, b)));
        }
        match Figure::from_rounds("raft", metric, "etcd", "writes/s", &pairs) {
            Some(f) => figures.push(f),
            None => figures.push(Figure::own("raft", metric, "writes/s", &own)),
        }
    }
    drop(other);
    figures.push(Figure::own("raft", "rss_mib", "MiB", &[ours.resident()?]));
    let kills = if effort.quick { 3 } else { 20 };
    figures.push(ui::during("leaders that die", || failovers(&runtime, &ours, kills))?);
    let commands = if effort.quick { 10_000 } else { 100_000 };
    figures.push(ui::during("a long log", || restart(&runtime, &ours, commands))?);
    Ok(figures)
}

/// Acknowledged writes per second of so many clients.
fn load(runtime: &Runtime, cluster: &impl Cluster, clients: usize, time: Duration) -> anyhow::Result<f64> {
    runtime.block_on(async {
        let mut writers = Vec::new();
        for n in 0..clients {
            writers.push(cluster.writer(n % 3).await?);
        }
        let start = Instant::now();
        let tasks: Vec<_> = writers
            .into_iter()
            .enumerate()
            .map(|(client, mut writer)| {
                tokio::spawn(async move {
                    let mut done = 0u64;
                    while start.elapsed() < time {
                        writer.write(client as u64 * 1_000_003 + done).await?;
                        done += 1;
                    }
                    anyhow::Ok(done)
                })
            })
            .collect();
        let mut all = 0;
        for t in tasks {
            all += t.await.context("a client")??;
        }
        #[allow(clippy::cast_precision_loss, reason = "a figure for people")]
        Ok(all as f64 / start.elapsed().as_secs_f64())
    })
}

/// The longest time from a leader's death to the next acknowledged write.
fn failovers(runtime: &Runtime, ours: &netd::Managers, kills: usize) -> anyhow::Result<Figure> {
    let mut gaps = Vec::new();
    for n in 0..kills {
        let leader = ours.leader()?;
        let other = (leader + 1) % 3;
        let gap = runtime.block_on(async {
            // It writes all the time, as fast as it is answered; a try that fails is made again.
            let mut writer = Some(ours.writer(other).await?);
            let mut count = 0;
            for _ in 0..20 {
                count += 1;
                if let Some(w) = &mut writer {
                    w.write(count).await?;
                }
            }
            let killed = Instant::now();
            ours.kill(leader)?;
            loop {
                ensure!(
                    killed.elapsed() < Duration::from_secs(30),
                    "no write for 30 s after a leader's death"
                );
                count += 1;
                let done = match &mut writer {
                    Some(w) => w.write(count).await.is_ok(),
                    None => false,
                };
                if done {
                    return Ok(killed.elapsed().as_secs_f64());
                }
                writer = ours.writer(other).await.ok();
                if writer.is_none() {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
        })?;
        eprintln!("    {} of {kills}: written again after {:.0} ms", n + 1, gap * 1000.0);
        gaps.push(gap);
        ours.start(leader)?;
    }
    let mut figure = Figure::own("raft", "failover_p99_s", "s", &gaps);
    // Of so few tries the 99th percentile is the longest.
    figure.value = figure.max;
    Ok(figure)
}

/// How soon a manager is ready whose log holds so many commands.
fn restart(runtime: &Runtime, ours: &netd::Managers, commands: u64) -> anyhow::Result<Figure> {
    let (done, failed) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    runtime.block_on(async {
        let mut tasks = Vec::new();
        for n in 0..64 {
            let mut writer = ours.writer(n % 3).await?;
            let (done, failed) = (done.clone(), failed.clone());
            tasks.push(tokio::spawn(async move {
                loop {
                    let number = done.fetch_add(1, Ordering::Relaxed);
                    if number >= commands || failed.load(Ordering::Relaxed) {
                        return;
                    }
                    if writer.write(number).await.is_err() {
                        failed.store(true, Ordering::Relaxed);
                    }
                }
            }));
        }
        for t in tasks {
            t.await.context("a client")?;
        }
        anyhow::Ok(())
    })?;
    if failed.load(Ordering::Relaxed) {
        bail!("a write failed while the log was filled");
    }
    let mut times = Vec::new();
    for server in 0..3 {
        ours.kill(server)?;
        times.push(ours.start(server)?.as_secs_f64());
    }
    let name = if commands == 100_000 {
        "restart_100k_s"
    } else {
        "restart_10k_s"
    };
    Ok(Figure::own("raft", name, "s", &times))
}
