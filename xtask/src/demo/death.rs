//! Steps 6 and 7: a daemon dies, a node dies.

use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use lab::{Host, Lab, Process, eventually};

use super::nodes::ms;
use super::services::{hosts, running, tasks};
use super::show::Show;
use crate::{load, ui};

pub(super) fn daemon(lab: &Lab, show: &mut Show) -> anyhow::Result<()> {
    let (n1, client) = (lab.host("n1")?, lab.client()?);
    let victim = backend_beside_n1(lab)?;
    let mut load = steady(client, "daemon-death", &n1.at(80), 10)?;
    victim.kill_netd()?;
    println!("  {}# kill -9 netd", victim.name());
    let tally = ui::during("connections while the daemon is dead", || load::finish(&mut load))?;
    show.answered(&format!("through n1 while netd on {} is dead", victim.name()), &tally);
    show.run(n1, "netctl node ls")?.ok()?;
    let wanted = hosts(n1)?;
    let stays = wanted.iter().any(|h| h == victim.name());
    show.expect("its slots", "stay where they are", wanted.join(", "), stays);
    let took = ui::during("netd again", || victim.start_netd())?;
    ui::during("every node sees three ready nodes", || {
        n1.sees_ready(3, Duration::from_secs(20)).map(drop)
    })?;
    show.expect(
        "netd on it, started again",
        "ready <= 5000 ms",
        ms(took),
        took.as_secs() < 5,
    );
    Ok(())
}

pub(super) fn node(lab: &Lab, show: &mut Show) -> anyhow::Result<()> {
    let (n1, client) = (lab.host("n1")?, lab.client()?);
    let victim = backend_beside_n1(lab)?;
    let mut load = steady(client, "node-death", &n1.at(80), 14)?;
    let killed = Instant::now();
    let killed_at = u64::try_from(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_millis())?;
    victim.power_cut()?;
    println!("  {}: every process killed, cable pulled", victim.name());
    let tally = ui::during("connections while the node dies", || load::finish(&mut load))?;
    println!("    {tally}");
    let gap = tally.last_failure_at.map_or(0, |last| last.saturating_sub(killed_at));
    // Without a single failure the victim had no part in the load, and nothing would be proved.
    let ok = gap > 0 && gap <= 5000;
    show.expect(
        "last connection that met the dead backend",
        "1-5000 ms after death",
        format!("{gap} ms"),
        ok,
    );
    show.expect(
        "longest time without any answer",
        "<= 1000 ms",
        format!("{} ms", tally.longest_gap_ms),
        tally.longest_gap_ms <= 1000,
    );

    ui::during("its slots run elsewhere", || {
        // node_grace (10 s) counts from the confirmed death; until then the tasks are shown where they were.
        eventually("its slots to be placed elsewhere", Duration::from_secs(25), || {
            Ok(!hosts(n1)?.iter().any(|h| h == victim.name()))
        })?;
        running(n1, 2)
    })?;
    let wanted = hosts(n1)?;
    let moved = wanted.iter().all(|h| h != victim.name());
    show.expect(
        "its slots run elsewhere",
        "<= 25 s after death",
        format!("{} on {}", ms(killed.elapsed()), wanted.join(", ")),
        moved && killed.elapsed().as_secs() <= 25,
    );
    show.run(n1, "netctl service ps web")?.ok()?;
    show.run(n1, "netctl node ls")?.ok()?;
    let history = tasks(n1)?.iter().any(|t| !t.desired && t.hostname == victim.name());
    show.expect(
        "service ps tells the story",
        format!("a line for {}", victim.name()),
        history,
        history,
    );
    let after = show.tally(client, None, &format!("--to {} -n 200", n1.at(80)))?;
    show.answered("client -> n1:80 afterwards", &after);

    // It comes back: the same node, with what it had on its disk.
    victim.heal()?;
    ui::during(&format!("{} returns", victim.name()), || {
        victim.start_netd()?;
        victim.start_runner()?;
        n1.sees_ready(3, Duration::from_secs(30))
    })?;
    let through = show.tally(client, None, &format!("--to {} -n 100", victim.at(80)))?;
    show.answered(&format!("client -> {}:80, returned", victim.name()), &through);
    Ok(())
}

/// A node other than n1 that runs a task of web.
fn backend_beside_n1(lab: &Lab) -> anyhow::Result<&Host> {
    let name = hosts(lab.host("n1")?)?
        .into_iter()
        .find(|h| h != "n1")
        .context("every task of web runs on n1")?;
    lab.host(&name)
}

/// Connections at a steady rate; returns when they are in full flow, with every backend in use, before anything dies.
fn steady(client: &Host, name: &str, to: &str, seconds: u32) -> anyhow::Result<Process> {
    let load = load::steady(client, name, to, seconds)?;
    println!(
        "  client# lab-tool tally --to {to} --rate {} --duration {seconds} &",
        load::RATE
    );
    std::thread::sleep(Duration::from_secs(1));
    Ok(load)
}
