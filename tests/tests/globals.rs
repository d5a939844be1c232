//! Global services: one task on each node, whatever the nodes' roles, and while nodes join.
#![allow(clippy::disallowed_methods, reason = "an update is timed for people to read")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::ensure;
use lab::{Host, Lab, eventually};
use model::api::{TaskState, TaskView};
use model::intent::RolloutState;
use tests::load::{Load, command, releases};
use tests::managers::{SETTLED, all_reached, leader, voters};
use tests::{SERVICE, in_cluster, in_lab, running, tasks};

/// A task of the first release on each node, published on port 80.
fn create(n1: &Host, nodes: usize, flags: &str) -> anyhow::Result<()> {
    n1.netctl("network create app --subnet 10.77.0.0/16 --ipv6")?.ok()?;
    let line = format!(
        "service create {SERVICE} --global --network app --publish 80 --drain-timeout 8s {flags} -- {}",
        command(n1, "one")
    );
    n1.netctl(&line)?.ok()?;
    running(n1, nodes)
}

/// Generations of the tasks that are wanted, by host name, each there once.
fn by_host(n1: &Host) -> anyhow::Result<BTreeMap<String, u64>> {
    let wanted: Vec<TaskView> = tasks(n1)?.into_iter().filter(|t| t.desired).collect();
    let out: BTreeMap<String, u64> = wanted.iter().map(|t| (t.hostname.clone(), t.generation)).collect();
    ensure!(out.len() == wanted.len(), "two on one node: {wanted:?}");
    Ok(out)
}

#[test]
fn updated_start_first_it_loses_nothing() {
    in_cluster("globals", 3, |lab| {
        let (n1, client) = (lab.host("n1")?, lab.client()?);
        create(n1, 3, "--update-order start-first --rollback-order start-first")?;
        let to = n1.at(80);
        ensure!(releases(client, &to)? == ["one"], "the first release answers");
        let before = by_host(n1)?;
        let mut load = Load::start(client, "global", &to, 45)?;
        let begin = std::time::SystemTime::now();
        let told = n1
            .netctl(&format!("service update {SERVICE} -- {}", command(n1, "two")))?
            .ok()?;
        println!("start-first: {:.1} s", begin.elapsed()?.as_secs_f64());
        ensure!(
            told.stderr.contains("of 3 tasks are updated"),
            "progress is shown: {told:?}"
        );
        ensure!(releases(client, &to)? == ["two"], "the second release answers, alone");
        let seen = by_host(n1)?;
        ensure!(
            seen.keys().eq(before.keys()) && seen.values().all(|g| !before.values().any(|b| b == g)),
            "a new one on each node: {before:?} {seen:?}"
        );
        // What stood beside another one is no more, on any node.
        for node in lab.nodes() {
            eventually("one process on the node", Duration::from_secs(40), || {
                Ok(node.processes("lab-tool serve --port 80")?.len() == 1)
            })?;
        }
        let story = tasks(n1)?;
        let beside = |t: &&TaskView| t.slot > 1_000_000_000;
        ensure!(story.iter().any(|t| beside(&t)), "one was started first: {story:?}");

        // A release that fails goes back by itself.
        let told = n1.netctl(&format!(
            "service update {SERVICE} --update-failure-action rollback -- /bin/false"
        ))?;
        ensure!(told.code == 3 && told.stderr.contains("was taken back"), "{told:?}");
        ensure!(load.runs(), "the load ended before the updates did: nothing is proved");
        load.unharmed("start-first, global")?;
        let web: model::api::ServiceView = n1.netctl(&format!("service inspect {SERVICE} -o json"))?.json()?;
        let state = web.service.rollout.as_ref().map(|r| r.state);
        ensure!(state == Some(RolloutState::RollbackCompleted), "{state:?}");
        ensure!(by_host(n1)? == seen, "what it had not reached was not touched");
        ensure!(releases(client, &to)? == ["two"], "the second release answers");
        Ok(())
    });
}

/// Lets a node join through a manager.
fn join(by: &Host, node: &Host, flags: &str) -> anyhow::Result<()> {
    let token = by.join_token()?;
    node.start_netd()?;
    node.netctl(&format!(
        "cluster join {token} {} --advertise-addr {} {flags}",
        by.at(2377),
        node.v4()
    ))?
    .ok()?;
    node.start_runner()
}

/// Waits until each of the first `count` nodes has its task and no other node has one; the nodes that had one before
/// have the very same.
fn on_each(lab: &Lab, seen_by: &Host, names: &[&str], same: &BTreeMap<String, String>) -> anyhow::Result<()> {
    let want: BTreeSet<&str> = names.iter().copied().collect();
    eventually(&format!("a task on each of {want:?}"), Duration::from_secs(40), || {
        let wanted: Vec<TaskView> = tasks(seen_by)?.into_iter().filter(|t| t.desired).collect();
        let run = wanted.iter().filter(|t| t.state == TaskState::Running);
        let hosts: BTreeSet<&str> = run.map(|t| t.hostname.as_str()).collect();
        ensure!(hosts == want && wanted.len() == want.len(), "{wanted:?}");
        Ok(true)
    })?;
    let now = processes(lab, names)?;
    ensure!(
        same.iter().all(|(host, pid)| now.get(host) == Some(pid)),
        "a running task was touched: {same:?} {now:?}"
    );
    Ok(())
}

/// The process of each node's task.
fn processes(lab: &Lab, names: &[&str]) -> anyhow::Result<BTreeMap<String, String>> {
    let of = |name: &&str| {
        let pids = lab.host(name)?.processes("lab-tool serve --port 80")?;
        Ok(((*name).to_owned(), format!("{pids:?}")))
    };
    names.iter().map(of).collect()
}

#[test]
fn nodes_join_and_change_their_roles() {
    in_lab("globals-roles", 5, |lab| {
        let (n1, n2, n4, n5) = (lab.host("n1")?, lab.host("n2")?, lab.host("n4")?, lab.host("n5")?);
        let client = lab.client()?;
        n1.start_netd()?;
        n1.netctl(&format!("cluster init --advertise-addr {}", n1.v4()))?.ok()?;
        n1.start_runner()?;
        for name in ["n2", "n3"] {
            join(n1, lab.host(name)?, "")?;
        }
        n1.sees_ready(3, SETTLED)?;
        create(n1, 3, "")?;
        let to = n1.at(80);
        let mut load = Load::start(client, "roles", &to, 60)?;

        // Roles change, nodes join: every node has its task, and none of those that run is touched.
        let first = processes(lab, &["n1", "n2", "n3"])?;
        n1.netctl("node promote n2 n3")?.ok()?;
        join(n2, n4, "")?;
        on_each(lab, n2, &["n1", "n2", "n3", "n4"], &first)?;
        all_reached(n1, 3)?;
        // The leader is made a worker: its task goes on, and the next node gets its own from another leader.
        let leads = leader(lab, n2)?;
        let by = if leads.name() == "n2" { n1 } else { n2 };
        by.netctl(&format!("node demote {}", leads.name()))?.ok()?;
        ensure!(!voters(by)?.contains(leads.name()), "it votes no more");
        let four = processes(lab, &["n1", "n2", "n3", "n4"])?;
        join(by, n5, "--availability drain")?;
        by.sees_ready(5, SETTLED)?;
        on_each(lab, by, &["n1", "n2", "n3", "n4"], &four)?;
        ensure!(n5.processes("lab-tool serve --port 80")?.is_empty(), "n5 is drained");
        by.netctl("node activate n5")?.ok()?;
        on_each(lab, by, &["n1", "n2", "n3", "n4", "n5"], &four)?;
        by.netctl("node promote n5")?.ok()?;
        all_reached(by, 3)?;
        let five = processes(lab, &["n1", "n2", "n3", "n4", "n5"])?;
        // By itself: it is told that it was done, although it is no manager any more.
        let told = by.netctl(&format!("node demote {}", by.name()))?.ok()?;
        ensure!(told.stdout.contains("is a worker"), "{told:?}");
        on_each(lab, n5, &["n1", "n2", "n3", "n4", "n5"], &five)?;
        // Updated by those who lead now, on every node.
        n5.netctl(&format!(
            "service update {SERVICE} --update-monitor 500ms -- {}",
            command(n1, "two")
        ))?
        .ok()?;
        ensure!(load.runs(), "the load ended too early: nothing is proved");
        load.unharmed("roles and nodes that join")?;
        ensure!(releases(client, &to)? == ["two"], "on every node");
        ensure!(by_host(n5)?.len() == 5, "one on each");
        Ok(())
    });
}
