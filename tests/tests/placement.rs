//! Where tasks go: labels, capacities, global services, drains, previews.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, ensure};
use lab::{Host, eventually};
use model::api::{NodeView, PlacementView, ServiceView};
use tests::{in_cluster, tasks};

/// Host names of the nodes that `web`'s tasks are wanted on.
fn on(n1: &Host) -> anyhow::Result<BTreeSet<String>> {
    Ok(tasks(n1)?
        .into_iter()
        .filter(|t| t.desired)
        .map(|t| t.hostname)
        .collect())
}

fn names<const N: usize>(names: [&str; N]) -> BTreeSet<String> {
    names.map(str::to_owned).into()
}

#[test]
fn tasks_go_where_they_may() {
    in_cluster("placement", 3, |lab| {
        let n1 = lab.host("n1")?;
        let tool = n1.tool();

        // Nodes tell what they are.
        eventually("machines in the log", Duration::from_secs(20), || {
            let nodes: Vec<NodeView> = n1.netctl("node ls -o json")?.json()?;
            Ok(nodes
                .iter()
                .all(|n| n.machine.os == "linux" && n.machine.capacity.memory > 0))
        })?;

        // What has no place says why, exits 3, and has its place as soon as there is one.
        let web = "--constraint node.labels.zone==a --reserve-memory 1M --reserve-cpu 0.1";
        let create = format!("service create web --replicas 2 {web} --timeout 5s -- {tool} serve --port 80");
        let preview = n1.netctl(&create.replace("--timeout", "--dry-run --timeout"))?;
        ensure!(
            preview.code == 0 && preview.stderr.contains("excluded 3"),
            "{preview:?}"
        );
        ensure!(
            n1.netctl("service ls -q")?.ok()?.stdout.is_empty(),
            "a preview makes nothing"
        );
        let late = n1.netctl(&create)?;
        ensure!(late.code == 3, "{late:?}");
        ensure!(
            late.stderr.contains("constraint node.labels.zone==a excluded 3") && late.stderr.contains("try:"),
            "{late:?}"
        );
        n1.netctl("node label n2 zone=a")?.ok()?;
        eventually("both on n2", Duration::from_secs(20), || Ok(on(n1)? == names(["n2"])))?;
        let n2: NodeView = n1.netctl("node inspect n2 -o json")?.json()?;
        ensure!(
            n2.reserved.cpu_milli == 200 && n2.reserved.memory == 2 << 20,
            "{:?}",
            n2.reserved
        );
        let free = n2.free.context("n2 has told its capacity")?;
        ensure!(free.memory + (2 << 20) == n2.machine.capacity.memory, "{n2:?}");

        // A label that goes moves them.
        n1.netctl("node label n3 zone=a")?.ok()?;
        n1.netctl("node label n2 zone-")?.ok()?;
        eventually("both on n3", Duration::from_secs(20), || Ok(on(n1)? == names(["n3"])))?;
        n1.netctl("node update n3 --max-tasks 2")?.ok()?;
        let full = n1.netctl("service scale web=3 --timeout 5s")?;
        ensure!(full.code != 0 && full.stderr.contains("max-tasks 1"), "{full:?}");

        // A rebalance moves as much as it may.
        n1.netctl("service scale web=2")?.ok()?;
        n1.netctl("node label n2 zone=a")?.ok()?;
        ensure!(on(n1)? == names(["n3"]), "a node that fits moves nothing");
        let seen: PlacementView = n1
            .netctl("service rebalance web --budget 5 --dry-run -o json")?
            .json()?;
        ensure!(seen.moved == 1, "{seen:?}");
        n1.netctl("service rebalance web --budget 5")?.ok()?;
        ensure!(on(n1)? == names(["n2", "n3"]), "{:?}", on(n1)?);

        // A global service follows the nodes.
        n1.netctl(&format!("service create agent --global -- {tool} serve --port 81"))?
            .ok()?;
        let agent = || -> anyhow::Result<u32> {
            let s: ServiceView = n1.netctl("service inspect agent -o json")?.json()?;
            Ok(s.wanted)
        };
        ensure!(agent()? == 3);
        // With its agent n3 has as many as it may have: what has no other place would go on on n2.
        n1.netctl("node update n3 --max-tasks 0")?.ok()?;
        n1.netctl("node drain n2")?.ok()?;
        ensure!(agent()? == 2 && on(n1)? == names(["n3"]), "n2 is drained");
        let n2: NodeView = n1.netctl("node inspect n2 -o json")?.json()?;
        ensure!(n2.tasks == 0, "{n2:?}");
        n1.netctl("node activate n2")?.ok()?;
        eventually("an agent on each node", Duration::from_secs(20), || Ok(agent()? == 3))?;

        // What cannot be meant is refused.
        for (flags, word) in [
            ("--constraint node.zone==a", "nothing that a node has"),
            ("--constraint node.role", "neither == nor !="),
            ("--after bad", "cannot be after itself"),
        ] {
            let no = n1.netctl(&format!("service create bad {flags} -- {tool} serve --port 82"))?;
            ensure!(
                no.code == 2 && no.stderr.contains(word) && no.stderr.contains("try:"),
                "{no:?}"
            );
        }
        let no = n1.netctl("node rm n1")?;
        ensure!(
            no.code == 1 && no.stderr.contains("demote"),
            "a manager is demoted first: {no:?}"
        );
        Ok(())
    });
}
