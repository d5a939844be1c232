//! The life of tasks: health, restarts, host names, logs, and connections that outlive a scale-down.

#![allow(clippy::disallowed_methods, reason = "a test may ask the clock")]

use std::collections::BTreeSet;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lab::wire::Transfer;
use lab::{Host, Lab, eventually, until};
use model::api::{ServiceView, TaskState, TaskView};
use tests::{SERVICE, in_cluster, tally, tasks};

/// For what is so a moment later.
const SOON: Duration = Duration::from_secs(20);

fn ready(host: &Host, service: &str) -> anyhow::Result<u32> {
    let web: ServiceView = host.netctl(&format!("service inspect {service} -o json"))?.json()?;
    Ok(web.ready)
}

fn becomes(host: &Host, service: &str, count: u32, limit: Duration) -> anyhow::Result<()> {
    let what = format!("{count} ready tasks of {service}");
    eventually(&what, limit, || Ok(ready(host, service)? == count))?;
    Ok(())
}

fn of(host: &Host, service: &str) -> anyhow::Result<Vec<TaskView>> {
    host.netctl(&format!("service ps {service} -o json"))?.json()
}

/// Creates [`SERVICE`] on both nodes; its tasks are healthy while a file of theirs is there.
fn create(lab: &Lab, n1: &Host) -> anyhow::Result<()> {
    let check = format!(
        "cmd:sh -c 'test -e {}/fit-$NETD_SLOT || {{ echo not fit; exit 3; }}',interval=200ms,timeout=5s,retries=2,start=20s",
        lab.folder().display()
    );
    let tool = n1.tool();
    let flags = [
        "netctl",
        "service",
        "create",
        SERVICE,
        "--detach",
        "--network",
        "app",
        "--replicas",
        "2",
        "--publish",
        "80",
        "--hostname",
        "{{.Service}}-{{.Slot}}",
        "--env",
        "WHERE={{.Node}}",
        "--label",
        "tier=front",
        "--drain-timeout",
        "30s",
        "--health",
        &check,
        "--",
        "sh",
        "-c",
    ];
    let script = format!("echo here: $WHERE; exec {tool} serve --port 80");
    let mut argv = flags.to_vec();
    argv.push(&script);
    n1.run(&argv)?.ok()?;
    Ok(())
}

#[test]
fn health_restarts_logs_and_long_connections() {
    in_cluster("life", 2, |lab| {
        let (n1, n2, client) = (lab.host("n1")?, lab.host("n2")?, lab.client()?);
        n1.netctl("network create app --subnet 10.77.0.0/16")?.ok()?;
        let fit = |slot: u32| lab.folder().join(format!("fit-{slot}"));
        create(lab, n1)?;

        // They run and listen, and are not fit for anybody yet.
        eventually("both to be asked for their health", Duration::from_secs(20), || {
            let told = tasks(n1)?;
            Ok(told.len() == 2 && told.iter().all(|t| t.message.contains("not fit") && t.health.is_none()))
        })?;
        ensure!(ready(n1, SERVICE)? == 0, "listening is not enough");
        let begin = Instant::now();
        for slot in [1, 2] {
            fs::write(fit(slot), "")?;
        }
        becomes(n1, SERVICE, 2, Duration::from_secs(20))?;
        println!("fit -> in use: {} ms", begin.elapsed().as_millis());
        let at = format!("--to {} -n 40", n1.at(80));
        // What a node sees is in its kernel a moment later; and fit is not yet: it listens.
        eventually("both to answer, by host names of their own", SOON, || {
            let seen = tally(client, None, &at)?;
            ensure!(
                seen.errors() == 0 && seen.answered.keys().eq(["web-1/web.1", "web-2/web.2"]),
                "{seen}"
            );
            Ok(true)
        })?;

        // Unhealthy: out of new flows at once, then replaced.
        fs::remove_file(fit(1))?;
        becomes(n1, SERVICE, 1, Duration::from_secs(10))?;
        eventually("nothing new to go to the unhealthy one", SOON, || {
            let seen = tally(client, None, &at)?;
            ensure!(seen.errors() == 0 && seen.answered.keys().eq(["web-2/web.2"]), "{seen}");
            Ok(true)
        })?;
        fs::write(fit(1), "")?;
        becomes(n1, SERVICE, 2, Duration::from_secs(20))?;
        // Its node tells managers of it on another way than all nodes of the endpoint.
        eventually("the story of the unhealthy one", SOON, || {
            let history = tasks(n1)?;
            let failed = history.iter().find(|t| !t.desired && t.state == TaskState::Failed);
            let failed = failed.with_context(|| format!("{history:?}"))?;
            ensure!(
                failed.message.contains("unhealthy: exit status 3: not fit"),
                "{failed:?}"
            );
            Ok(true)
        })?;

        // Killed: replaced where it was.
        let mut figures = Vec::new();
        for _ in 0..3 {
            let task = tasks(n1)?.into_iter().find(|t| t.desired).context("no task")?;
            let home = lab.host(&task.hostname)?;
            let pids = home.processes("lab-tool serve --port 80")?;
            home.kill_process(*pids.first().context("no process")?)?;
            let killed = Instant::now();
            eventually("another task in the slot", Duration::from_secs(30), || {
                let again = tasks(n1)?
                    .into_iter()
                    .any(|t| t.desired && t.id == task.id && t.restarts > task.restarts && t.health == Some(true));
                Ok(again && ready(n1, SERVICE)? == 2)
            })?;
            figures.push(killed.elapsed().as_millis());
        }
        println!("killed -> replaced, healthy and in use: {figures:?} ms");

        logs(n1, n2)?;
        lists(n1, n2)?;
        connections(lab, n1, client)?;
        restarts(lab, n1)
    });
}

/// What tasks say on all nodes, from any node.
fn logs(n1: &Host, n2: &Host) -> anyhow::Result<()> {
    for node in [n1, n2] {
        let said = node.netctl("service logs web")?.ok()?.stdout;
        for line in [
            "web.1@n1 | here: n1",
            "web.2@n2 | here: n2",
            "web.2@n2 | ready: web-2/web.2 on port 80",
        ] {
            ensure!(said.contains(line), "from {}: {line:?} is not in: {said}", node.name());
        }
    }
    // It is fit by a file: that it listens is said a moment later.
    eventually("the last line of web.1", SOON, || {
        let last = n2.netctl("task logs web.1 --tail 1 -q")?.ok()?.stdout;
        ensure!(last == "ready: web-1/web.1 on port 80\n", "{last:?}");
        Ok(true)
    })?;
    let mut follow = n1.spawn("follow", &["netctl", "service", "logs", "-f", "--tail", "1", "web"])?;
    follow.line("web.2@n2 | ready", Duration::from_secs(10))?;
    let pid = *n2
        .processes("lab-tool serve --port 80")?
        .first()
        .context("no process")?;
    n2.kill_process(pid)?;
    follow.line("web.2@n2 | here: n2", Duration::from_secs(20))?;
    follow.kill();
    becomes(n1, SERVICE, 2, Duration::from_secs(30))?;

    // Each line has its time, and what was said since then is found by it.
    let (stamped, _) = until("the second start of web.2 to be told", SOON, || {
        let said = n1.netctl("task logs web.2 --timestamps -q")?.ok()?.stdout;
        let ready = said.matches("ready: web-2/web.2 on port 80\n").count();
        ensure!(ready >= 2, "{said}");
        Ok(Some(said))
    })?;
    let lines: Vec<(&str, &str)> = stamped.lines().filter_map(|l| l.split_once(' ')).collect();
    ensure!(lines.len() >= 4 && lines.is_sorted_by_key(|l| l.0), "{stamped}");
    ensure!(lines.iter().all(|(at, _)| at.ends_with('Z')), "{stamped}");
    let (at, _) = *lines.iter().rev().find(|l| l.1 == "here: n2").context("no start")?;
    let since = n1.netctl(&format!("task logs web.2 --since {at} -q"))?.ok()?.stdout;
    ensure!(
        since == "here: n2\nready: web-2/web.2 on port 80\n",
        "since {at}: {since:?} of {stamped}"
    );
    let young = n2.netctl("service logs web --since 1h")?.ok()?.stdout;
    ensure!(young.lines().count() > lines.len(), "{young}");
    let none = n2.netctl("service logs web --since 2100-01-01")?.ok()?.stdout;
    ensure!(none.is_empty(), "{none}");
    let bad = n1.netctl("service logs web --since yesterday")?;
    ensure!(bad.code == 2 && bad.stderr.contains("try: 10m"), "{bad:?}");
    Ok(())
}

fn lists(n1: &Host, n2: &Host) -> anyhow::Result<()> {
    for node in [n1, n2] {
        let all: Vec<TaskView> = node.netctl("task ls -o json")?.json()?;
        let wanted: Vec<&str> = all.iter().filter(|t| t.desired).map(|t| t.id.as_str()).collect();
        ensure!(wanted == ["web.1", "web.2"], "{all:?}");
        let there: Vec<TaskView> = node.netctl("node ps n2 -o json")?.json()?;
        ensure!(
            !there.is_empty() && there.iter().all(|t| t.id.as_str() == "web.2"),
            "{there:?}"
        );
        let one: Vec<TaskView> = node.netctl("task inspect web.2")?.json()?;
        ensure!(one.iter().all(|t| t.slot == 2) && one.len() <= 5, "{one:?}");
    }
    let none = n1.netctl("task inspect web.9")?;
    ensure!(none.code == 1 && none.stderr.contains("try:"), "{none:?}");
    Ok(())
}

/// What a `lab-tool fetch` reports at its end, behind what it said before.
fn report(fetch: &mut lab::Process) -> anyhow::Result<Transfer> {
    let said = fetch.wait(Duration::from_secs(30))?.stdout;
    let last = said.lines().last().with_context(|| "a transfer reports nothing")?;
    serde_json::from_str(last).with_context(|| format!("no report: {said}"))
}

/// Connections through a published port while their task leaves: they go on until they end, or until the service's
/// patience does.
fn connections(lab: &Lab, n1: &Host, client: &Host) -> anyhow::Result<()> {
    let (to, octets) = (n1.at(80), 2_000_000.to_string());
    let mut under_way = Vec::new();
    for n in 0..6 {
        let line = [
            "lab-tool", "fetch", "--to", &to, "--octets", &octets, "--rate", "400000",
        ];
        let mut fetch = client.spawn(&format!("long-{n}"), &line)?;
        fetch.line("receiving", Duration::from_secs(10))?;
        under_way.push(fetch);
    }
    let begin = Instant::now();
    n1.netctl("service scale web=0 --detach")?.ok()?;
    for fetch in &mut under_way {
        let seen = report(fetch)?;
        ensure!(
            seen.lost() == 0 && seen.error.is_none(),
            "a connection was cut: {seen:?}"
        );
    }
    eventually(
        "the tasks to end after their connections",
        Duration::from_secs(30),
        || {
            let left: usize = lab
                .nodes()
                .iter()
                .map(|n| Ok(n.processes("lab-tool serve --port 80")?.len()))
                .sum::<anyhow::Result<usize>>()?;
            Ok(left == 0)
        },
    )?;
    println!(
        "six connections of 5 s outlive a scale-down of {} ms",
        begin.elapsed().as_millis()
    );

    let tool = n1.tool();
    let line = format!("service create brief --network app --publish 81 --drain-timeout 1s -- {tool} serve --port 81");
    n1.netctl(&line)?.ok()?;
    let to = n1.at(81);
    let answers = || tests::all_answered(client, None, &format!("--to {to} -n 1")).map(|_| true);
    eventually("brief to answer", SOON, answers)?;
    let line = [
        "lab-tool",
        "fetch",
        "--to",
        &to,
        "--octets",
        "100000000",
        "--rate",
        "400000",
    ];
    let mut endless = client.spawn("endless", &line)?;
    endless.line("receiving", Duration::from_secs(10))?;
    let begin = Instant::now();
    n1.netctl("service scale brief=0 --detach")?.ok()?;
    let seen = report(&mut endless)?;
    let took = begin.elapsed();
    println!("an endless connection is cut after {} ms", took.as_millis());
    ensure!(seen.lost() > 0, "{seen:?}");
    ensure!(
        (Duration::from_millis(900)..Duration::from_secs(15)).contains(&took),
        "cut after {took:?} with a drain timeout of 1 s"
    );
    n1.netctl("service rm brief")?.ok()?;
    Ok(())
}

/// Jobs end well and stay ended; what fails on one node again and again is tried on another one.
fn restarts(lab: &Lab, n1: &Host) -> anyhow::Result<()> {
    n1.netctl("service create job --network app --restart-condition on-failure -- true")?
        .ok()?;
    // The command waits until it runs; that it has ended is told a moment later.
    eventually("the job to be complete", Duration::from_secs(10), || {
        Ok(of(n1, "job")?.iter().all(|t| t.state == TaskState::Complete))
    })?;
    let job = of(n1, "job")?;
    ensure!(job.len() == 1 && job.iter().all(|t| t.restarts == 0), "{job:?}");

    let script = format!("test -e {}/good-$NETD_NODE && exec sleep 1000", lab.folder().display());
    let line = [
        "netctl",
        "service",
        "create",
        "picky",
        "--detach",
        "--network",
        "app",
        "--restart-max-attempts",
        "2",
        "--restart-delay",
        "20ms",
        "--",
        "sh",
        "-c",
        &script,
    ];
    // It fails on every node: it goes from one to the other, and then stays and says so.
    n1.run(&line)?.ok()?;
    eventually(
        "the restarts to be used up on both nodes",
        Duration::from_secs(30),
        || {
            let told = of(n1, "picky")?;
            let stuck = told
                .iter()
                .any(|t| t.desired && t.exhausted && t.message.contains("no other node may take"));
            let homes: BTreeSet<&str> = told.iter().map(|t| t.hostname.as_str()).collect();
            Ok(stuck && homes.len() == 2)
        },
    )?;
    n1.netctl("service rm picky")?.ok()?;
    // It is well on one node alone: it gets there by itself, wherever it began.
    fs::write(lab.folder().join("good-n2"), "")?;
    n1.run(&line)?.ok()?;
    eventually("the task to run where it can", Duration::from_secs(30), || {
        let told = of(n1, "picky")?;
        Ok(told
            .iter()
            .any(|t| t.desired && t.state == TaskState::Running && t.hostname == "n2" && !t.exhausted))
    })?;
    n1.netctl("service rm picky")?.ok()?;
    Ok(())
}
