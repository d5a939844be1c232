//! Changes of a running service, and nodes that are emptied, under the load of clients that must not notice.
#![allow(clippy::disallowed_methods, reason = "an update is timed for people to read")]

use std::time::Duration;

use anyhow::{Context, ensure};
use lab::{Host, Lab, eventually};
use model::api::{NodeView, ServiceView, TaskState};
use model::intent::RolloutState;
use tests::load::{Load, command, releases};
use tests::{SERVICE, in_cluster, running, tasks};

fn create(lab: &Lab, replicas: u32, flags: &str) -> anyhow::Result<()> {
    let n1 = lab.host("n1")?;
    n1.netctl("network create app --subnet 10.77.0.0/16 --ipv6")?.ok()?;
    let line = format!(
        "service create {SERVICE} --network app --replicas {replicas} --publish 80 {flags} -- {}",
        command(n1, "one")
    );
    n1.netctl(&line)?.ok()?;
    running(n1, replicas as usize)
}

fn inspect(host: &Host) -> anyhow::Result<ServiceView> {
    host.netctl(&format!("service inspect {SERVICE} -o json"))?.json()
}

fn update_under_load(name: &str, order: &str) {
    in_cluster(name, 3, |lab| {
        let (n1, client) = (lab.host("n1")?, lab.client()?);
        create(
            lab,
            6,
            &format!("--update-order {order} --update-parallelism 2 --drain-timeout 8s"),
        )?;
        let to = n1.at(80);
        ensure!(releases(client, &to)? == ["one"], "the first release answers");
        let mut load = Load::start(client, "update", &to, 45)?;
        let begin = std::time::SystemTime::now();
        let line = format!("service update {SERVICE} -- {}", command(n1, "two"));
        let told = n1.netctl(&line)?.ok()?;
        println!("{order}: {:.1} s", begin.elapsed()?.as_secs_f64());
        ensure!(told.stderr.contains("tasks are updated"), "progress is shown: {told:?}");
        ensure!(load.runs(), "the load ended before the update did: nothing is proved");
        load.unharmed(order)?;
        ensure!(releases(client, &to)? == ["two"], "the second release answers, alone");
        running(n1, 6)?;

        // Back by hand.
        n1.netctl(&format!("service rollback {SERVICE}"))?.ok()?;
        ensure!(releases(client, &to)? == ["one"], "the first one is back");
        Ok(())
    });
}

#[test]
fn stop_first_loses_nothing() {
    update_under_load("roll-stop", "stop-first");
}

#[test]
fn start_first_loses_nothing() {
    update_under_load("roll-start", "start-first");
}

#[test]
fn a_release_that_fails_goes_back_by_itself() {
    in_cluster("roll-back", 3, |lab| {
        let (n1, client) = (lab.host("n1")?, lab.client()?);
        create(lab, 4, "--update-failure-action rollback --drain-timeout 8s")?;
        let to = n1.at(80);
        let before: Vec<u64> = tasks(n1)?.iter().filter(|t| t.desired).map(|t| t.generation).collect();
        let mut load = Load::start(client, "fails", &to, 40)?;
        let told = n1.netctl(&format!("service update {SERVICE} -- /bin/false"))?;
        ensure!(told.code == 3, "it did not come true: {told:?}");
        ensure!(
            told.stderr.contains("was taken back") && told.stderr.contains("exit status 1"),
            "why is told: {told:?}"
        );
        ensure!(load.runs(), "the load ended too early: nothing is proved");
        load.unharmed("a release that fails")?;
        let web = inspect(n1)?;
        let state = web.service.rollout.as_ref().map(|r| r.state);
        ensure!(state == Some(RolloutState::RollbackCompleted), "{state:?}");
        ensure!(releases(client, &to)? == ["one"], "the first release answers");
        running(n1, 4)?;
        let now: Vec<u64> = tasks(n1)?.iter().filter(|t| t.desired).map(|t| t.generation).collect();
        ensure!(before == now, "tasks that it had not reached were not touched");
        let twice = n1.netctl(&format!("service rollback {SERVICE}"))?;
        ensure!(
            twice.code == 1 && twice.stderr.contains("nothing to go back to"),
            "{twice:?}"
        );

        // One that pauses: it stays where it is, and an update goes on from there.
        let told = n1.netctl(&format!(
            "service update {SERVICE} --update-failure-action pause -- /bin/false"
        ))?;
        ensure!(told.code == 3 && told.stderr.contains("is paused"), "{told:?}");
        let listed = n1.netctl("service ls")?.ok()?.stdout;
        ensure!(listed.contains("update-paused"), "{listed}");
        let line = format!("service update {SERVICE} -- {}", command(n1, "three"));
        n1.netctl(&line)?.ok()?;
        ensure!(releases(client, &to)? == ["three"], "it went on");
        Ok(())
    });
}

#[test]
fn a_drained_node_loses_nothing() {
    in_cluster("roll-drain", 3, |lab| {
        let (n1, client) = (lab.host("n1")?, lab.client()?);
        create(lab, 6, "--drain-timeout 8s")?;
        let to = n1.at(80);
        let mut load = Load::start(client, "drain", &to, 30)?;
        n1.netctl("node drain n2")?.ok()?;
        ensure!(load.runs(), "the load ended before the drain did: nothing is proved");
        let n2: NodeView = n1.netctl("node inspect n2 -o json")?.json()?;
        ensure!(n2.tasks == 0, "{n2:?}");
        let left = lab.host("n2")?.processes("lab-tool serve --port 80")?;
        ensure!(left.is_empty(), "processes on n2: {left:?}");
        load.unharmed("a drain")?;
        running(n1, 6)?;
        ensure!(
            tasks(n1)?.iter().filter(|t| t.desired).all(|t| t.hostname != "n2"),
            "none is placed there"
        );

        // With no other node that takes them, they go on where they are, and it is told.
        n1.netctl("node drain n3")?.ok()?;
        let told = n1.netctl("node drain n1 --timeout 5s")?;
        ensure!(told.code == 3 && told.stderr.contains("n1 has 6 tasks"), "{told:?}");
        ensure!(told.stderr.contains("have no node"), "{told:?}");
        tests::all_answered(client, None, &format!("--to {to} -n 60"))?;
        n1.netctl("node activate n2")?.ok()?;
        eventually("all tasks on n2", Duration::from_secs(30), || {
            let wanted: Vec<_> = tasks(n1)?.into_iter().filter(|t| t.desired).collect();
            let n1_now: NodeView = n1.netctl("node inspect n1 -o json")?.json()?;
            let there = wanted
                .iter()
                .filter(|t| t.hostname == "n2" && t.state == TaskState::Running);
            ensure!(there.count() == 6 && n1_now.tasks == 0, "{wanted:?}");
            Ok(true)
        })?;
        tests::all_answered(client, None, &format!("--to {to} -n 60"))?;
        Ok(())
    });
}

#[test]
fn everything_can_be_changed_in_the_middle() {
    in_cluster("roll-middle", 3, |lab| {
        let (n1, client) = (lab.host("n1")?, lab.client()?);
        create(lab, 4, "--update-monitor 500ms --drain-timeout 1s")?;
        n1.netctl("network create db --subnet 10.78.0.0/16")?.ok()?;
        let to = n1.at(80);
        let one = inspect(n1)?;
        // An update in the middle of another one, and a change of networks: the last one counts.
        n1.netctl(&format!("service update {SERVICE} --detach -- {}", command(n1, "two")))?
            .ok()?;
        eventually("the first tasks to be replaced", Duration::from_secs(20), || {
            Ok(releases(client, &to)?.contains(&"two".to_owned()))
        })?;
        let line = format!(
            "service update {SERVICE} --network-add db --network-rm app --env-add A=1 --publish-add 8080:80 -- {}",
            command(n1, "three")
        );
        n1.netctl(&line)?.ok()?;
        ensure!(releases(client, &to)? == ["three"], "the last one answers");
        ensure!(releases(client, &n1.at(8080))? == ["three"], "at its new port too");
        let now = inspect(n1)?;
        let networks: Vec<&str> = now.service.vips.keys().map(|n| n.as_str()).collect();
        ensure!(
            networks == ["db"],
            "the address of the network that it left is free: {networks:?}"
        );
        n1.netctl("network rm app")?.ok()?;
        // A lost update is refused.
        let old = serde_json::json!({ "spec": one.service.spec, "seen": one.service.changed });
        let socket = "/run/netd/netd.sock";
        let sent = n1
            .run(&[
                "curl",
                "-s",
                "--unix-socket",
                socket,
                "-H",
                "content-type: application/json",
                "-d",
                &old.to_string(),
                &format!("http://netd/v1/services/{SERVICE}/update"),
            ])
            .context("curl")?;
        ensure!(sent.stdout.contains("changed meanwhile"), "{sent:?}");
        Ok(())
    });
}

/// One node has all tasks: those that the change has not reached and those of the new port are side by side there, also
/// while the last one drains.
#[test]
fn a_changed_target_on_one_node_cuts_nothing() {
    in_cluster("roll-target1", 1, |lab| {
        let (n1, client) = (lab.host("n1")?, lab.client()?);
        n1.netctl("network create app --subnet 10.77.0.0/16 --ipv6")?.ok()?;
        let release = |name: &str, port: u16| format!("{} serve --port {port} --one-thread --task {name}", n1.tool());
        let line = format!(
            "service create {SERVICE} --network app --replicas 2 --publish 80:8080 --drain-timeout 8s -- {}",
            release("one", 8080)
        );
        n1.netctl(&line)?.ok()?;
        running(n1, 2)?;
        // What was established is at stake; that new ones are answered by the right release is asked between.
        let mut loads = Vec::new();
        for (name, to) in [("target", n1.at(80)), ("target6", n1.at_v6(80))] {
            ensure!(releases(client, &to)? == ["one"], "the first release answers");
            loads.push(Load::start_long(client, name, &to, 20)?);
        }
        for (order, name, from, port) in [("stop-first", "two", 8080, 9090), ("start-first", "three", 9090, 7070)] {
            let line = format!(
                "service update {SERVICE} --update-order {order} --update-parallelism 1 --update-monitor 500ms \
                 --publish-rm 80:{from} --publish-add 80:{port} -- {}",
                release(name, port)
            );
            n1.netctl(&line)?.ok()?;
            ensure!(releases(client, &n1.at(80))? == [name], "{name} answers alone");
        }
        ensure!(
            loads.iter_mut().all(Load::runs),
            "the load ended before the updates did: nothing is proved"
        );
        for load in loads {
            load.unharmed("a changed target on one node")?;
        }
        Ok(())
    });
}

#[test]
fn a_changed_target_loses_nothing() {
    in_cluster("roll-target", 3, |lab| {
        let (n1, client) = (lab.host("n1")?, lab.client()?);
        n1.netctl("network create app --subnet 10.77.0.0/16 --ipv6")?.ok()?;
        let release = |name: &str, port: u16| format!("{} serve --port {port} --one-thread --task {name}", n1.tool());
        let line = format!(
            "service create {SERVICE} --network app --replicas 6 --publish 80:8080 --drain-timeout 8s -- {}",
            release("one", 8080)
        );
        n1.netctl(&line)?.ok()?;
        running(n1, 6)?;
        let to = n1.at(80);
        ensure!(releases(client, &to)? == ["one"], "the first release answers");
        let mut load = Load::start(client, "target", &to, 60)?;
        for (order, name, from, port) in [("stop-first", "two", 8080, 9090), ("start-first", "three", 9090, 7070)] {
            let line = format!(
                "service update {SERVICE} --update-order {order} --update-parallelism 2 --update-monitor 500ms \
                 --publish-rm 80:{from} --publish-add 80:{port} -- {}",
                release(name, port)
            );
            n1.netctl(&line)?.ok()?;
            for node in lab.nodes() {
                ensure!(
                    releases(client, &node.at(80))? == [name],
                    "{name} answers alone on {}",
                    node.name()
                );
            }
        }
        ensure!(load.runs(), "the load ended before the updates did: nothing is proved");
        load.unharmed("a changed target")?;

        // A target that nobody listens on is a release that fails: those that serve go on.
        let told = n1.netctl(&format!(
            "service update {SERVICE} --update-order start-first --publish-rm 80:7070 --publish-add 80:1 --timeout 3s"
        ))?;
        ensure!(told.code == 3, "{told:?}");
        ensure!(
            releases(client, &to)? == ["three"],
            "who was not reached is asked where it listens"
        );
        n1.netctl(&format!("service rollback {SERVICE}"))?.ok()?;
        ensure!(releases(client, &to)? == ["three"], "back");
        Ok(())
    });
}
