//! Services: created, placed, run, scaled, healed, removed.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, ensure};
use lab::eventually;
use model::api::{ServiceView, TaskState};
use tests::{SERVICE, attached, create_web, homes, in_cluster, running, tasks};

#[test]
fn created_scaled_restarted_removed() {
    in_cluster("services", 3, |lab| {
        let n1 = lab.host("n1")?;
        n1.netctl("network create app --subnet 10.77.0.0/16 --ipv6")?.ok()?;
        create_web(lab, "app", 3)?;
        ensure!(
            homes(n1)? == BTreeSet::from(["n1", "n2", "n3"].map(str::to_owned)),
            "spread: one task a node"
        );
        let web: ServiceView = n1.netctl(&format!("service inspect {SERVICE} -o json"))?.json()?;
        ensure!(
            web.service.vips.len() == 1,
            "a VIP on its network: {:?}",
            web.service.vips
        );
        eventually("three ready backends", Duration::from_secs(10), || {
            let web: ServiceView = n1.netctl(&format!("service inspect {SERVICE} -o json"))?.json()?;
            Ok(web.ready == 3)
        })?;

        // From a worker: reads work, changes name the manager.
        let n2 = lab.host("n2")?;
        n2.netctl("service ls")?.ok()?;
        let refused = n2.netctl("service scale web=1")?;
        ensure!(refused.code == 1 && refused.stderr.contains("try:"), "{refused:?}");

        n1.netctl("service scale web=6")?.ok()?;
        running(n1, 6)?;
        n1.netctl("service scale web=2")?.ok()?;
        running(n1, 2)?;
        eventually("no more than two processes", Duration::from_secs(40), || {
            let mut count = 0;
            for node in lab.nodes() {
                count += node.processes("lab-tool serve --port 80")?.len();
            }
            Ok(count == 2)
        })?;

        // A task that dies is started again where it was.
        let task = tasks(n1)?
            .into_iter()
            .find(|t| t.desired)
            .context("no task is wanted")?;
        let home = lab.host(&task.hostname)?;
        let pid = *home
            .processes("lab-tool serve --port 80")?
            .first()
            .context("the task has no process")?;
        home.kill_process(pid)?;
        eventually("the task to be started again", Duration::from_secs(20), || {
            Ok(tasks(n1)?.iter().any(|t| {
                t.id == task.id
                    && t.hostname == task.hostname
                    && t.restarts > task.restarts
                    && t.state == TaskState::Running
            }))
        })?;

        // netd-run dies: the tasks live on, and the next one finds them.
        let before = home.processes("lab-tool serve --port 80")?;
        let runner = *home.processes("netd-run")?.first().context("netd-run does not run")?;
        home.kill_process(runner)?;
        ensure!(
            home.processes("lab-tool serve --port 80")? == before,
            "tasks outlive their runner"
        );
        home.start_runner()?;
        running(n1, 2)?;
        ensure!(
            home.processes("lab-tool serve --port 80")? == before,
            "they were found, not started again"
        );

        // A command that fails is tried again with growing pauses, and ps says why.
        n1.netctl("service create bad --network app --replicas 1 -- /bin/false")?;
        eventually("the failure to be told", Duration::from_secs(20), || {
            let told = n1.netctl("service ps bad")?.ok()?.stdout;
            Ok(told.contains("exit status 1"))
        })?;
        n1.netctl("service rm bad")?.ok()?;

        n1.netctl(&format!("service rm {SERVICE}"))?.ok()?;
        eventually("every process and namespace to go", Duration::from_secs(30), || {
            for node in lab.nodes() {
                ensure!(
                    node.processes("lab-tool serve --port 80")?.is_empty(),
                    "a process on {}",
                    node.name()
                );
                let (left, veths) = attached(node)?;
                ensure!(left.is_empty(), "namespaces on {}: {left:?}", node.name());
                ensure!(veths == 0, "{veths} veths on {}", node.name());
            }
            Ok(true)
        })?;
        Ok(())
    });
}
