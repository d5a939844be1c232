//! Step 3: services and placement.

use std::time::{Duration, Instant};

use lab::{Host, Lab, eventually};
use model::api::{TaskState, TaskView};

use super::nodes::ms;
use super::show::Show;
use crate::ui;

pub(super) fn place(lab: &Lab, show: &mut Show) -> anyhow::Result<()> {
    let n1 = lab.host("n1")?;
    let start = Instant::now();
    let tool = n1.tool();
    show.argv(
        n1,
        &[
            "netctl",
            "service",
            "create",
            "web",
            "--network",
            "app",
            "--replicas",
            "2",
            "--",
            &tool,
            "serve",
            "--port",
            "80",
        ],
    )?
    .ok()?;
    running(n1, 2)?;
    show.expect(
        "two tasks run",
        "<= 5 s after create began",
        ms(start.elapsed()),
        start.elapsed().as_secs() < 5,
    );
    let hosts = hosts(n1)?;
    let spread = hosts.len() == 2 && hosts.first() != hosts.last();
    show.expect("placement", "two tasks on two nodes", hosts.join(", "), spread);
    show.run(n1, "netctl service ls")?.ok()?;
    show.run(n1, "netctl service ps web")?.ok()?;

    let start = Instant::now();
    show.run(n1, "netctl service scale web=5")?.ok()?;
    ui::during("five tasks", || running(n1, 5))?;
    show.expect(
        "scale web=5",
        "<= 5 s",
        ms(start.elapsed()),
        start.elapsed().as_secs() < 5,
    );
    show.run(n1, "netctl service scale web=2")?.ok()?;
    ui::during("two tasks again", || running(n1, 2))?;

    // A task that dies is started again by netd-run, on the same node.
    let victim = tasks(n1)?.into_iter().find(|t| t.desired);
    if let Some(task) = victim {
        let host = lab.host(&task.hostname)?;
        let start = Instant::now();
        let found = host.processes("lab-tool serve --port 80")?;
        if let Some(pid) = found.first() {
            println!("  {}# kill -9 a task of web", host.name());
            host.kill_process(*pid)?;
            let took = eventually("the task to be started again", Duration::from_secs(15), || {
                let now = tasks(n1)?;
                Ok(now
                    .iter()
                    .any(|t| t.id == task.id && t.restarts > task.restarts && t.state == TaskState::Running))
            });
            let text = took.as_ref().map_or_else(|e| e.to_string(), |_| ms(start.elapsed()));
            show.expect(
                "kill -9 of a task",
                "runs again within 10 s",
                text,
                took.is_ok_and(|t| t.as_secs() < 10),
            );
        } else {
            show.expect("kill -9 of a task", "a process to kill", "none was found", false);
        }
    }
    running(n1, 2)?;
    Ok(())
}

pub(super) fn tasks(host: &Host) -> anyhow::Result<Vec<TaskView>> {
    host.netctl("service ps web -o json")?.json()
}

/// Nodes of the tasks that should run, sorted.
pub(super) fn hosts(host: &Host) -> anyhow::Result<Vec<String>> {
    let mut hosts: Vec<String> = tasks(host)?
        .into_iter()
        .filter(|t| t.desired)
        .map(|t| t.hostname)
        .collect();
    hosts.sort();
    Ok(hosts)
}

/// Waits until exactly `count` tasks are wanted and all of these run.
pub(super) fn running(host: &Host, count: usize) -> anyhow::Result<Duration> {
    eventually(&format!("{count} running tasks"), Duration::from_secs(40), || {
        let wanted: Vec<TaskView> = tasks(host)?.into_iter().filter(|t| t.desired).collect();
        let run = wanted.iter().filter(|t| t.state == TaskState::Running).count();
        anyhow::ensure!(
            wanted.len() == count && run == count,
            "{run} of {} wanted tasks run",
            wanted.len()
        );
        Ok(true)
    })
}
