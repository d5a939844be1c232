//! Three managers of five nodes: leaders die under writes, all are cut off at once, one loses its disk, roles change.
#![allow(clippy::disallowed_methods, reason = "deaths are timed")]

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lab::wire::Tally;
use lab::{Process, eventually};
use model::api::NodeView;
use model::intent::Role;
use tests::managers::{self, SETTLED, Writers, all_reached, form, fresh, leader, members, quorum, spread, voters};
use tests::{create_web, in_lab, status};

/// How often the leader is killed: `NETD_LEADER_KILLS`, default 5.
fn kills() -> usize {
    let given = std::env::var("NETD_LEADER_KILLS").ok();
    given.and_then(|n| n.parse().ok()).unwrap_or(5)
}

#[test]
fn leaders_die_under_writes() {
    in_lab("leaders", 5, |lab| {
        form(lab, 3)?;
        let hosts: Vec<&lab::Host> = lab.nodes().iter().take(3).collect();
        let (n1, n5, client) = (lab.host("n1")?, lab.host("n5")?, lab.client()?);

        // Who manages is told, with what the cluster bears.
        let q = quorum(n1)?;
        ensure!((q.voters, q.quorum, q.tolerated) == (3, 2, 1), "{q:?}");
        eventually("a worker to tell too", SETTLED, || {
            let seen = members(n5)?;
            let rtt = seen.iter().filter(|m| m.round_trip_us.is_some()).count();
            ensure!(rtt == 2 && seen.iter().filter(|m| m.leader).count() == 1, "{seen:?}");
            Ok(true)
        })?;
        // A worker is told where changes are made, a follower makes them.
        let refused = n5.netctl("network create x")?;
        ensure!(refused.code == 1 && refused.stderr.contains("n1"), "{}", refused.stderr);
        let leads = leader(lab, n1)?;
        let follower = hosts.iter().find(|h| h.name() != leads.name()).context("no follower")?;
        follower.netctl("network create app --subnet 10.77.0.0/16")?.ok()?;
        // What was acknowledged by one of them is seen on each of them.
        for n in 0..6 {
            let by = hosts[n % hosts.len()];
            by.netctl(&format!("network create seen{n} --subnet 10.78.{n}.0/24 --detach"))?
                .ok()?;
            for host in &hosts {
                let all = fresh(host, "/v1/networks")?;
                ensure!(all.contains(&format!("\"seen{n}\"")), "{}: {all}", host.name());
            }
        }
        create_web(lab, "app", 2)?;
        follower.netctl("service publish 80")?.ok()?;

        let mut traffic = steady(client, &n5.at(80))?;
        let writers = Writers::start(&hosts, 2, Duration::from_millis(40));
        let mut gaps = Vec::new();
        for _ in 0..kills() {
            let victim = leader(lab, n5)?;
            writers.next_after(Instant::now())?;
            victim.kill_netd()?;
            gaps.push(writers.next_after(Instant::now())?);
            victim.start_netd()?;
            all_reached(victim, 3)?;
        }
        let slowest = gaps.iter().max().copied().unwrap_or_default();
        eprintln!("leader killed -> next acknowledged write: {}", spread(gaps));
        let seen = report(&mut traffic)?;
        ensure!(seen.errors() == 0, "a published port does not need managers: {seen}");
        for host in &hosts {
            // Every manager has all of it.
            all_reached(host, 3)?;
        }
        writers.none_lost(n1)?;
        ensure!(slowest < Duration::from_secs(5), "a leader was missed for {slowest:?}");
        Ok(())
    });
}

/// 50 connections a second until it is ended.
fn steady(client: &lab::Host, to: &str) -> anyhow::Result<Process> {
    let mut load = client.spawn(
        "steady",
        &[
            "lab-tool",
            "tally",
            "--announce",
            "--to",
            to,
            "--rate",
            "50",
            "--duration",
            "20",
        ],
    )?;
    load.line("ready", Duration::from_secs(20))?;
    Ok(load)
}

fn report(process: &mut Process) -> anyhow::Result<Tally> {
    let out = process.wait(Duration::from_secs(60))?;
    let json = out.stdout.lines().find(|l| l.starts_with('{'));
    Ok(serde_json::from_str(
        json.with_context(|| format!("no report: {}", out.stdout))?,
    )?)
}

#[test]
fn all_are_killed_at_once_and_one_loses_its_disk() {
    in_lab("managers", 4, |lab| {
        form(lab, 3)?;
        let hosts: Vec<&lab::Host> = lab.nodes().iter().take(3).collect();
        let (n1, n4) = (lab.host("n1")?, lab.host("n4")?);

        // 1. All managers at once.
        let writers = Writers::start(&hosts, 2, Duration::from_millis(20));
        writers.next_after(Instant::now() + Duration::from_secs(1))?;
        for host in &hosts {
            host.kill_netd()?;
        }
        let killed = Instant::now();
        eventually("the worker to say that nobody is reached", SETTLED, || {
            Ok(status(n4)?.converged.is_none())
        })?;
        for host in &hosts {
            host.start_netd()?;
        }
        let took = writers.next_after(killed)?;
        eprintln!("all managers killed, restarted -> next acknowledged write: {took:.2?} after the kill");
        writers.none_lost(n1)?;
        n4.sees_ready(4, SETTLED)?;

        // 2. One loses its log, the identity stays: it comes back under another id in Raft.
        let leads = leader(lab, n1)?;
        let wiped = hosts.iter().find(|h| h.name() != leads.name()).context("no follower")?;
        let writers = Writers::start(&[leads], 1, Duration::from_millis(20));
        wiped.kill_netd()?;
        std::fs::remove_dir_all(wiped.folder().join("state/raft"))?;
        wiped.start_netd()?;
        all_reached(leads, 3)?;
        eventually("the same four nodes", SETTLED, || {
            let nodes: Vec<NodeView> = wiped.netctl("node ls -o json")?.json()?;
            ensure!(nodes.len() == 4, "{nodes:?}");
            Ok(true)
        })?;
        writers.none_lost(wiped)?;

        // 3. A bit flips in a log: told, laid aside, and fetched anew.
        wiped.kill_netd()?;
        flip(&wiped.folder().join("state/raft"))?;
        wiped.start_netd()?;
        all_reached(leads, 3)?;
        ensure!(
            wiped.folder().join("state/raft.damaged").is_dir(),
            "the damaged log is kept for a look"
        );
        let log = wiped.netd_log()?;
        ensure!(log.contains("damaged"), "it is told: {log}");

        // 4. A follower that missed more than the log keeps gets a snapshot.
        wiped.stop_netd()?;
        eventually("it to be missed", SETTLED, || {
            let now = quorum(leads)?;
            ensure!((now.reachable, now.tolerated) == (2, 0), "{now:?}");
            Ok(true)
        })?;
        leads
            .netctl("cluster update snapshot-interval=50 log-retention=0")?
            .ok()?;
        let writers = Writers::start(&[leads], 2, Duration::ZERO);
        writers.next_after(Instant::now() + Duration::from_secs(3))?;
        wiped.start_netd()?;
        all_reached(leads, 3)?;
        writers.none_lost(wiped)?;
        ensure!(leads.netd_log()?.contains("sending a snapshot"), "it got a snapshot");
        Ok(())
    });
}

/// Flips a bit early in what was written to a log: at its very end it would be a write that had not ended.
fn flip(dir: &std::path::Path) -> anyhow::Result<()> {
    let mut files: Vec<_> = std::fs::read_dir(dir)?.flatten().map(|e| e.path()).collect();
    files.retain(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("log-")));
    files.sort();
    let file = files.last().context("no segment")?;
    let mut bytes = std::fs::read(file)?;
    let written = bytes.iter().rposition(|b| *b != 0).context("an empty segment")?;
    let at = written / 10;
    bytes[at] ^= 0x10;
    std::fs::write(file, bytes)?;
    Ok(())
}

#[test]
fn roles_change_under_writes() {
    in_lab("roles", 4, |lab| {
        form(lab, 3)?;
        let hosts: Vec<&lab::Host> = lab.nodes().iter().take(3).collect();
        let (n1, n2, n3, n4) = (lab.host("n1")?, lab.host("n2")?, lab.host("n3")?, lab.host("n4")?);
        let writers = Writers::start(&hosts, 2, Duration::from_millis(20));

        // 1. The lead is handed over, by request and by a leader that stops.
        for to in [n2, n3, n1] {
            let said = n1.netctl(&format!("cluster transfer {}", to.name()))?.ok()?;
            // A worker may ask a manager that has not heard the new leader yet.
            eventually("a worker to see the new leader", SETTLED, || {
                let leads = leader(lab, n4)?.name();
                ensure!(leads == to.name(), "{leads} leads; {}", said.stdout);
                Ok(true)
            })?;
        }
        let begun = Instant::now();
        ensure!(n1.stop_netd()? == 0, "SIGTERM is a good end");
        let gap = writers.next_after(begun)?;
        eprintln!("leader stopped -> next acknowledged write: {gap:.2?} after SIGTERM");
        n1.start_netd()?;
        all_reached(n1, 3)?;

        // 2. Every manager is replaced, one after the other: demoted, stopped, started, promoted.
        for host in &hosts {
            let by = hosts.iter().find(|h| h.name() != host.name()).context("no other")?;
            let said = by.netctl(&format!("node demote {}", host.name()))?.ok()?;
            ensure!(said.stderr.contains("warning: 2 managers"), "{}", said.stderr);
            eventually("its part to end", SETTLED, || {
                Ok(!host
                    .folder()
                    .join("state/raft")
                    .read_dir()?
                    .flatten()
                    .any(|f| f.file_name() != "lock"))
            })?;
            ensure!(!voters(by)?.contains(host.name()), "it votes no more");
            host.stop_netd()?;
            host.start_netd()?;
            by.netctl(&format!("node promote {}", host.name()))?.ok()?;
            all_reached(host, 3)?;
        }

        // 3. What would break the quorum is refused, and says how it is done all the same.
        n3.kill_netd()?;
        let alive: Vec<&lab::Host> = vec![n1, n2];
        eventually("n3 to be missed", SETTLED, || Ok(quorum(n1)?.reachable == 2))?;
        let refused = n1.netctl("node demote n2")?;
        ensure!(
            refused.code == 1,
            "demoting one of two that are left: {}",
            refused.stdout
        );
        ensure!(
            refused.stderr.contains("quorum") && refused.stderr.contains("--force"),
            "{}",
            refused.stderr
        );
        let refused = n1.netctl("node rm n3")?;
        ensure!(refused.stderr.contains("netctl node demote n3"), "{}", refused.stderr);
        // The dead one may go, and then be removed.
        n1.netctl("node demote n3")?.ok()?;
        eventually("n3's death", SETTLED, || Ok(n1.netctl("node rm n3")?.success()))?;
        ensure!(voters(n2)?.len() == 2, "two are left");

        // 4. It comes back with nothing on its disk, and joins anew with the managers' token: as another node.
        std::fs::remove_dir_all(n3.folder().join("state"))?;
        n3.start_netd()?;
        let token = n2.netctl("cluster token manager -q")?.ok()?.stdout.trim().to_owned();
        n3.netctl(&format!(
            "cluster join {token} {} --advertise-addr {}",
            n2.at(2377),
            n3.v4()
        ))?
        .ok()?;
        all_reached(n3, 3)?;
        eventually("n3 to vote, as n1 sees it", SETTLED, || Ok(voters(n1)?.contains("n3")))?;
        let said = n1.netctl("node demote n3")?.ok()?;
        ensure!(said.stderr.contains("warning: 2 managers"), "{}", said.stderr);

        // 5. A manager leaves: it is demoted by itself.
        n2.netctl("cluster leave")?.ok()?;
        ensure!(status(n2)?.me.is_none(), "n2 is out");
        ensure!(quorum(n1)?.voters == 1, "one is left");
        // Who leaves does not wait until the others have heard it.
        eventually("n4 to see n1 as the only manager", SETTLED, || {
            let nodes: Vec<NodeView> = n4.netctl("node ls -o json")?.json()?;
            let managers = nodes.iter().filter(|n| n.role == Role::Manager);
            let managers: Vec<&str> = managers.map(|n| n.hostname.as_str()).collect();
            ensure!(managers == ["n1"], "{managers:?}");
            Ok(true)
        })?;
        let refused = n1.netctl("cluster leave")?;
        ensure!(
            refused.code == 1 && refused.stderr.contains("only manager"),
            "{}",
            refused.stderr
        );
        drop(alive);
        managers::all_reached(n1, 1)?;
        writers.none_lost(n1)?;
        Ok(())
    });
}
