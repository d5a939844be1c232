//! What dies: a daemon, a node, the ingress daemon under a transfer.
#![allow(
    clippy::disallowed_methods,
    reason = "a death is timed against the clock of the load"
)]

use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use lab::wire::{Tally, Transfer};
use lab::{Host, Process, eventually};
use model::api::NodeHealth;
use tests::{address_kept, create_web, homes, in_cluster, running, status, tasks, tunnel};

#[test]
fn traffic_outlives_daemons_and_leaves_dead_nodes() {
    in_cluster("failures", 3, |lab| {
        let (n1, client) = (lab.host("n1")?, lab.client()?);
        n1.netctl("network create app --subnet 10.77.0.0/16 --ipv6")?.ok()?;
        create_web(lab, "app", 2)?;
        n1.netctl("service publish 80")?.ok()?;
        let to = n1.at(80);
        address_kept(client, None, &format!("--to {to} -n 50"))?;

        // 1. kill -9 netd on the ingress node under a transfer.
        let mut fetch = client.spawn(
            "fetch",
            &[
                "lab-tool", "fetch", "--to", &to, "--octets", "32000000", "--rate", "8000000",
            ],
        )?;
        fetch.line("receiving", Duration::from_secs(10))?;
        n1.kill_netd()?;
        address_kept(client, None, &format!("--to {to} -n 50"))?;
        n1.start_netd()?;
        let moved: Transfer = report(&mut fetch)?;
        ensure!(moved.lost() == 0 && moved.error.is_none(), "{moved:?}");
        let now = status(n1)?;
        ensure!(
            now.writes.runs > 0 && now.writes.total == 0,
            "adopted, nothing written: {:?}",
            now.writes
        );
        n1.sees_ready(3, Duration::from_secs(20))?;

        // SIGTERM is no different.
        ensure!(n1.stop_netd()? == 0, "SIGTERM is a good end");
        address_kept(client, None, &format!("--to {to} -n 50"))?;
        n1.start_netd()?;
        n1.sees_ready(3, Duration::from_secs(20))?;

        // 2. Objects deleted behind netd's back come back; foreign ones are left alone.
        n1.sh("ip link add foreign0 type bridge")?.ok()?;
        let (device, ip) = tunnel(n1)?;
        n1.sh(&format!("{ip} link del {device}"))?.ok()?;
        eventually("the tunnel device to be repaired", Duration::from_secs(20), || {
            Ok(n1.sh(&format!("{ip} link show {device}"))?.success())
        })?;
        eventually("traffic to flow again", Duration::from_secs(20), || {
            address_kept(client, None, &format!("--to {to} -n 50 --timeout-ms 500")).map(|_| true)
        })?;
        ensure!(
            n1.sh("ip link show foreign0")?.success(),
            "a foreign link is not touched"
        );

        // 3. A worker's daemon dies: nothing is withdrawn.
        let victim = beside(lab, n1)?;
        let mut load = steady(client, "daemon", &to, "8")?;
        victim.kill_netd()?;
        let seen: Tally = report(&mut load)?;
        ensure!(seen.errors() == 0, "a dead daemon cost connections: {seen}");
        eventually("status to say so", Duration::from_secs(10), || {
            Ok(status(n1)?
                .nodes
                .iter()
                .any(|n| n.hostname == victim.name() && n.health == NodeHealth::DaemonDown))
        })?;
        ensure!(homes(n1)?.contains(victim.name()), "its slots stay");
        victim.start_netd()?;
        n1.sees_ready(3, Duration::from_secs(20))?;

        // 4. A node dies: no new connection after 5 s, its slots run elsewhere.
        let victim = beside(lab, n1)?;
        let mut load = steady(client, "node", &to, "12")?;
        let killed = u64::try_from(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_millis())?;
        victim.power_cut()?;
        let seen: Tally = report(&mut load)?;
        let last = seen
            .last_failure_at
            .context("no connection met the dead node: nothing is proved")?;
        ensure!(
            last.saturating_sub(killed) <= 5000,
            "a connection {} ms after death failed: {seen}",
            last - killed
        );
        // node_grace (10 s) counts from the confirmed death.
        eventually("its slots to be placed elsewhere", Duration::from_secs(25), || {
            Ok(!homes(n1)?.contains(victim.name()))
        })?;
        running(n1, 2)?;
        ensure!(
            tasks(n1)?.iter().any(|t| !t.desired && t.hostname == victim.name()),
            "service ps tells where they were"
        );
        address_kept(client, None, &format!("--to {to} -n 100"))?;

        // 5. It returns.
        victim.heal()?;
        victim.start_netd()?;
        victim.start_runner()?;
        n1.sees_ready(3, Duration::from_secs(30))?;
        // The others see it before it has heard what became of its tasks.
        eventually("the returned node to answer", Duration::from_secs(20), || {
            address_kept(client, None, &format!("--to {} -n 50", victim.at(80))).map(|_| true)
        })?;
        Ok(())
    });
}

/// A node other than `host` that runs a task.
fn beside<'a>(lab: &'a lab::Lab, host: &Host) -> anyhow::Result<&'a Host> {
    let name = homes(host)?
        .into_iter()
        .find(|h| h != host.name())
        .context("every task runs on n1")?;
    lab.host(&name)
}

/// 50 connections a second, each with a limit of 1 s; in full flow when this returns.
fn steady(client: &Host, name: &str, to: &str, seconds: &str) -> anyhow::Result<Process> {
    let mut load = client.spawn(
        name,
        &[
            "lab-tool",
            "tally",
            "--announce",
            "--to",
            to,
            "--rate",
            "50",
            "--duration",
            seconds,
        ],
    )?;
    load.line("ready", Duration::from_secs(20))?;
    std::thread::sleep(Duration::from_secs(1));
    Ok(load)
}

fn report<T: serde::de::DeserializeOwned>(process: &mut Process) -> anyhow::Result<T> {
    let out = process.wait(Duration::from_secs(60))?;
    let json = out
        .stdout
        .lines()
        .find(|l| l.starts_with('{'))
        .with_context(|| format!("no report: {}", out.stdout))?;
    Ok(serde_json::from_str(json)?)
}
